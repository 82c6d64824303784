from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from rtmpd.authorization import Action, Connect, Request
from rtmpd.config.loader import load_text
from rtmpd.errors import LoginRequired, Refused, RtmpdError
from rtmpd.hub import Hub
from rtmpd.services.auth import service
from rtmpd.services.auth.callback import Answer, CallbackFailed
from rtmpd.services.auth.service import Auth

CALLBACK = "[auth]\nauth_mode = callback\nauth_callback = http://ann:s3cret@localhost:1/x?key=s3cret\nauth_ban_exempt = ''\n"


@pytest.fixture
def make():
    made = []

    def start(ini):
        hub = Hub(load_text(ini))
        auth = Auth(hub)
        made.append(auth)
        auth.start()
        assert hub.authorizer is auth
        return hub, auth

    yield start
    for auth in made:
        auth.stop(1)


@pytest.fixture
def calls(monkeypatch):
    """Callbacks that are answered by the test: a list of questions, and an event that lets the answer out."""
    return FakeCalls(monkeypatch)


class FakeCalls:
    def __init__(self, monkeypatch):
        self.questions = []
        self.cuts = 0
        self.answer = Answer(True, 200)
        self.limits = []
        self.authorities = []
        calls = self

        class FakeCall:
            def __init__(self, url, question, limit_s, ca):
                calls.limits.append(limit_s)
                calls.authorities.append(ca)
                self.question = question

            def run(self):
                raise AssertionError("a thread would run it")

            def cut(self):
                calls.cuts += 1

        class FakeThreads:
            def call(self, run):
                calls.questions.append(run.__self__.question)
                calls.asked.set()
                calls.go.wait()
                if isinstance(calls.answer, Exception):
                    raise calls.answer
                return calls.answer

        self.go = Event()
        self.go.set()
        self.asked = Event()
        monkeypatch.setattr(service, "Call", FakeCall)
        monkeypatch.setattr(service, "Threads", lambda count: FakeThreads())


def request(action=Action.PLAY, key="live/cam", address="192.0.2.1", **parameters):
    return Request(action, f"{address}:5000", address, key, parameters)


def denied(auth, *args, **parameters):
    with pytest.raises(Refused) as raised:
        auth.authorize(request(*args, **parameters))
    return raised.value.code, raised.value.reason


def test_nothing_is_asked_by_default(make):
    hub, auth = make("")
    assert auth.authorize(request()) == "live/cam"
    assert auth.login(Connect("192.0.2.1", "live", "authmod=adobe&user=x", {}, encoder=True)) == ""
    assert not auth.bars("192.0.2.1")
    assert not hub.counters


def test_a_callback_allows_and_denies(make, calls):
    hub, auth = make(CALLBACK)
    assert auth.authorize(request()) == "live/cam"
    calls.answer = Answer(True, 200, b'{"name": "shown"}')
    assert auth.authorize(request(Action.PUBLISH)) == "live/shown"
    calls.answer = Answer(False, 403)
    assert denied(auth) == ("NetStream.Play.Failed", "the callback said no")
    assert denied(auth, Action.PUBLISH) == ("NetStream.Publish.Denied", "the callback said no")
    assert dict(hub.counters) == {"auth_successes": 2, "auth_failures": 2}
    assert auth.calls == 0
    assert calls.cuts == 4
    assert calls.authorities == [hub.tls.client.ca] * 4


def test_only_so_many_wait_for_a_callback(make, calls, monkeypatch):
    monkeypatch.setattr(service, "_CALLS_LIMIT", 3)
    hub, auth = make(CALLBACK)
    calls.go.clear()
    waiting = [gevent.spawn(auth.authorize, request()) for _ in range(3)]
    gevent.sleep(0)
    assert hub.gauges["auth_callbacks_active"]() == 3
    assert denied(auth) == ("NetStream.Play.Failed", "the authentication service failed")
    assert hub.counters["auth_callback_errors"] == 1
    calls.go.set()
    gevent.joinall(waiting, timeout=5, raise_error=True)
    assert hub.gauges["auth_callbacks_active"]() == 0
    assert auth.authorize(request()) == "live/cam"


def test_a_callback_has_its_time_and_no_more(make, calls):
    _hub, auth = make(CALLBACK + "auth_callback_timeout_s = 0.1\n")
    calls.go.clear()
    assert denied(auth) == ("NetStream.Play.Failed", "the authentication service failed")
    assert calls.cuts == 1
    assert calls.limits == [0.1]
    assert auth.calls == 0


def test_the_timeout_of_somebody_else_goes_through(make, calls):
    _hub, auth = make(CALLBACK)
    calls.go.clear()
    with pytest.raises(TimeoutError), gevent.Timeout(0.05, TimeoutError()):
        auth.authorize(request())
    assert auth.calls == 0
    assert calls.cuts == 1


def test_a_connection_that_ends_takes_its_callback_along(make, calls):
    _hub, auth = make(CALLBACK)
    calls.go.clear()
    waiting = gevent.spawn(auth.authorize, request())
    calls.asked.wait(5)
    waiting.kill()
    assert (auth.calls, calls.cuts) == (0, 1)


def test_a_banned_address_asks_no_callback(make, calls):
    hub, auth = make(CALLBACK + "auth_ban_failures = 2\n")
    calls.answer = Answer(False, 403)
    for number in range(10):
        assert denied(auth, token=str(number))[0] == "NetStream.Play.Failed"
    assert len(calls.questions) == 2
    assert denied(auth)[1] == "this address is banned"
    assert auth.bars("192.0.2.1")
    assert not auth.bars("192.0.2.2")
    assert hub.counters["auth_bans"] == 1
    assert hub.counters["auth_banned_connections"] == 1


def test_a_callback_that_fails_bans_nobody(make, calls):
    _hub, auth = make(CALLBACK + "auth_ban_failures = 1\n")
    calls.answer = CallbackFailed("it is away")
    for _ in range(3):
        assert denied(auth, token="x")[1] == "the authentication service failed"
    assert not auth.bars("192.0.2.1")


def test_a_callback_that_fails_is_logged_seldom_and_without_its_url(make, calls, caplog):
    _hub, auth = make(CALLBACK)
    calls.answer = CallbackFailed("it is away")
    for _ in range(5):
        denied(auth)
    assert [record.getMessage() for record in caplog.records] == [
        "auth_callback http://localhost:1: it is away (1 failures so far)"
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


def test_an_application_that_there_is_not_is_left_to_the_hub(make, calls):
    _hub, auth = make(CALLBACK + "[applications]\n[[live/sub]]\n")
    assert auth.authorize(request(Action.PLAY, "other/cam")) == "other/cam"
    assert not calls.questions
    # The beginning of a path may be all that a client says when it connects.
    assert auth.login(Connect("192.0.2.1", "live", "", {}, encoder=True)) == ""


def test_a_new_application_goes_by_the_file_that_was_read(make, tmp_path):
    path = tmp_path / "tokens"
    path.write_text('{"live/cam": "x", "new/cam": "y"}')
    ini = f"[auth]\nauth_mode = file\nauth_file = {path}\n[applications]\n[[live]]\n"
    hub, auth = make(ini)
    path.write_text("half a fi")
    hub.reload(load_text(ini + "[[new]]\n"))
    auth.reload(hub.config)
    for _ in range(2):
        assert auth.authorize(request(Action.PLAY, "new/cam", token="y")) == "new/cam"
        assert auth.authorize(request(Action.PLAY, token="x")) == "live/cam"
        auth._reading.join(5)


def test_a_new_path_to_a_bad_file_keeps_what_was_in_force(make, tmp_path, caplog):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text('{"live/cam": "x"}')
    bad.write_text("{")
    ini = f"[auth]\nauth_mode = file\nauth_file = {good}\n"
    hub, auth = make(ini)
    hub.reload(load_text(ini.replace("good", "bad")))
    auth.reload(hub.config)
    auth._reading.join(5)
    assert auth.authorize(request(token="x")) == "live/cam"
    assert hub.counters["auth_file_errors"] == 1
    bad.write_text('{"live/cam": "z"}')
    auth.reload(hub.config)
    auth._reading.join(5)
    assert denied(auth, token="x")[1] == "wrong token"
    assert auth.authorize(request(token="z")) == "live/cam"


def test_a_server_does_not_start_without_its_file(tmp_path):
    hub = Hub(load_text(f"[auth]\nauth_file = {tmp_path / 'none'}\n"))
    with pytest.raises(RtmpdError, match=r"auth_file .*none: can't be read: No such file or directory"):
        Auth(hub).start()
