"""The values of hook_scripts and hook_webhooks."""

from __future__ import annotations

import pytest

from rtmpd.config.checks import Wrong, converter, describer
from rtmpd.config.hook_targets import EVENT_NAMES, ScriptHook, WebhookHook
from rtmpd.config.loader import load_text
from rtmpd.config.render import render_config
from rtmpd.config.secret import MASK
from rtmpd.errors import ConfigError
from rtmpd.events import EventType


def problem(kind: str, value: str | list[str]) -> str:
    with pytest.raises(Wrong) as raised:
        converter().check(kind, value)
    assert str(raised.value).isprintable()
    return str(raised.value)


def test_the_events_are_those_of_the_server():
    assert tuple(EventType) == EVENT_NAMES


def test_a_script_has_an_event_a_path_and_arguments():
    hook = ScriptHook.parse("publish_start = /usr/bin/env A=b 'with space' ''")
    assert hook.events == {"publish_start"}
    assert hook.argv == ("/usr/bin/env", "A=b", "with space", "")
    assert hook.label == "/usr/bin/env"


@pytest.mark.parametrize(
    ("pattern", "events"),
    [
        ("*", set(EVENT_NAMES)),
        ("publish_*", {"publish_start", "publish_stop"}),
        ("*_stop", {"publish_stop", "live_stop", "play_stop"}),
        ("relay_up", {"relay_up"}),
    ],
)
def test_an_event_may_have_stars(pattern, events):
    assert ScriptHook.parse(f"{pattern}=/x").events == events
    assert WebhookHook.parse(f"{pattern}=http://h").events == events


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/bin/true", "an event, = and a destination are needed"),
        ("publish_start=", "an event, = and a destination are needed"),
        ("publish=/bin/true", 'there is no event "publish", did you mean "publish_stop"?'),
        ("Play_Start=/bin/true", 'there is no event "Play_Start", did you mean "play_start"?'),
        ("nothing=/bin/true", 'there is no event "nothing"'),
        ("=/bin/true", "the text before the = is not an event"),
        ("*=true", "the path of a program needs a slash: PATH is not searched"),
        ("*='/bin/true", "the closing quote is missing"),
        ("*=/bin/true 'a' \"b\"", "both kinds of quotes are used"),
        ("*=/bin/\x07", "the value is longer than 2000 characters or contains control characters"),
        ("*=/" + "x" * 2000, "the value is longer than 2000 characters or contains control characters"),
    ],
)
def test_texts_that_are_no_script(text, message):
    assert problem("scripts", text) == f"expected EVENT=PATH ARGUMENTS, got a hidden value: {message}"


def test_the_number_of_the_wrong_value_is_named():
    assert problem("scripts", ["*=/bin/true", "*=x"]).startswith(
        "expected EVENT=PATH ARGUMENTS, got a hidden value, number 2: "
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://host",
        "https://host:8443/a/b?c=d&e=f",
        "http://[::1]:80/",
        "http://user:pass@host/x",
        "HTTP://HOST/",
        "http://h\u00f6st/",
    ],
)
def test_urls(url):
    assert WebhookHook.parse(f"*={url}").url == url


@pytest.mark.parametrize(
    "url",
    [
        "host/x",
        "ftp://host/",
        "http:///x",
        "http://host:0/",
        "http://host:99999/",
        "http://host:x/",
        "http://[::1/",
        "http://host/a b",
        "http://host/'",
        "http://host/#part",
        "//host/",
        f"http://{MASK}@host/",
        f"http://host/?{MASK}",
    ],
)
def test_a_wrong_url_is_not_shown(url):
    said = problem("webhooks", f"*={url}")
    assert said.startswith("expected EVENT=URL, got a hidden value: ")
    assert url not in said


def test_a_url_without_an_event_is_not_shown():
    assert "hunter2" not in problem("webhooks", "https://u:hunter2@host/?key=hunter2")
    assert "hunter2" not in problem("scripts", "/bin/post hunter2=x")


def test_secrets_of_a_url_are_shown_nowhere():
    hook = WebhookHook.parse("publish_*=https://user:hunter2@host:8443/path?key=hunter2")
    assert hook.label == "https://host:8443/path"
    for shown in (str(hook), repr(hook), f"{[hook]}", hook.label):
        assert "hunter2" not in shown
        assert "user" not in shown
    assert str(hook) == f"publish_*=https://{MASK}@host:8443/path?{MASK}"


def test_a_printed_configuration_has_no_secrets_and_is_refused_with_its_masks():
    config = load_text(
        "[hooks]\nhook_webhooks = *=https://u:hunter2@host/?k=hunter2, play_stop=http://other/\n"
        "hook_scripts = \"*=/bin/x 'a b'\"\nhook_secret = hunter2\n"
    )
    printed = render_config(config)
    assert "hunter2" not in printed
    assert "hook_scripts = \"*=/bin/x 'a b'\"" in printed
    with pytest.raises(ConfigError) as raised:
        load_text(printed)
    assert len(raised.value.problems) == 2
    assert "mask" in raised.value.problems[0]
    assert "mask" in raised.value.problems[1]


def test_hooks_can_be_empty():
    hooks = load_text("[hooks]\nhook_webhooks = \"\"\nhook_scripts = ''\n").hooks
    assert hooks.hook_webhooks == hooks.hook_scripts == ()


def test_the_checks_are_described():
    assert describer().check("scripts", "") == "EVENT=PATH ARGUMENTS, separated by commas, or nothing"
    assert describer().check("webhooks", "") == "EVENT=URL, separated by commas, or nothing"
