"""Secrets: valid values, sources, and that no text contains them."""

from __future__ import annotations

import pytest

from rtmpd.config.checks import Wrong, converter, describer
from rtmpd.config.render import render_value
from rtmpd.config.secret import MASK, Secret

VALUE = "hunter2 correct horse"


def check(value: str | list[str]) -> Secret:
    return converter().check("secret", value)


def test_a_secret_never_shows_itself():
    secret = Secret(VALUE)
    for shown in (str(secret), repr(secret), f"{secret}", f"{secret!r}", f"{[secret]}", render_value(secret)):
        assert VALUE not in shown
        assert MASK in shown
    assert secret.reveal() == VALUE


def test_the_empty_secret_is_false_and_rendered_as_nothing():
    assert not Secret("")
    assert render_value(Secret("")) == '""'
    assert check("") == Secret("")


def test_a_secret_matches_itself_only():
    secret = Secret("gehüim")
    assert secret.matches("gehüim")
    for other in ("", "geheim", "gehüim ", "\udcff"):
        assert not secret.matches(other)
    assert not Secret("").matches("")


def test_secrets_are_equal_by_value_and_source():
    assert Secret("a") == Secret("a")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("a") != Secret("a", "env:A")
    assert Secret("a") != "a"


def test_a_secret_is_read_from_a_file_and_shown_as_its_path(tmp_path):
    path = tmp_path / "key"
    path.write_text(VALUE + "\n")
    secret = check(f"file:{path}")
    assert secret.reveal() == VALUE
    assert render_value(secret) == str(secret) == f"file:{path}"


def test_a_secret_is_read_from_the_environment_and_shown_as_its_name(monkeypatch):
    monkeypatch.setenv("KEY_OF_A_TEST", VALUE)
    secret = check("env:KEY_OF_A_TEST")
    assert secret.reveal() == VALUE
    assert render_value(secret) == "env:KEY_OF_A_TEST"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the secret is empty"),
        (b"\n", "the secret is empty"),
        (b"a\nb", "the secret contains control characters or several lines"),
        (b"\xff", "the secret is not UTF-8 text"),
        (b"a" * 4097, "the secret is longer than 4096 characters"),
        (b"********", "the secret is the mask of a printed configuration"),
        (None, "the file can't be read: No such file or directory"),
    ],
)
def test_a_file_that_holds_no_secret_says_why(tmp_path, content, message):
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Wrong) as raised:
        check(f"file:{path}")
    assert str(raised.value).startswith('expected a secret, file:PATH or env:NAME, got "file:')
    assert str(raised.value).endswith(f": {message}")


def test_a_directory_and_a_missing_variable_are_no_secrets(tmp_path):
    with pytest.raises(Wrong, match="Is a directory"):
        check(f"file:{tmp_path}")
    with pytest.raises(Wrong, match='got "env:NOT_THERE_AT_ALL": the environment variable is not set'):
        check("env:NOT_THERE_AT_ALL")


@pytest.mark.parametrize("value", [MASK, "a\tb", "x" * 4097, ["secret", "words"]])
def test_a_wrong_secret_is_not_shown(value):
    with pytest.raises(Wrong) as raised:
        check(value)
    assert "secret, file:PATH" in str(raised.value)
    for part in [value] if isinstance(value, str) else value:
        assert part not in str(raised.value).removeprefix("expected a secret, file:PATH or env:NAME, got ")


def test_the_check_is_described():
    assert describer().check("secret", "") == "a secret, file:PATH or env:NAME"
