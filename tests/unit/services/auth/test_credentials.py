from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtmpd.config.access_rules import NamedSecret
from rtmpd.config.secret import Secret
from rtmpd.services.auth.credentials import FILE_LIMIT_BYTES, Credentials, CredentialsError, PublishKeys, parse_credentials


def parse(value):
    return parse_credentials(json.dumps(value).encode())


def problem(data):
    with pytest.raises(CredentialsError) as raised:
        parse_credentials(data if isinstance(data, bytes) else json.dumps(data).encode())
    assert "s3cret" not in str(raised.value)
    return str(raised.value)


def test_a_file_of_go_rtmp_is_read():
    table = parse({"live/stream": "token", "/live/sub/other/": "x"})
    assert table.publish_tokens == {"live/stream": (Secret("token"),), "live/sub/other": (Secret("x"),)}
    assert table.play_tokens == table.publish_tokens
    assert table.publish_keys == ()
    assert table.users == {}


def test_a_stream_can_have_several_secrets():
    table = parse(
        {
            "live/a": {"token": "t", "publish_token": "in", "play_token": "out", "publish_key": "k"},
            "live/b": {"play_token": "x"},
        }
    )
    assert table.publish_tokens == {"live/a": (Secret("t"), Secret("in")), "live/b": ()}
    assert table.play_tokens == {"live/a": (Secret("t"), Secret("out")), "live/b": (Secret("x"),)}
    assert table.publish_keys == (("live/a", Secret("k")),)


def test_users_have_passwords():
    assert parse({"users": {"ann": "a", "bob@host": "b"}}).users == {"ann": Secret("a"), "bob@host": Secret("b")}


def test_an_empty_file_allows_nothing():
    assert parse({}) == Credentials()
    assert parse_credentials(b"\xef\xbb\xbf{}") == Credentials()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "line 1 column 1: Expecting value"),
        (b'{"live/a": "s3cret",\n "live/b": "s3c', "line 2 column 12: Unterminated string starting at"),
        (b'{"live/a": "s3cret"', "line 1 column 20: Expecting ',' delimiter"),
        (b"\xff", "the file is not UTF-8 text"),
        (b"[" * 100_000, "the file is nested too deeply"),
        (b'{"live/a": ' + b"1" * 10_000 + b"}", "the file contains a number that is too long"),
        (b" " * (FILE_LIMIT_BYTES + 1), f"the file is larger than {FILE_LIMIT_BYTES} bytes"),
        (b'{"live/a": "s3cret", "live/a": "s3cret2"}', "'live/a' is defined twice"),
        (b'{"live/a": "s3cret", "/live/a": "s3cret2"}', "'/live/a' is defined twice"),
        (["live/a"], 'the file is not an object like {"live/stream": "token"}'),
        ("s3cret", 'the file is not an object like {"live/stream": "token"}'),
        ({"stream": "s3cret"}, "'stream' is not APPLICATION/NAME"),
        ({"live//a": "s3cret"}, "'live//a' is not APPLICATION/NAME"),
        ({"live/a?b": "s3cret"}, "'live/a?b' is not APPLICATION/NAME"),
        ({"live/a\n": "s3cret"}, "'live/a\\n' is not APPLICATION/NAME"),
        ({"live/a": 7}, "'live/a' has neither a token nor an object with token, publish_token, play_token, publish_key"),
        ({"live/a": {}}, "'live/a' has neither a token nor an object with token, publish_token, play_token, publish_key"),
        ({"live/a": ""}, "the token of 'live/a' is not a text of 1 to 4096 printable characters"),
        ({"live/a": "s3cret\n"}, "the token of 'live/a' is not a text of 1 to 4096 printable characters"),
        (
            {"live/a": {"publish_key": ["s3cret"]}},
            "the publish_key of 'live/a' is not a text of 1 to 4096 printable characters",
        ),
        (
            {"live/a": {"key": "s3cret"}},
            "'live/a' has the unknown field 'key', the fields are token, publish_token, play_token, publish_key",
        ),
        (
            {"users": {"a b": "s3cret"}},
            "the name of the user 'a b' is not 1 to 64 letters, digits and _ . @ -",
        ),
        ({"users": {"ann": None}}, "the password of 'ann' is not a text of 1 to 4096 printable characters"),
        ({"users": "s3cret"}, "'users' is not APPLICATION/NAME"),
    ],
)
def test_errors_of_a_file_contain_no_secrets(data, expected):
    assert problem(data) == expected


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_none(data):
    with contextlib.suppress(CredentialsError):
        parse_credentials(data)


_names = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=5)


@given(st.dictionaries(st.builds("{}/{}".format, _names, _names), _names, max_size=5), st.data())
def test_a_file_that_is_half_written_is_never_taken_for_a_whole_one(tokens, data):
    text = json.dumps(tokens).encode()
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(CredentialsError):
        parse_credentials(text[:cut])


def test_tokens_of_the_configuration_are_good_for_both():
    table = Credentials.of_tokens([NamedSecret("live/a", Secret("x")), NamedSecret("live/a", Secret("y"))])
    assert table.publish_tokens == table.play_tokens == {"live/a": (Secret("x"), Secret("y"))}


def test_publish_keys_stand_for_streams_of_their_application():
    keys = PublishKeys([("live/cam", "k1"), ("live/cam", "k2"), ("live/sub/cam", "k1")])
    assert keys.stream_of("live/k1") == keys.stream_of("live/k2") == "live/cam"
    assert keys.stream_of("live/sub/k1") == "live/sub/cam"
    assert keys.stream_of("other/k1") == keys.stream_of("live/cam") == keys.stream_of("") == ""
    assert keys.hold_for("live")
    assert keys.hold_for("live/below")
    assert not keys.hold_for("lively")
    assert not keys.hold_for("")
    assert not PublishKeys().hold_for("live")
    assert PublishKeys().stream_of("live/k1") == ""


@pytest.mark.parametrize(
    ("path", "public"),
    [
        ("live", "live"),
        ("live/k1", "live"),
        ("live/guess", "live"),
        ("live/a/k1", "live"),
        ("live/cam", "live/cam"),
        ("live/sub", "live/sub"),
        ("live/sub/k1", "live/sub"),
        ("live/sub/cam", "live/sub/cam"),
        ("other/k1", "other/k1"),
        ("", ""),
    ],
)
def test_the_public_part_of_a_path_contains_no_key(path, public):
    keys = PublishKeys([("live/cam", "k1"), ("live/sub/cam", "k1")])
    assert keys.public_part(path) == public
    assert PublishKeys().public_part(path) == path
