from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtmpd.config.secret import Secret
from rtmpd.services.auth.signing import sign, sign_url, stream_of_url, verified

SECRET = Secret("top secret")


def test_a_signature_is_what_the_documentation_says():
    expected = hmac.new(b"top secret", b"play\nlive/cam\n2000000000", hashlib.sha256).hexdigest()
    assert sign(SECRET, "play", "live/cam", 2000000000) == expected


def test_a_signature_is_good_for_its_action_stream_time_and_secret():
    signature = sign(SECRET, "play", "live/cam", 1000)
    assert verified([SECRET], "play", "live/cam", "1000", signature) == 1000
    assert verified([Secret("new"), SECRET], "play", "live/cam", "1000", signature.upper()) == 1000
    assert verified([SECRET], "publish", "live/cam", "1000", signature) is None
    assert verified([SECRET], "play", "live/cam2", "1000", signature) is None
    assert verified([SECRET], "play", "live/cam", "1001", signature) is None
    assert verified([Secret("other")], "play", "live/cam", "1000", signature) is None
    assert verified([], "play", "live/cam", "1000", signature) is None


@pytest.mark.parametrize(
    "expires", ["", "01000", "+1000", " 1000", "1e3", "1000.0", "-1", "9" * 13, "\u0661\u0660\u0660\u0660"]
)
def test_times_that_are_none(expires):
    assert verified([SECRET], "play", "live/cam", expires, sign(SECRET, "play", "live/cam", 1000)) is None


@given(st.text(), st.text(), st.text())
def test_anything_can_be_a_wrong_signature(key, expires, signature):
    assert verified([SECRET], "play", key, expires, signature) is None


def test_a_url_is_signed():
    url = sign_url(SECRET, "publish", "rtmp://host:1936/live/sub/cam", 1000)
    assert url == f"rtmp://host:1936/live/sub/cam?expires=1000&sign={sign(SECRET, 'publish', 'live/sub/cam', 1000)}"
    assert sign_url(SECRET, "play", "rtmp://host/live/cam?a=b", 1000).startswith("rtmp://host/live/cam?a=b&expires=1000&sign=")


def test_the_stream_of_a_url_is_as_it_stands_there():
    assert stream_of_url("rtmp://ann:pw@host//live//cam%20era/?x=y/z") == "live/cam%20era"


@pytest.mark.parametrize("url", ["", "rtmp://host", "rtmp://host/live", "http://host/live/cam", "rtmp:///live/cam", "live/cam"])
def test_what_is_no_url_of_a_stream(url):
    with pytest.raises(ValueError, match="expected rtmp://HOST/APPLICATION/NAME"):
        stream_of_url(url)
