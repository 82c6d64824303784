from __future__ import annotations

from types import SimpleNamespace

import pytest

from rtmpd.authorization import Action, AllowAll, Connect, Request
from rtmpd.errors import LoginRequired, Refused, TransportClosed
from rtmpd.protocol.naming import resolve
from rtmpd.rtmp.admission import authorize, log_in
from rtmpd.rtmp.wish import Wish


class FakeConnection:
    """As much of a connection as is asked about."""

    def __init__(self, authorizer):
        self.hub = SimpleNamespace(authorizer=authorizer)
        self.app, self.tc_url = "live?token=a", "'rtmp://host/live?b=c'"
        self.user = "ann"
        self.authorizing = False
        self.wish = Wish()
        self.events = []
        self.flushed = 0
        self.transport = SimpleNamespace(peer="[2001:db8::1]:5000", address="[2001:db8::1]", ensure_open=lambda: None)

    def flush(self):
        self.flushed += 1

    def emit(self, event_type, **data):
        self.events.append((str(event_type), data))


class Asked(AllowAll):
    """Remembers what it was asked, and may refuse."""

    def __init__(self, refusal=None):
        self.refusal = refusal
        self.connection = None
        self.waits = False

    def login(self, connect):
        self.seen = connect
        return self._answer("bob")

    def authorize(self, request):
        self.seen = request
        assert not self.connection.authorizing
        if self.waits:
            request.waiting()
            assert self.connection.authorizing
            assert self.connection.flushed == 1
        return self._answer("live/given")

    def _answer(self, value):
        if self.refusal is not None:
            raise self.refusal
        return value


def connected(refusal=None):
    asked = Asked(refusal)
    asked.connection = FakeConnection(asked)
    return asked, asked.connection


def test_an_authorizer_hears_all_of_a_request_and_its_answer_is_the_key():
    asked, connection = connected()
    found = resolve(connection.app, connection.tc_url, "cam?token=d", "")
    assert authorize(connection, Action.PUBLISH, found) == "live/given"
    parameters = {"b": "c", "token": "d"}
    assert asked.seen == Request(Action.PUBLISH, "[2001:db8::1]:5000", "[2001:db8::1]", "live/cam", parameters, "ann", "live")
    assert not connection.authorizing
    assert connection.events == []


def test_what_a_request_shows_of_itself_holds_no_secret():
    asked, connection = connected()
    authorize(connection, Action.PLAY, resolve("live?token=s3cret", "", "s3cret", ""))
    log_in(connection, resolve("live?token=s3cret", "", "", ""), {})
    assert "s3cret" not in repr(asked.seen)


def test_a_refusal_is_an_event():
    _asked, connection = connected(Refused("NetStream.Play.Failed", "Not authorized: wrong token.", "wrong token"))
    with pytest.raises(Refused):
        authorize(connection, Action.PLAY, resolve("live", "", "cam", ""))
    with pytest.raises(Refused):
        log_in(connection, resolve("live", "", "", ""), {})
    assert connection.events == [
        ("auth_failed", {"action": "play", "reason": "wrong token"}),
        ("auth_failed", {"action": "connect", "reason": "wrong token"}),
    ]
    assert not connection.authorizing


def test_a_login_that_has_to_go_on_is_no_event():
    _asked, connection = connected(LoginRequired("NetConnection.Connect.Rejected", "need auth"))
    with pytest.raises(LoginRequired):
        log_in(connection, resolve("live", "", "", ""), {})
    assert connection.events == []


def test_a_peer_that_has_left_meanwhile_gets_nothing():
    asked, connection = connected()

    def gone():
        raise TransportClosed("closed by the peer")

    connection.transport.ensure_open = gone
    # One that has sent all it had, and nobody has waited.
    assert authorize(connection, Action.PUBLISH, resolve("live", "", "cam", "")) == "live/given"
    assert connection.flushed == 0
    asked.waits = True
    with pytest.raises(TransportClosed):
        authorize(connection, Action.PUBLISH, resolve("live", "", "cam", ""))


@pytest.mark.parametrize(
    ("properties", "encoder"),
    [
        ({}, False),
        ({"type": "nonprivate"}, True),
        ({"type": 7, "flashVer": 8}, False),
        ({"flashVer": "FMLE/3.0 (compatible; FMSc/1.0)"}, True),
        ({"flashVer": "LNX 9,0,124,2"}, False),
    ],
)
def test_encoders_are_known_by_what_they_say(properties, encoder):
    asked, connection = connected()
    assert log_in(connection, resolve("live", "", "", ""), properties) == "bob"
    assert asked.seen.encoder is encoder


def test_a_connect_has_both_queries():
    asked, connection = connected()
    log_in(connection, resolve(connection.app, connection.tc_url, "", ""), {})
    assert asked.seen == Connect("[2001:db8::1]", "live", "token=a&b=c", {"token": "a", "b": "c"}, encoder=False)


def test_by_default_everybody_may_come_in():
    everybody = AllowAll()
    assert everybody.authorize(Request(Action.PLAY, "h:1", "h", "live/cam", {})) == "live/cam"
    assert everybody.login(Connect("h", "live", "", {}, encoder=True)) == ""
    assert not everybody.bars("h")
