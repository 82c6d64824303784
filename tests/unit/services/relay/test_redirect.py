"""Destinations that redirect a relay, or stop accepting its stream."""

import pytest

from rtmpd.errors import Refused
from rtmpd.protocol import status
from rtmpd.protocol.command import Command
from rtmpd.protocol.enhanced import reconnect_request
from rtmpd.services.relay.redirect import Redirected, check, redirect_url

HERE = "rtmp://user:password@a.example:1936/live/sub/cam?key=secret"


def on_status(info):
    return Command("onStatus", 0.0, None, [info], 0)


@pytest.mark.parametrize(
    "item",
    [
        b"media",
        Command("_result", 3.0, None, [reconnect_request()], 0),
        on_status(None),
        on_status({"level": 1.0, "code": None}),
        on_status(status.info(status.PUBLISH_START, "fine")),
    ],
)
def test_other_messages_change_nothing(item):
    check(item)


def test_an_error_status_is_a_refusal():
    with pytest.raises(Refused) as raised:
        check(on_status(status.info(status.PUBLISH_DENIED, "no more")))
    assert (raised.value.code, raised.value.description) == (status.PUBLISH_DENIED, "no more")
    with pytest.raises(Refused, match="publish failed"):
        check(on_status({"level": "error", "code": 5.0}))


@pytest.mark.parametrize("tc_url", ["", "rtmp://b.example/live"])
def test_a_reconnect_request_is_a_redirect(tc_url):
    with pytest.raises(Redirected) as raised:
        check(on_status(reconnect_request(tc_url, "The server is stopping.")))
    assert raised.value.tc_url == tc_url


@pytest.mark.parametrize(
    ("tc_url", "expected"),
    [
        ("rtmp://b.example/live", "rtmp://b.example/live/cam?key=secret"),
        ("rtmps://b.example:444/live/", "rtmps://b.example:444/live/cam?key=secret"),
        ("rtmp://[2001:db8::1]/a/b", "rtmp://[2001:db8::1]/a/b/cam?key=secret"),
        ("", ""),
        ("/other", ""),
        ("http://b.example/live", ""),
        ("rtmp://", ""),
        ("rtmp://b.example:x/live", ""),
        ("rtmp://eve:word@b.example/live", ""),
        ("rtmp://b.example/live?a=b", ""),
        ("rtmp://b.example/li\nve", ""),
        ("rtmp://b.example/" + "x" * 1000, ""),
    ],
)
def test_the_url_of_a_redirect(tc_url, expected):
    assert redirect_url(HERE, tc_url) == expected


def test_the_name_of_a_redirect_may_contain_slashes():
    assert redirect_url("rtmp://a.example/live//a/b?c=/", "rtmp://b.example/x") == "rtmp://b.example/x//a/b?c=/"


def test_a_redirect_never_leaves_tls():
    assert redirect_url("rtmps://a.example/live/cam", "rtmp://b.example/live") == ""
    assert redirect_url("rtmps://a.example/live/cam", "rtmps://b.example/live") == "rtmps://b.example/live/cam"
