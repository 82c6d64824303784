from __future__ import annotations

import json

import gevent
import pytest
from gevent.event import Event

from rtmpd.authorization import Action, Connect, Request
from rtmpd.config.loader import load_text
from rtmpd.errors import LoginRequired, Refused, RtmpdError
from rtmpd.http.client import HttpError, Response
from rtmpd.hub import Hub
from rtmpd.live.grant import Grant
from rtmpd.services.auth import callback, service
from rtmpd.services.auth.service import Auth, read_files
from rtmpd.util.stream_key import StreamKey

CALLBACK = "[auth]\nauth_mode = callback\nauth_callback = http://ann:s3cret@localhost:1/x?key=s3cret\nauth_ban_exempt = ''\n"


@pytest.fixture
def make():
    made = []

    def start(ini):
        hub = Hub(load_text(ini))
        auth = Auth(hub, Auth.select(hub.config))
        auth.files = read_files(Auth.select(hub.config).files)
        made.append(auth)
        auth.start()
        assert hub.authorizer is auth
        return hub, auth

    yield start
    for auth in made:
        auth.stop(1)


@pytest.fixture
def server(monkeypatch):
    """A callback that the test answers."""
    return FakeServer(monkeypatch)


class FakeServer:
    """Takes the place of `HttpClient`.

    Attributes:
        response: The answer; an exception is raised.
        questions, limits, authorities: What was asked, with which deadline, and with which certificates.
        go: While it is clear, answers are withheld.
        asked: Set by a question.
        ended: How many requests have ended, in whatever way.
    """

    def __init__(self, monkeypatch):
        self.response = Response(200)
        self.questions, self.limits, self.authorities = [], [], []
        self.ended = 0
        self.go, self.asked = Event(), Event()
        self.go.set()
        monkeypatch.setattr(callback, "HttpClient", lambda *_: self)

    def post(self, url, body, headers, *, timeout_s, body_limit_bytes, ca):
        assert url == "http://ann:s3cret@localhost:1/x?key=s3cret"
        assert headers == {"Content-Type": "application/json"}
        self.questions.append(json.loads(body))
        self.limits.append((timeout_s, body_limit_bytes))
        self.authorities.append(ca)
        self.asked.set()
        try:
            if not self.go.wait(timeout_s):
                raise HttpError(f"timed out after {timeout_s:g} s", timed_out=True)
        finally:
            self.ended += 1
        if isinstance(self.response, Exception):
            raise self.response
        return self.response


def request(action=Action.PLAY, key="live/cam", address="192.0.2.1", **parameters):
    return Request(action, f"{address}:5000", address, key, parameters)


def denied(auth, *args, **parameters):
    with pytest.raises(Refused) as raised:
        auth.authorize(request(*args, **parameters))
    return raised.value.code, raised.value.reason


def test_nothing_is_asked_by_default(make):
    hub, auth = make("")
    assert auth.authorize(request()).key == "live/cam"
    assert auth.login(Connect("192.0.2.1", "live", "authmod=adobe&user=x", {}, encoder=True)) == ""
    assert not auth.bars("192.0.2.1")
    assert not hub.counters


def test_a_callback_allows_and_denies(make, server):
    hub, auth = make(CALLBACK)
    assert auth.authorize(request()).key == "live/cam"
    server.response = Response(200, body=b'{"name": "shown"}')
    assert auth.authorize(request(Action.PUBLISH)).key == "live/shown"
    server.response = Response(403)
    assert denied(auth) == ("NetStream.Play.Failed", "the callback said no")
    assert denied(auth, Action.PUBLISH) == ("NetStream.Publish.Denied", "the callback said no")
    assert dict(hub.counters) == {"auth_successes": 2, "auth_failures": 2}
    assert hub.gauges["auth_callbacks_active"]() == 0
    assert server.ended == 4
    assert server.authorities == [hub.tls.client.ca] * 4


def test_the_number_of_waiting_requests_is_bounded(make, server, monkeypatch):
    monkeypatch.setattr(callback, "_ACTIVE_LIMIT", 3)
    hub, auth = make(CALLBACK)
    server.go.clear()
    waiting = [gevent.spawn(auth.authorize, request()) for _ in range(3)]
    gevent.sleep(0)
    assert hub.gauges["auth_callbacks_active"]() == 3
    assert denied(auth) == ("NetStream.Play.Failed", "the authentication service failed")
    assert hub.counters["auth_callback_errors"] == 1
    server.go.set()
    gevent.joinall(waiting, timeout=5, raise_error=True)
    assert hub.gauges["auth_callbacks_active"]() == 0
    assert auth.authorize(request()).key == "live/cam"


def test_a_callback_has_a_deadline(make, server):
    hub, auth = make(CALLBACK + "auth_callback_timeout_s = 0.1\n")
    server.go.clear()
    assert denied(auth) == ("NetStream.Play.Failed", "the authentication service failed")
    assert server.ended == 1
    assert server.limits == [(0.1, 8192)]
    assert hub.gauges["auth_callbacks_active"]() == 0


def test_a_timeout_of_the_caller_passes_through(make, server):
    hub, auth = make(CALLBACK)
    server.go.clear()
    with pytest.raises(TimeoutError), gevent.Timeout(0.05, TimeoutError()):
        auth.authorize(request())
    assert hub.gauges["auth_callbacks_active"]() == 0
    assert server.ended == 1


def test_a_connection_that_ends_takes_its_callback_along(make, server):
    hub, auth = make(CALLBACK)
    server.go.clear()
    waiting = gevent.spawn(auth.authorize, request())
    server.asked.wait(5)
    waiting.kill()
    assert (hub.gauges["auth_callbacks_active"](), server.ended) == (0, 1)


def test_a_banned_address_asks_no_callback(make, server):
    hub, auth = make(CALLBACK + "auth_ban_failures = 2\n")
    server.response = Response(403)
    for number in range(10):
        assert denied(auth, token=str(number))[0] == "NetStream.Play.Failed"
    assert len(server.questions) == 2
    assert denied(auth)[1] == "this address is banned"
    assert auth.bars("192.0.2.1")
    assert not auth.bars("192.0.2.2")
    assert hub.counters["auth_bans"] == 1
    assert hub.counters["auth_banned_connections"] == 1


def test_a_callback_that_fails_bans_no_client(make, server):
    _hub, auth = make(CALLBACK + "auth_ban_failures = 1\n")
    server.response = HttpError("Connection refused")
    for _ in range(3):
        assert denied(auth, token="x")[1] == "the authentication service failed"
    assert not auth.bars("192.0.2.1")


def test_failures_of_a_callback_are_logged_once_and_without_its_url(make, server, caplog):
    _hub, auth = make(CALLBACK)
    server.response = HttpError("Connection refused")
    for _ in range(5):
        denied(auth)
    assert [record.getMessage() for record in caplog.records] == [
        "auth_callback http://localhost:1 failed, clients are refused: Connection refused; 1 failures so far"
    ]


def test_exempt_addresses_are_never_banned(make):
    _hub, auth = make(
        "[auth]\nauth_mode = token\nauth_tokens = live/cam=x\nauth_ban_failures = 1\nauth_ban_exempt = 192.0.2.0/24\n"
    )
    for _ in range(3):
        denied(auth, token="y")
        denied(auth, Action.PLAY, "live/cam", "198.51.100.1", token="y")
    assert not auth.bars("192.0.2.1")
    assert auth.bars("198.51.100.1")


def test_a_login_takes_two_refusals(make):
    hub, auth = make("[auth]\nauth_users = ann=s3cret\n")
    with pytest.raises(LoginRequired) as first:
        auth.login(Connect("192.0.2.1", "live", "", {}, encoder=True))
    assert "code=403 need auth" in first.value.description
    with pytest.raises(LoginRequired) as second:
        auth.login(Connect("192.0.2.1", "live", "authmod=adobe&user=ann", {}, encoder=True))
    assert "reason=needauth" in second.value.description
    assert not hub.counters


def test_an_unknown_application_is_left_to_the_hub(make, server):
    _hub, auth = make(CALLBACK + "[applications]\n[[live/sub]]\n")
    assert auth.authorize(request(Action.PLAY, "other/cam")).key == "other/cam"
    assert not server.questions
    # The beginning of a path may be all that a client says when it connects.
    assert auth.login(Connect("192.0.2.1", "live", "", {}, encoder=True)) == ""


def test_a_new_application_goes_by_the_file_that_was_read(make, tmp_path):
    path = tmp_path / "tokens"
    path.write_text('{"live/cam": "x", "new/cam": "y"}')
    ini = f"[auth]\nauth_mode = file\nauth_file = {path}\n[applications]\n[[live]]\n"
    hub, auth = make(ini)
    path.write_text("half a fi")
    hub.reload(load_text(ini + "[[new]]\n"))
    auth.reload(Auth.select(hub.config))
    assert auth.authorize(request(Action.PLAY, "new/cam", token="y")).key == "new/cam"
    assert auth.authorize(request(Action.PLAY, token="x")).key == "live/cam"


def test_files_that_were_read_are_in_force_after_a_reload(make, tmp_path):
    path = tmp_path / "tokens"
    path.write_text('{"live/cam": "x"}')
    _hub, auth = make(f"[auth]\nauth_mode = file\nauth_file = {path}\n")
    path.write_text('{"live/cam": "z"}')
    auth.files = read_files([str(path)])
    auth.reload(auth._options)
    assert denied(auth, token="x")[1] == "wrong token"
    assert auth.authorize(request(token="z")).key == "live/cam"
    path.write_text("{")
    with pytest.raises(RtmpdError, match=rf"auth_file {path}: line 1 column 2: "):
        read_files([str(path), "/none"])


@pytest.mark.parametrize(
    ("ini", "app", "shown"),
    [
        ("", "live/cam/x", "live/cam/x"),
        ("[auth]\nauth_publish_keys = live/cam=s3cret", "live/s3cret", "live/********"),
        ("[auth]\nauth_publish_keys = live/cam=s3cret", "live", "live"),
        ("[auth]\nauth_publish_keys = live/cam=s3cret", "live/cam", "live/cam"),
        ("[auth]\nauth_publish_keys = live/cam=s3cret", "other/x", "other/x"),
        (CALLBACK, "live", "live"),
        (CALLBACK, "live/s3cret", "live/********"),
        (f"{CALLBACK}[applications]\n[[live/sub]]", "live/sub/s3cret", "live/sub/********"),
        (f"{CALLBACK}[applications]\n[[live/sub]]", "live/sub", "live/sub"),
        (f"{CALLBACK}[applications]\n[[live/sub]]", "live", "live"),
        (f"{CALLBACK}[applications]\n[[*]]", "live/s3cret", "live/********"),
    ],
)
def test_the_end_of_an_application_that_may_be_a_publish_key_is_masked(make, ini, app, shown):
    _, auth = make(ini)
    assert auth.shown_app(app) == shown


def test_the_name_of_a_live_stream_as_application_is_shown(make):
    hub, auth = make(CALLBACK)
    hub.streams["live/cam"] = object()
    assert auth.shown_app("live/cam") == "live/cam"
    del hub.streams["live/cam"]


# Re-checks --------------------------------------------------------------------------------------------------------------

RECHECK = f"{CALLBACK}auth_recheck_grace_s = 0\n"


def renewed(auth, grant, action=Action.PUBLISH, key="live/cam", **parameters):
    return auth.renew(request(action, key, **parameters).again(10.0), grant)


def test_a_grant_that_expires_is_renewed_by_the_callback(make, server):
    hub, auth = make(RECHECK)
    server.response = Response(200, body=b'{"stream": "shown", "record": true, "expires_s": 60}')
    grant = auth.authorize(request(Action.PUBLISH))
    assert grant == Grant(StreamKey("live/shown"), record=True, expires_s=60.0)
    server.response = Response(204)
    assert renewed(auth, grant) == grant
    server.response = Response(200, body=b'{"stream": "x", "record": false, "expires_s": 5}')
    assert renewed(auth, grant) == Grant(StreamKey("live/shown"), record=True, expires_s=5.0)
    assert [question.get("recheck", False) for question in server.questions] == [False, True, True]
    assert dict(hub.counters) == {"auth_successes": 1, "auth_rechecks": 2}


def test_a_re_check_that_is_denied_bans_nobody(make, server):
    hub, auth = make(f"{RECHECK}auth_ban_failures = 1\n")
    server.response = Response(403)
    with pytest.raises(Refused) as raised:
        renewed(auth, Grant(StreamKey("live/cam"), expires_s=1.0), token="x")
    assert raised.value.description == "No longer authorized: the callback said no."
    assert not auth.bars("192.0.2.1")
    assert dict(hub.counters) == {"auth_rechecks": 1, "auth_revocations": 1}


def test_a_re_check_is_a_whole_authorization_by_the_options_in_force(make, server):
    hub, auth = make(RECHECK)
    grant = Grant(StreamKey("live/cam"), expires_s=7.0)

    def reload(ini):
        hub.config = load_text(ini)
        auth.reload(Auth.select(hub.config))

    reload("")
    assert renewed(auth, grant) == grant
    reload("[applications]\n[[other]]")
    assert renewed(auth, grant) == grant
    assert server.questions == []
    reload(f"{RECHECK}publish_deny = 192.0.2.0/24\n")
    with pytest.raises(Refused, match="address not allowed"):
        renewed(auth, grant)
    reload(f"{RECHECK}auth_publish_keys = live/cam=other\n")
    with pytest.raises(Refused, match="unknown publish key"):
        renewed(auth, grant)


def test_a_failing_callback_is_asked_again_until_the_grace_is_over(make, server, monkeypatch):
    monkeypatch.setattr(service, "_RETRY_S", 0.01)
    hub, auth = make(f"{CALLBACK}auth_recheck_grace_s = 1\n")
    server.response = Response(500)
    grant = Grant(StreamKey("live/cam"), expires_s=7.0)
    waiting = gevent.spawn(renewed, auth, grant)
    while len(server.questions) < 3:
        gevent.sleep(0.005)
    server.response = Response(200)
    assert waiting.get() == grant
    server.response = Response(500)
    with pytest.raises(Refused, match="the authentication service failed"):
        renewed(auth, grant)
    assert hub.counters["auth_revocations"] == 1
    assert hub.counters["auth_callback_errors"] == len(server.questions) - 1


def test_re_checks_leave_half_of_the_threads_to_new_clients_and_wait_for_a_limited_time(make, server):
    hub, auth = make(f"{RECHECK}auth_callback_timeout_s = 0.5\n")
    server.go.clear()
    grant = Grant(StreamKey("live/cam"), expires_s=7.0)
    waiting = [gevent.spawn(renewed, auth, grant) for _ in range(20)]
    gevent.sleep(0.01)
    assert hub.gauges["auth_callbacks_active"]() == callback.THREADS // 2
    gevent.joinall(waiting, timeout=10)
    assert [type(each.exception) for each in waiting] == [Refused] * 20
    assert hub.gauges["auth_callbacks_active"]() == 0
