from __future__ import annotations

import os
from base64 import b64encode
from hashlib import md5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtmpd.protocol.adobe_auth import AUTH_FAILED, NEED_AUTH, UNKNOWN_AUTHMOD, Challenges, Login, query_parameters, response

KEY = bytes(32)
NONCE = b"123456789"


def b64md5(text):
    return b64encode(md5(text.encode()).digest()).decode()


def log_in(challenges, user, password, passwords, now_s=100.0):
    """All of a login; return whether it went well."""
    login = Login(user, password)
    first = query_parameters(login.answer(NEED_AUTH, b"1234"))
    assert set(first) == {"authmod", "user"}
    second = query_parameters(login.answer(challenges.describe(first["user"], now_s, os.urandom(9)), b"abcd"))
    assert second["user"] == first["user"]
    return challenges.fresh(second["user"], second["opaque"], now_s) and challenges.proves(second, passwords)


def test_the_response_is_the_one_of_other_implementations():
    inner = b64md5("ann" + "salt" + "password")
    assert response("ann", "password", "salt", "opaque", "c0ffee00") == b64md5(inner + "opaque" + "c0ffee00")


def test_a_client_logs_in_with_the_right_password_only():
    challenges = Challenges(KEY)
    assert log_in(challenges, "ann", "secret", ["secret"])
    assert log_in(challenges, "ann", "secret", ["other", "secret"])
    assert not log_in(challenges, "ann", "wrong", ["secret"])
    assert not log_in(challenges, "ann", "", ["secret"])
    assert not log_in(challenges, "ann", "secret", [])


def test_a_password_may_be_as_it_stands_in_a_url():
    """FFmpeg takes it out of its URL and decodes nothing."""
    assert log_in(Challenges(KEY), "ann", "p%40ss%2Fw", ["p@ss/w"])


def test_a_user_with_an_at_is_written_as_it_is():
    assert log_in(Challenges(KEY), "ann@example.com", "secret", ["secret"])


@given(st.text(st.characters(codec="utf-8"), max_size=20), st.text(max_size=20))
def test_any_password_proves_itself_and_no_other_one(password, other):
    challenges = Challenges(KEY)
    assert log_in(challenges, "ann", password, [password])
    if other != password and other not in (password, "") and "%" not in password + other:
        assert not log_in(challenges, "ann", other, [password])


def test_bytes_after_librtmps_texts_are_ignored():
    challenges = Challenges(KEY)
    given = query_parameters(challenges.describe("ann", 10, NONCE))
    proof = response("ann", "secret", given["salt"], given["opaque"], "rOH4Qw==")
    query = f"user=ann&challenge=rOH4Qw==\udcff\x01&response={proof}\udcd8}}\udcc4&opaque={given['opaque']}"
    assert challenges.proves(query_parameters(query), ["secret"])
    assert not challenges.proves(query_parameters(query), ["other"])


def test_a_challenge_is_good_once():
    challenges = Challenges(KEY)
    opaque = query_parameters(challenges.describe("ann", 10, NONCE))["opaque"]
    assert challenges.fresh("ann", opaque, 10)
    assert not challenges.fresh("ann", opaque, 11)


def test_a_challenge_is_good_for_its_user():
    challenges = Challenges(KEY)
    opaque = query_parameters(challenges.describe("ann", 10, NONCE))["opaque"]
    assert not challenges.fresh("bob", opaque, 10)
    assert challenges.fresh("ann", opaque, 10)


def test_a_challenge_is_good_for_a_minute():
    challenges = Challenges(KEY)
    opaque = query_parameters(challenges.describe("ann", 10, NONCE))["opaque"]
    assert not challenges.fresh("ann", opaque, 71.5)
    assert challenges.fresh("ann", opaque, 69)


@pytest.mark.parametrize("opaque", ["", "x", "A" * 36, "é" * 36, "A" * 35 + "=", "A" * 37, "\n" * 36])
def test_foreign_challenges_are_rejected(opaque):
    assert not Challenges(KEY).fresh("ann", opaque, 10)


def test_another_process_has_other_challenges_and_salts():
    one, other = Challenges(KEY), Challenges(bytes([1]) * 32)
    theirs = query_parameters(other.describe("ann", 10, NONCE))
    assert not one.fresh("ann", theirs["opaque"], 10)
    assert query_parameters(one.describe("ann", 10, NONCE))["salt"] != theirs["salt"]


def test_used_challenges_take_bounded_memory():
    challenges = Challenges(KEY, used_limit=10)
    for _ in range(100):
        assert challenges.fresh("ann", query_parameters(challenges.describe("ann", 10, os.urandom(9)))["opaque"], 10)
    assert len(challenges._used) == 10
    challenges.fresh("ann", query_parameters(challenges.describe("ann", 200, NONCE))["opaque"], 200)
    assert len(challenges._used) == 1


def test_the_description_is_short_enough_for_ffmpeg():
    assert len(Challenges(KEY).describe("u" * 64, 1e9, NONCE)) < 255


def test_descriptions_contain_what_clients_search_for():
    assert "code=403 need auth" in NEED_AUTH
    assert "authmod=adobe" in NEED_AUTH
    for text in (AUTH_FAILED, Challenges(KEY).describe("ann", 1, NONCE)):
        assert text.startswith("[ AccessManager.Reject ] : [ authmod=adobe ] : ?reason=")
    assert "authmod=adobe" not in UNKNOWN_AUTHMOD
    assert "authmod=llnw" not in UNKNOWN_AUTHMOD


def test_queries_are_parsed_as_these_clients_write_them():
    query = "key=val?authmod=adobe&user=ann&challenge=ab+/==&response=x+y/z==&user=bob&empty=&flag"
    assert query_parameters(query) == {
        "key": "val",
        "authmod": "adobe",
        "user": "ann",
        "challenge": "ab+/==",
        "response": "x+y/z==",
        "empty": "",
    }


def test_a_login_gives_up():
    login = Login("ann", "secret")
    assert login.answer("Connection refused.", b"1234") == ""
    assert login.answer(NEED_AUTH, b"1234")
    assert login.answer(NEED_AUTH, b"1234") == ""
    assert login.answer(Challenges(KEY).describe("ann", 1, NONCE), b"1234")
    assert login.answer(Challenges(KEY).describe("ann", 1, NONCE), b"1234") == ""
    assert login.answer(AUTH_FAILED, b"1234") == ""


def test_a_login_takes_a_server_that_has_no_opaque():
    login = Login("ann", "secret")
    description = "authmod=adobe :?reason=needauth&user=ann&salt=s&challenge=c"
    query = query_parameters(login.answer(description, b"\1\2\3\4"))
    assert query == {
        "authmod": "adobe",
        "user": "ann",
        "challenge": "01020304",
        "response": response("ann", "secret", "s", "c", "01020304"),
    }
