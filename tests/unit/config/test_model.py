import dataclasses

import pytest

from rtmpd.config.loader import load_text
from rtmpd.config.model import ListenAddress


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":1935", "", 1935),
        (":0", "", 0),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
        ("[::1]:1935", "::1", 1935),
        ("[::]:1935", "::", 1935),
        ("[fe80::1%eth0]:1935", "fe80::1%eth0", 1935),
        ("localhost:1935", "localhost", 1935),
        ("media-1.example.org:1935", "media-1.example.org", 1935),
    ],
)
def test_an_address_is_read_and_written_back(text, host, port):
    address = ListenAddress.parse(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("[2001:DB8:0:0::1]:1", "[2001:db8::1]:1"), ("LocalHost:1", "localhost:1"), (":01935", ":1935")],
)
def test_one_address_has_one_form(text, canonical):
    assert str(ListenAddress.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", ""),
        ("1935", '; a port alone is written ":1935"'),
        ("localhost", ""),
        (":", "; the port is a number from 0 to 65535"),
        (":65536", "; the port is a number from 0 to 65535"),
        (":-1", "; the port is a number from 0 to 65535"),
        (":١٢", "; the port is a number from 0 to 65535"),
        (":1_935", "; the port is a number from 0 to 65535"),
        (": 1935", "; the port is a number from 0 to 65535"),
        ("::1", "; an IPv6 address is written in brackets"),
        ("::1:1935", "; an IPv6 address is written in brackets"),
        ("rtmp://host:1935", "; an IPv6 address is written in brackets"),
        ("[::1]", "; the port is a number from 0 to 65535"),
        ("[::g]:1", '; "::g" is not an IPv6 address'),
        ("[127.0.0.1]:1", '; "127.0.0.1" is not an IPv6 address'),
        ("[fe80::1%a b]:1", '; "fe80::1%a b" is not an IPv6 address'),
        ("256.0.0.1:1", '; "256.0.0.1" is not an IPv4 address'),
        ("1.2.3:1", '; "1.2.3" is not an IPv4 address'),
        ("*:1935", '; "*" is not a host name or an address'),
        ("a b:1935", '; "a b" is not a host name or an address'),
        ("-a:1935", '; "-a" is not a host name or an address'),
        ("a..b:1935", '; "a..b" is not a host name or an address'),
        ("\x1b[31m:1", '; "\\x1b[31m" is not a host name or an address'),
    ],
)
def test_a_wrong_address_says_what_was_expected(text, hint):
    with pytest.raises(ValueError, match="expected") as raised:
        ListenAddress.parse(text)
    got = text.replace("\x1b", "\\x1b")
    if text != "rtmp://host:1935":
        assert str(raised.value) == f'expected HOST:PORT, :PORT or [IPv6]:PORT, got "{got}"{hint}'


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (":1935", ":1935", True),
        (":1935", "127.0.0.1:1935", True),
        (":1935", "[::1]:1935", True),
        (":1935", ":1936", False),
        (":0", ":0", False),
        ("0.0.0.0:1", "127.0.0.1:1", True),
        ("0.0.0.0:1", "[::]:1", False),
        ("0.0.0.0:1", "[::1]:1", False),
        ("[::]:1", "[::1]:1", True),
        ("[::]:1", "localhost:1", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("[::1]:1", "[0::1]:1", True),
    ],
)
def test_which_addresses_overlap(one, other, overlap):
    first, second = ListenAddress.parse(one), ListenAddress.parse(other)
    assert first.overlaps(second) is overlap
    assert second.overlaps(first) is overlap


def test_without_names_every_application_is_accepted():
    config = load_text("")
    for app in ("live", "", "a/b", "*"):
        assert config.application(app) == ("*", config.defaults)


def test_the_longest_prefix_of_whole_parts_wins():
    config = load_text("[applications]\n[[live]]\n[[live/sub]]\n[[a/b]]\n")
    found = {
        app: matched and matched[0]
        for app in ("live", "live/", "/live", "live/x", "live/sub", "live/sub/x/y", "live/subway", "lively", "a", "a/b", "")
        for matched in [config.application(app)]
    }
    assert found == {
        "live": "live",
        "live/": "live",
        "/live": "live",
        "live/x": "live",
        "live/sub": "live/sub",
        "live/sub/x/y": "live/sub",
        "live/subway": "live",
        "lively": None,
        "a": None,
        "a/b": "a/b",
        "": None,
    }


def test_the_default_application_takes_all_other_connections():
    config = load_text("[applications]\n[[live]]\ngop_cache = no\n[[*]]\nkeyframe_wait_s = 3\n")
    assert config.application("live") == ("live", config.applications["live"])
    assert config.application("other/x") == ("*", config.applications["*"])
    assert config.application("") == ("*", config.applications["*"])


def test_a_configuration_can_not_be_changed():
    config = load_text("[applications]\n[[live]]\n")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.live.gop_cache = False
    with pytest.raises(TypeError):
        config.applications["x"] = config.defaults
