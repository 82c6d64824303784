from __future__ import annotations

from urllib.parse import quote

import pytest

from rtmpd.authorization import Action, Request
from rtmpd.config.loader import load_text
from rtmpd.config.secret import Secret
from rtmpd.protocol.naming import resolve
from rtmpd.services.auth.credentials import Credentials
from rtmpd.services.auth.rules import Decision, Denied, Rules
from rtmpd.services.auth.signing import sign

NOW_S = 1_000_000.0
PUBLISH, PLAY = Action.PUBLISH, Action.PLAY


def rules(*lines, file=None):
    return Rules(load_text("[auth]\n" + "\n".join(lines) + "\n").auth, file or Credentials())


def decide(of, action=PUBLISH, key="live/cam", address="192.0.2.1", user="", now_s=NOW_S, **parameters):
    return of.decide(Request(action, f"{address}:5000", address, key, parameters, user), now_s)


def denied(of, *args, **kwargs):
    """Why a request is denied, and whether it was a guess."""
    with pytest.raises(Denied) as raised:
        decide(of, *args, **kwargs)
    return raised.value.reason, raised.value.guess


def signed(action, key="live/cam", secret="top", expires_s=int(NOW_S) + 60):
    return {"expires": str(expires_s), "sign": sign(Secret(secret), action, key, expires_s)}


def test_without_options_everything_is_open():
    for action in (PUBLISH, PLAY):
        assert decide(rules(), action) == Decision("live/cam")
        assert decide(rules(), action, token="x", sign="y") == Decision("live/cam")


# Tokens -----------------------------------------------------------------------------------------------------------------


def test_tokens_of_the_configuration():
    of = rules("auth_mode = token", "auth_tokens = live/cam=one, live/cam=two, live/other=three")
    for action in (PUBLISH, PLAY):
        assert decide(of, action, token="one") == decide(of, action, token="two") == Decision("live/cam", "token")
        assert decide(of, action, "live/other", token="three").key == "live/other"
        assert denied(of, action, token="three") == ("wrong token", True)
        assert denied(of, action, "live/unknown", token="one") == ("wrong token", True)
        assert denied(of, action) == denied(of, action, token="") == ("no token", False)


@pytest.mark.parametrize("token", ["a+b", "a%2Bb", "a b", "100%", "a%41", "a%20b"])
def test_a_token_that_is_written_in_the_url_as_in_the_configuration_is_right(token):
    of = rules("auth_mode = token", f'auth_tokens = "live/cam={token}"')
    for action in (PUBLISH, PLAY):
        for written in (token, quote(token)):
            decide(of, action, **resolve("live", "", f"cam?token={written}", "").parameters)
        denied(of, action, token="ab")


def test_tokens_of_a_file():
    file = Credentials({"live/cam": (Secret("in"),)}, {"live/cam": (Secret("out"),)})
    of = rules("auth_mode = file", "auth_file = f", "auth_tokens = live/cam=ini", file=file)
    assert decide(of, PUBLISH, token="in") == decide(of, PLAY, token="out") == Decision("live/cam", "token")
    assert denied(of, PUBLISH, token="out") == denied(of, PLAY, token="in") == ("wrong token", True)
    assert denied(of, PUBLISH, token="ini") == ("wrong token", True)


def test_tokens_of_a_file_do_not_count_in_another_mode():
    file = Credentials({"live/cam": (Secret("in"),)}, {})
    of = rules("auth_mode = token", "auth_tokens = live/cam=ini", "auth_file = f", file=file)
    assert denied(of, token="in") == ("wrong token", True)
    assert decide(of, token="ini").proof == "token"


@pytest.mark.parametrize(
    ("line", "open_action", "other"), [("auth_publish = no", PUBLISH, PLAY), ("auth_play = no", PLAY, PUBLISH)]
)
def test_publishing_and_playing_are_switched_separately(line, open_action, other):
    of = rules("auth_mode = token", "auth_tokens = live/cam=one", line)
    assert decide(of, open_action) == Decision("live/cam")
    assert denied(of, other) == ("no token", False)


# Signatures -------------------------------------------------------------------------------------------------------------


def test_signed_urls():
    of = rules("auth_sign_secrets = new, top")
    for action in (PUBLISH, PLAY):
        assert decide(of, action, **signed(action)) == Decision("live/cam", "signature")
        assert decide(of, action, now_s=NOW_S + 60, **signed(action)).proof == "signature"
        assert denied(of, action, now_s=NOW_S + 60.1, **signed(action)) == ("the signed URL has expired", False)
        assert denied(of, action) == ("no signature", False)
    assert denied(of, PUBLISH, **signed(PLAY)) == ("wrong signature", True)
    assert denied(of, PLAY, "live/other", **signed(PLAY)) == ("wrong signature", True)
    assert denied(of, PLAY, sign="x") == ("wrong signature", True)
    assert denied(of, PLAY, **signed(PLAY, secret="old")) == ("wrong signature", True)


def test_a_request_with_a_signature_needs_no_token():
    of = rules("auth_sign_secrets = top", "auth_mode = token", "auth_tokens = live/cam=one")
    assert decide(of, PLAY, **signed(PLAY)).proof == "signature"
    assert decide(of, PLAY, token="one").proof == "token"
    assert denied(of, PLAY, token="one", sign="bad") == ("wrong signature", True)


# Users ------------------------------------------------------------------------------------------------------------------


def test_users():
    of = rules("auth_users = ann=x", "auth_play = no")
    assert decide(of, PUBLISH, user="ann") == Decision("live/cam", "login")
    assert denied(of, PUBLISH) == ("no login", False)
    assert decide(of, PLAY) == Decision("live/cam")
    assert of.requires_login(encoder=True)
    assert not of.requires_login(encoder=False)


def test_a_user_that_was_removed_is_not_logged_in():
    assert denied(rules("auth_users = bob=x"), user="ann") == ("no login", False)


def test_users_of_a_file_and_of_the_configuration():
    of = rules("auth_users = ann=x, bob=y", "auth_file = f", file=Credentials(users={"ann": Secret("z"), "eve": Secret("w")}))
    assert {name: [each.reveal() for each in passwords] for name, passwords in of.users.items()} == {
        "ann": ["z", "x"],
        "bob": ["y"],
        "eve": ["w"],
    }


# Publish keys -----------------------------------------------------------------------------------------------------------


def test_a_publish_key_stands_for_a_stream():
    of = rules("auth_publish_keys = live/cam=k1, live/cam=k2")
    assert decide(of, PUBLISH, "live/k1") == decide(of, PUBLISH, "live/k2") == Decision("live/cam", "publish key")
    assert denied(of, PUBLISH, "live/cam") == denied(of, PUBLISH, "live/sub/x") == ("unknown publish key", True)
    assert decide(of, PUBLISH, "other/x") == Decision("other/x")


def test_playing_does_not_tell_which_names_are_publish_keys():
    of = rules("auth_publish_keys = live/cam=k1")
    assert denied(of, PLAY, "live/k1") == denied(of, PLAY, "live/x") == ("there is no such stream", True)
    assert denied(of, PLAY, "live/sub/k1") == denied(of, PLAY, "live/sub/x") == ("there is no such stream", True)
    assert decide(of, PLAY) == Decision("live/cam")
    assert decide(of, PLAY, "other/k1") == Decision("other/k1")
    proven = rules("auth_publish_keys = live/cam=k1", "auth_mode = token", "auth_tokens = live/cam=one, live/k1=one")
    assert denied(proven, PLAY, "live/k1") == denied(proven, PLAY, "live/x") == ("no token", False)
    assert denied(proven, PLAY, "live/k1", token="one") == ("there is no such stream", True)


def test_a_key_that_is_the_name_of_its_stream_can_be_played():
    assert decide(rules("auth_publish_keys = live/cam=cam"), PLAY) == Decision("live/cam")


def test_a_publish_key_comes_on_top_of_a_token():
    lines = ("auth_publish_keys = live/cam=k1", "auth_mode = token", "auth_tokens = live/cam=one")
    assert decide(rules(*lines), PUBLISH, "live/k1", token="one") == Decision("live/cam", "token")
    assert denied(rules(*lines), PUBLISH, "live/k1") == ("no token", False)
    assert denied(rules(*lines), PUBLISH, token="one") == ("unknown publish key", True)
    assert decide(rules(*lines, "auth_publish = no"), PUBLISH, "live/k1") == Decision("live/cam", "publish key")


def test_publish_keys_of_a_file():
    of = rules("auth_file = f", "auth_publish_keys = live/b=k2", file=Credentials(publish_keys=(("live/a", Secret("k1")),)))
    assert decide(of, PUBLISH, "live/k1").key == "live/a"
    assert decide(of, PUBLISH, "live/k2").key == "live/b"


# Addresses and callbacks ------------------------------------------------------------------------------------------------


def test_addresses():
    of = rules("publish_allow = 192.0.2.0/24, 2001:db8::/32", "publish_deny = 192.0.2.66", "play_deny = 198.51.100.0/24")
    assert decide(of, PUBLISH).key == decide(of, PUBLISH, address="[2001:db8::1]").key == "live/cam"
    assert decide(of, PUBLISH, address="[::ffff:192.0.2.1]").key == "live/cam"
    for address in ("192.0.2.66", "[::ffff:192.0.2.66]", "198.51.100.1", "[2001:db9::1]", "unix"):
        assert denied(of, PUBLISH, address=address) == ("address not allowed", False)
    assert decide(of, PLAY, address="203.0.113.1").key == "live/cam"
    assert denied(of, PLAY, address="198.51.100.1") == ("address not allowed", False)


def test_addresses_count_even_if_nothing_else_is_asked():
    of = rules("auth_mode = token", "auth_tokens = live/cam=x", "auth_publish = no", "publish_deny = 192.0.2.1")
    assert denied(of, PUBLISH) == ("address not allowed", False)


def test_a_callback_is_asked_for_what_nothing_else_has_decided():
    lines = ("auth_mode = callback", "auth_callback = http://localhost/auth")
    of = rules(*lines, "auth_users = ann=x", "auth_publish_keys = live/cam=k1")
    assert decide(of, PUBLISH, "live/k1") == Decision("live/cam", ask=True)
    assert decide(of, PLAY) == Decision("live/cam", ask=True)
    assert decide(of, PLAY, user="ann") == Decision("live/cam", "login")
    assert decide(rules(*lines, "auth_play = no"), PLAY) == Decision("live/cam")
