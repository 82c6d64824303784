import pytest

from rtmpd.config.model import ListenAddress
from rtmpd.net.listener import Listener
from rtmpd.net.local import is_listened_on, is_local


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::ffff:127.0.0.1", "0.0.0.0"])
def test_addresses_of_this_host_are_local(host):
    assert is_local((host, 1935))


@pytest.mark.parametrize("host", ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1"])
def test_addresses_of_others_are_not(host):
    assert not is_local((host, 1935, 0, 0) if ":" in host else (host, 1935))


@pytest.mark.parametrize(
    ("address", "listening", "own"),
    [
        (("127.0.0.1", 1935), [("127.0.0.1", 1935)], True),
        (("127.0.0.1", 1935), [("127.0.0.1", 1936)], False),
        (("127.0.0.1", 1935), [("127.0.0.2", 1935)], False),
        (("127.0.0.1", 1935), [("0.0.0.0", 1935)], True),
        (("127.0.0.1", 1935), [("::", 1935)], False),
        (("127.0.0.1", 1935), [("::", 1935), ("0.0.0.0", 1935)], True),
        (("::ffff:127.0.0.1", 1935, 0, 0), [("127.0.0.1", 1935)], True),
        (("127.5.5.5", 1935), [("0.0.0.0", 1935)], True),
        (("192.0.2.1", 1935), [("0.0.0.0", 1935)], False),
        # It may have come here by a translation of addresses that leaves it as it is.
        (("192.0.2.1", 1935), [("192.0.2.1", 1935)], True),
        (("127.0.0.1", 1935), [], False),
    ],
)
def test_whether_a_connection_comes_to_this_server(address, listening, own):
    assert is_listened_on(address, listening) is own


def test_a_listener_for_every_address_accepts_ipv4():
    listener = Listener(ListenAddress("", 0), lambda _: None)
    try:
        assert is_listened_on(("127.0.0.1", listener.port), listener.addresses)
        assert not is_listened_on(("127.0.0.1", listener.port + 1), listener.addresses)
    finally:
        listener.close()


def test_a_listener_for_one_address_accepts_only_that():
    listener = Listener(ListenAddress("127.0.0.1", 0), lambda _: None)
    try:
        assert listener.addresses == (("127.0.0.1", listener.port),)
    finally:
        listener.close()
