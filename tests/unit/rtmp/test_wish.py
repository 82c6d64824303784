from __future__ import annotations

from types import SimpleNamespace

import pytest

from rtmpd.authorization import Action
from rtmpd.errors import LoginRequired, Refused
from rtmpd.protocol.naming import resolve
from rtmpd.rtmp.admission import authorize, log_in
from rtmpd.rtmp.wish import Wish


def connection_of(wish, error=None):
    """As much of a connection as is asked about; whoever decides raises *error*, or lets it in for live/given."""

    def decide(asked):
        if error is not None:
            raise error
        return "live/given"

    return SimpleNamespace(
        wish=wish,
        app="live",
        tc_url="",
        user="",
        authorizing=False,
        emit=lambda *_, **__: None,
        transport=SimpleNamespace(peer="192.0.2.1:5000", address="192.0.2.1"),
        hub=SimpleNamespace(authorizer=SimpleNamespace(login=decide, authorize=decide)),
    )


def test_who_never_asks_wanted_nothing():
    assert Wish().told() == {"served": False}


@pytest.mark.parametrize("app", ["live/a\nb", "x" * 2000, "live\x7f"])
def test_an_application_that_can_not_be_shown_is_not(app):
    wish = Wish()
    wish.connect(app)
    assert wish.told() == {"wanted": "connect", "served": False}


@pytest.mark.parametrize("action", [Action.PUBLISH, Action.PLAY])
def test_a_stream_is_named_when_it_was_let_in_and_not_before(action):
    wish = Wish()
    wish.connect("live")
    wish.ask(action)
    with pytest.raises(Refused):
        authorize(connection_of(wish, Refused("code", "no")), action, resolve("live", "", "s3cret", ""))
    assert wish.told() == {"app": "live", "wanted": str(action), "served": False}
    authorize(connection_of(wish), action, resolve("live", "", "s3cret", ""))
    assert wish.told() == {"app": "live", "wanted": str(action), "wanted_stream": "live/given", "served": False}
    wish.ask(action)
    assert "wanted_stream" not in wish.told()


def test_a_step_of_a_login_is_settled_and_a_refusal_is_not():
    wish = Wish()
    with pytest.raises(LoginRequired):
        log_in(connection_of(wish, LoginRequired("code", "go on")), resolve("live", "", "", ""), {})
    assert wish.settled
    wish = Wish()
    with pytest.raises(Refused):
        log_in(connection_of(wish, Refused("code", "no")), resolve("live", "", "", ""), {})
    assert not wish.settled
