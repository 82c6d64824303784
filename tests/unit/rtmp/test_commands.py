"""Commands that the authorizer decides about, and what a connection reports of them when it closes."""

from __future__ import annotations

import pytest

from rtmpd.authorization import Action, AllowAll, Connect, Request
from rtmpd.errors import LoginRequired, Refused, TransportClosed
from rtmpd.events import EventType
from rtmpd.live.grant import Grant
from rtmpd.phases import CloseKind, CloseReason, ConnectionPhase
from rtmpd.protocol.command import Command
from rtmpd.protocol.naming import resolve
from rtmpd.rtmp import connection
from rtmpd.rtmp.commands import COMMANDS
from rtmpd.rtmp.connection import LastRequest
from rtmpd.util.stream_key import StreamKey
from tests.unit.live.fakes import new_stream, parse, settle
from tests.unit.rtmp.fakes import ConnectionTransport, FakePolicy, new_connection


class RecordingAuthorizer(AllowAll):
    """Records the requests, and may refuse them.

    Attributes:
        seen: The last request.
        refusal: Raised instead of an answer.
        waits: Whether publish and play have to wait for the answer.
        while_waiting: Called meanwhile.
    """

    def __init__(self):
        self.seen = None
        self.refusal = None
        self.waits = False
        self.while_waiting = lambda: None

    def login(self, connect):
        self.seen = connect
        return self._answer("ann")

    def authorize(self, request):
        self.seen = request
        if self.waits:
            request.waiting()
            self.while_waiting()
        return self._answer(Grant(StreamKey("live/given")))

    def _answer(self, value):
        if self.refusal is not None:
            raise self.refusal
        return value


class Client:
    """A connection with the commands that its client sends.

    Attributes:
        events: Type and data of the events of failed authorizations.
    """

    def __init__(self):
        policy = FakePolicy()
        self.authorizer = policy.authorizer = RecordingAuthorizer()
        self.stream = policy.streams["live/given"] = new_stream("live/given")
        self.transport = ConnectionTransport(peer="[2001:db8::1]:5000")
        self.connection = new_connection(policy, self.transport)
        self.connection.enter(ConnectionPhase.CONNECT)
        self.events = []
        policy.bus.subscribe([EventType.AUTH_FAILED], self._keep)

    def _keep(self, event):
        data = dict(event.data)
        assert data.pop("remote_addr") == "[2001:db8::1]:5000"
        self.events.append((str(event.type), data))

    def send(self, name, *arguments, properties=None, message_stream_id=0):
        COMMANDS[name](self.connection, Command(name, 1.0, properties, list(arguments), message_stream_id))

    def connect(self, app="live?token=a", tc_url="'rtmp://host/live?b=c'", **more):
        self.send("connect", properties={"app": app, "tcUrl": tc_url, **more})

    def ask(self, action, name="cam?token=d"):
        self.send("createStream")
        self.send(str(action), name, message_stream_id=1)

    @property
    def reported(self):
        return self.connection.last_request.as_event_data()


@pytest.fixture
def client():
    made = Client()
    yield made
    made.connection.leave_all()
    made.stream.end()
    made.stream.close()
    settle(2)


@pytest.mark.parametrize("action", [Action.PUBLISH, Action.PLAY])
def test_the_authorizer_gets_the_whole_request_and_returns_the_key(client, action):
    client.connect()
    client.ask(action)
    parameters = {"b": "c", "token": "d"}
    assert client.authorizer.seen == Request(
        action, "[2001:db8::1]:5000", "[2001:db8::1]", "live/cam", parameters, "ann", "live"
    )
    assert client.connection.message_streams[1].role.key == "live/given"
    assert client.connection.phase is (ConnectionPhase.PUBLISH if action is Action.PUBLISH else ConnectionPhase.PLAY)
    assert client.events == []


def test_the_representation_of_a_request_has_no_secrets(client):
    client.connect(app="live?token=s3cret")
    assert "s3cret" not in repr(client.authorizer.seen)
    client.ask(Action.PLAY, "s3cret?key=s3cret")
    assert "s3cret" not in repr(client.authorizer.seen)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("action", [Action.PUBLISH, Action.PLAY])
def test_a_refusal_is_an_event(client, action, waits):
    client.connect()
    client.authorizer.waits = waits
    client.authorizer.refusal = Refused("NetStream.Play.Failed", "Not authorized: wrong token.", "wrong token")
    with pytest.raises(Refused):
        client.ask(action)
    assert client.events == [("auth_failed", {"action": str(action), "reason": "wrong token"})]


def test_a_refused_connect_is_an_event(client):
    client.authorizer.refusal = Refused("NetConnection.Connect.Rejected", "Not authorized: wrong token.", "wrong token")
    with pytest.raises(Refused):
        client.connect()
    assert client.events == [("auth_failed", {"action": "connect", "reason": "wrong token"})]
    assert not client.connection.connected
    assert client.connection.phase is ConnectionPhase.CONNECT


def test_a_step_of_a_login_is_no_event(client):
    client.authorizer.refusal = LoginRequired("NetConnection.Connect.Rejected", "need auth")
    with pytest.raises(LoginRequired):
        client.connect()
    assert client.events == []


@pytest.mark.parametrize("action", [Action.PUBLISH, Action.PLAY])
def test_earlier_replies_are_sent_before_the_wait_for_the_authorizer(client, action):
    phases = []

    def look():
        phases.append(client.connection.phase)
        commands = [message.payload for message in parse(bytes(client.transport.data), 60_000)]
        assert any(b"NetConnection.Connect.Success" in each for each in commands)
        assert client.connection.endpoint.outgoing == b""

    client.authorizer.waits, client.authorizer.while_waiting = True, look
    client.connect()
    client.ask(action)
    assert phases == [ConnectionPhase.AUTHORIZE]


def test_without_a_wait_no_reply_is_sent_early(client):
    client.connect()
    client.ask(Action.PUBLISH)
    assert client.transport.data == b""


@pytest.mark.parametrize("action", [Action.PUBLISH, Action.PLAY])
def test_a_client_that_has_left_during_the_wait_does_not_publish_or_play(client, action):
    client.connect()
    client.authorizer.waits = True

    def gone():
        raise TransportClosed("closed by the peer")

    client.transport.ensure_open = gone
    with pytest.raises(TransportClosed):
        client.ask(action)
    assert client.stream.source is None
    assert client.connection.message_streams[1].role is None


def test_a_client_that_has_sent_its_last_data_may_publish_if_no_wait_was_needed(client):
    client.connect()

    def gone():
        raise TransportClosed("closed by the peer")

    client.transport.ensure_open = gone
    client.ask(Action.PUBLISH)
    assert client.stream.source is not None


def test_a_connection_that_is_closed_during_the_wait_does_not_publish(client):
    client.connect()
    client.authorizer.waits = True
    reason = CloseReason(CloseKind.SHUTDOWN, "the server is stopping")
    client.authorizer.while_waiting = lambda: client.connection.close(reason)
    with pytest.raises(TransportClosed):
        client.ask(Action.PUBLISH)
    assert client.connection.phase is ConnectionPhase.CLOSING
    assert client.stream.source is None


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
def test_encoders_are_recognized_by_their_connect_command(client, properties, encoder):
    client.connect(**properties)
    assert client.connection.client.user == "ann"
    assert client.authorizer.seen.encoder is encoder


def test_a_connect_has_the_queries_of_app_and_tc_url(client):
    client.connect()
    expected = Connect("[2001:db8::1]", "live", "token=a&b=c", {"token": "a", "b": "c"}, encoder=False)
    assert client.authorizer.seen == expected


def test_without_an_authentication_service_everything_is_allowed():
    authorizer = AllowAll()
    assert authorizer.authorize(Request(Action.PLAY, "h:1", "h", "live/cam", {})).key == "live/cam"
    assert authorizer.login(Connect("h", "live", "", {}, encoder=True)) == ""
    assert not authorizer.bars("h")


# The last request -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x" * 4097, "\U0001f600" * 1025, "\udcff" * 1366], ids=["ASCII", "emoji", "not UTF-8"])
@pytest.mark.parametrize("member", ["app", "tc_url"])
def test_a_connect_with_a_long_url_is_refused(client, member, text):
    with pytest.raises(Refused, match=r"url_limit_bytes is 4096") as refused:
        client.connect(**{member: text})
    assert refused.value.code == "NetConnection.Connect.InvalidApp"
    assert text not in str(refused.value)
    assert client.reported == {"wanted": "connect", "served": False}


@pytest.mark.parametrize(("action", "code"), [(Action.PUBLISH, "Publish.BadName"), (Action.PLAY, "Play.StreamNotFound")])
def test_a_publish_or_play_with_a_long_name_is_refused(client, action, code):
    client.connect()
    with pytest.raises(Refused, match=r"url_limit_bytes is 4096") as refused:
        client.ask(action, "cam?token=" + "x" * 4090)
    assert refused.value.code == f"NetStream.{code}"


def test_app_and_tc_url_are_taken_apart_once(client, monkeypatch):
    client.connect(app="", tc_url="rtmp://host/live" + "/" * 4000 + "?b=c")
    seen = []

    def recording(app, tc_url, *names):
        seen.append((app, tc_url))
        return resolve(app, tc_url, *names)

    monkeypatch.setattr(connection, "resolve", recording)
    for number in range(3):
        client.ask(Action.PLAY, f"cam{number}?token=d")
    assert seen == [("live", "")] * 3
    assert client.authorizer.seen.parameters == {"b": "c", "token": "d"}


def test_a_connection_without_a_command_has_no_last_request():
    assert LastRequest().as_event_data() == {"served": False}


@pytest.mark.parametrize("app", ["live/a\nb", "x" * 2000, "live\x7f"])
def test_an_application_that_can_not_be_shown_is_not_reported(client, app):
    with pytest.raises(Refused):
        client.connect(app, "")
    assert client.reported == {"wanted": "connect", "served": False}


@pytest.mark.parametrize("action", [Action.PUBLISH, Action.PLAY])
def test_a_stream_is_reported_only_after_it_was_authorized(client, action):
    client.connect("live", "")
    client.authorizer.refusal = Refused("code", "no")
    with pytest.raises(Refused):
        client.ask(action, "s3cret")
    assert client.reported == {"app": "live", "wanted": str(action), "served": False}
    client.authorizer.refusal = None
    client.ask(action, "s3cret")
    assert client.reported == {"app": "live", "wanted": str(action), "wanted_stream": "live/given", "served": True}
    client.authorizer.refusal = Refused("code", "no")
    with pytest.raises(Refused):
        client.ask(action, "other")
    assert "wanted_stream" not in client.reported


def test_a_step_of_a_login_is_served_and_a_refusal_is_not(client):
    client.authorizer.refusal = LoginRequired("code", "go on")
    with pytest.raises(LoginRequired):
        client.connect("live", "")
    assert client.reported["served"] is True
    client.authorizer.refusal = Refused("code", "no")
    client.connection.last_request = LastRequest()
    with pytest.raises(Refused):
        client.connect("live", "")
    assert client.reported["served"] is False
