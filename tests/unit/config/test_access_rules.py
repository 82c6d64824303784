from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtmpd.config.access_rules import NamedSecret, parse_network, parse_secret_url, parse_stream_secret, parse_user
from rtmpd.config.loader import load_text
from rtmpd.config.render import render_config
from rtmpd.config.secret import Secret
from rtmpd.errors import ConfigError


def problems(text):
    with pytest.raises(ConfigError) as raised:
        load_text(text, "f")
    assert "s3cret" not in str(raised.value)
    return raised.value.problems


def test_names_with_secrets(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("of a file\n")
    monkeypatch.setenv("TOKEN", "of the environment")
    assert parse_stream_secret("live/a=x=y").secret.reveal() == "x=y"
    assert parse_stream_secret(" /live/sub/a/ = x").name == "live/sub/a"
    assert parse_stream_secret("live/_definst_/a=x").name == "live/a"
    assert parse_stream_secret(f"live/a=file:{tmp_path / 'token'}").secret.reveal() == "of a file"
    assert parse_user("ann@example.com=env:TOKEN") == NamedSecret("ann@example.com", Secret("of the environment", "env:TOKEN"))


def test_a_wrong_line_is_hidden_where_it_may_be_a_secret():
    expected = 'expected a section header or "option = value", got a hidden line'
    assert problems("[auth]\nauth_tokens = live/a=x\n  s3cret\n'live/b' = s3cret\n") == [f"f:3: {expected}", f"f:4: {expected}"]
    assert problems("[applications]\n[[live]]\ns3cret\n") == [f"f:3: {expected}"]


def test_secrets_are_masked_when_they_are_printed():
    config = load_text("[auth]\nauth_tokens = live/a=s3cret\nauth_users = ann=s3cret2\nauth_sign_secrets = s3cret3\n")
    printed = render_config(config)
    assert "s3cret" not in printed + repr(config)
    assert "auth_tokens = live/a=********\n" in printed
    assert "auth_users = ann=********\n" in printed


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("auth_tokens = s3cret", 'APPLICATION/NAME=SECRET, got a hidden value: there is no "=" in it'),
        ("auth_tokens = live/a=x, s3cret", 'APPLICATION/NAME=SECRET, got a hidden value, number 2: there is no "=" in it'),
        ("auth_tokens = =s3cret", 'APPLICATION/NAME=SECRET, got a hidden value: there is no name before the "="'),
        ("auth_tokens = live=s3cret", "APPLICATION/NAME=SECRET, got a hidden value: the name is not APPLICATION/NAME"),
        ("auth_tokens = live/a=", "APPLICATION/NAME=SECRET, got a hidden value: live/a: the secret is empty"),
        (
            "auth_tokens = live/a=********",
            "APPLICATION/NAME=SECRET, got a hidden value: live/a: the secret is the mask of a printed configuration",
        ),
        (
            "auth_publish_keys = live/a=env:NO_SUCH",
            "APPLICATION/NAME=SECRET, got a hidden value: live/a: the environment variable is not set",
        ),
        (
            "auth_users = a b=s3cret",
            "USER=PASSWORD, got a hidden value: the name of a user consists of 1 to 64 letters, digits and _ . @ -",
        ),
        ("auth_sign_secrets = env:NO_SUCH", 'secrets, got "env:NO_SUCH": the environment variable is not set'),
        (
            "auth_callback = s3cret",
            "http://HOST/PATH or https://HOST/PATH, or file:PATH or env:NAME that holds it, got a hidden value",
        ),
        (
            "auth_callback = ftp://ann:s3cret@host/",
            "http://HOST/PATH or https://HOST/PATH, or file:PATH or env:NAME that holds it, got a hidden value",
        ),
        ("play_deny = 192.0.2.1/24", 'addresses or networks such as 192.0.2.0/24, got "192.0.2.1/24": write 192.0.2.0/24'),
        ("play_deny = example.com", 'addresses or networks such as 192.0.2.0/24, got "example.com"'),
    ],
)
def test_problems_contain_no_secrets(line, problem):
    assert problems(f"[auth]\n{line}\n") == [f"f:2: [auth] {line.partition(' ')[0]}: expected {problem}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[auth]\nauth_mode = token\n", 'f:2: [auth] auth_mode: "token" needs auth_tokens'),
        ("[auth]\nauth_mode = file\n", 'f:2: [auth] auth_mode: "file" needs auth_file'),
        ("[auth]\n\nauth_mode = callback\n", 'f:3: [auth] auth_mode: "callback" needs auth_callback'),
        (
            "[applications]\n[[live]]\nauth_mode = file\n",
            'f:3: [applications] [[live]] auth_mode: "file" needs auth_file',
        ),
    ],
)
def test_an_auth_mode_needs_its_option(text, expected):
    assert problems(text) == [expected]


def test_an_auth_mode_of_a_flag_needs_its_option():
    with pytest.raises(ConfigError) as raised:
        load_text("", "f", {("auth", "auth_mode"): "token"})
    assert raised.value.problems == ['f: [auth] auth_mode: "token" needs auth_tokens']
    config = load_text("", "f", {("auth", "auth_mode"): "token", ("auth", "auth_tokens"): ["live/a=x", "live/b=y"]})
    assert [each.name for each in config.auth.auth_tokens] == ["live/a", "live/b"]


def test_applications_have_options_of_their_own():
    config = load_text(
        "[auth]\nauth_play = no\nplay_deny = 10.0.0.0/8\n[applications]\n[[a]]\nauth_play = yes\n[[b]]\nplay_deny = ''\n"
    )
    assert config.applications["a"].auth.auth_play
    assert config.applications["a"].auth.play_deny == config.auth.play_deny != ()
    assert not config.applications["b"].auth.auth_play
    assert config.applications["b"].auth.play_deny == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", "192.0.2.1/32"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_networks(text, expected):
    assert str(parse_network(text)) == expected


@given(st.text())
def test_any_text_is_a_value_or_a_value_error(text):
    for parse in (parse_network, parse_secret_url, parse_stream_secret, parse_user):
        with contextlib.suppress(ValueError):
            parse(text)


def test_a_callback_is_kept_as_a_secret():
    config = load_text("[auth]\nauth_mode = callback\nauth_callback = https://ann:s3cret@host:8443/auth?key=s3cret\n")
    assert config.auth.auth_callback.reveal() == "https://ann:s3cret@host:8443/auth?key=s3cret"
    assert "s3cret" not in render_config(config) + repr(config)
