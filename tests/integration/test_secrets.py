"""Secrets that clients send in any place of a URL are in no output of the server, whatever the client does with them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT
from tests.integration.beside import wait_until
from tests.integration.test_hooks import Hooked
from tests.integration.test_metrics import fetch, metrics_port
from tests.integration.web import Web, reply
from tests.integration.wire import Wire, send_headers

if TYPE_CHECKING:
    from pathlib import Path

_SECRET = "s3cret"
_SECRETS = ("token=s3cret", "user=ann&pass=s3cret", "key=s3cret&sign=s3cret", "pwd=s3cret", "token=s%33cret-s3cret")
_PLACES = {
    "app": ("live?{}", "rtmp://h/live", "cam"),
    "tc_url": ("live", "rtmp://h/live?{}", "cam"),
    "tc_url_alone": ("", "rtmp://h/live?{}", "cam"),
    "name": ("live", "rtmp://h/live", "cam?{}"),
    "user_info": ("live", "rtmp://ann:s3cret@h/live", "cam"),
    "user_info_of_app": ("rtmp://ann:s3cret@h/live?{}", "", "cam"),
    "url_as_name": ("live", "rtmp://h/live", "rtmp://ann:s3cret@h/live/cam?{}"),
    "url_of_another_app": ("live", "rtmp://h/live", "rtmp://ann:s3cret@h/other/cam?{}"),
    "detached": ("live/cam?", "rtmp://h/live/cam?", "{}"),
    "detached_without_mark": ("live", "rtmp://h/live", "{}"),
    "no_mark": ("live", "rtmp://h/live", "cam&{}"),
    "no_mark_in_app": ("live/{}", "rtmp://h/live/{}", "cam"),
    "no_mark_in_tc_url": ("", "rtmp://h/live&{}", "cam"),
    "escaped_mark": ("live", "rtmp://h/live", "cam%3F{}"),
    "fragment": ("live", "rtmp://h/live", "cam#{}"),
    "part": ("live", "rtmp://h/live", "{}/cam"),
}
# The name is a publish key, right or wrong: of OBS with an empty key, FFmpeg with a trailing slash, and others.
_KEY_PLACES = {
    "key_as_name": ("live", "rtmp://h/live", "s3cret-key"),
    "wrong_key_as_name": ("live", "rtmp://h/live", "s3cret-other"),
    "key_in_app": ("live/s3cret-key", "rtmp://h/live/s3cret-key", ""),
    "key_in_app_with_slash": ("live/s3cret-key/", "rtmp://h/live/s3cret-key/", ""),
    "key_in_app_with_query": ("live/s3cret-key?{}", "rtmp://h/live/s3cret-key", ""),
    "wrong_key_in_app": ("live/s3cret-other", "rtmp://h/live/s3cret-other", ""),
    "key_in_tc_url": ("", "rtmp://h/live/s3cret-key", ""),
    "key_in_app_before_name": ("live/s3cret-key", "rtmp://h/live/s3cret-key", "cam?{}"),
    "key_in_default_instance": ("live/_definst_/s3cret-key", "rtmp://h/live/_definst_/s3cret-key", ""),
    "key_in_url_as_name": ("live", "rtmp://h/live", "rtmp://h/live/s3cret-key?{}"),
}
_ALL_PLACES = _PLACES | _KEY_PLACES


def use(server, place: str, secret: str, action: str) -> None:
    """Connect and publish or play, with a secret in one place; the server may refuse it."""
    app, tc_url, name = (text.format(secret) for text in _ALL_PLACES[place])
    with Wire(server) as wire, contextlib.suppress(AssertionError, OSError):
        wire.handshake()
        wire.command("connect", obj={"app": app, "tcUrl": tc_url, "swfUrl": tc_url, "pageUrl": f"{tc_url}/{name}"}, tid=1)
        wire.command("releaseStream", name, tid=2)
        wire.command("FCPublish", name, tid=3)
        wire.command("FCSubscribe", name, tid=4)
        wire.command("createStream", tid=5)
        wire.command("getStreamLength", name, tid=6)
        wire.command(action, name, msid=1)
        wire.status()
        if action == "publish":
            send_headers(wire)
            wire.command("FCUnpublish", name, tid=7)
        wire.command("play2", {"streamName": name}, msid=1)
        wire.call("_checkbw")


def use_all(server, places=_PLACES, secrets=_SECRETS) -> None:
    for place, secret, action in itertools.product(places, secrets, ("publish", "play")):
        use(server, place, secret, action)


INI = """
[log]
log_format = {form}
access_log_file = {directory}/access
[limits]
command_limit = 1000000
[publish]
publisher_grace_s = 0
[metrics]
metrics_listen = 127.0.0.1:0
[hooks]
hook_stdio_format = {hooks}
[auth]
{auth}
"""
TOKENS = "auth_mode = token\nauth_tokens = live/cam=s3cret, live/_definst_/cam=s%33cret-s3cret"
KEYS = "auth_publish_keys = live/cam=s3cret-key"


@pytest.mark.parametrize("auth", ["", TOKENS], ids=["open", "tokens"])
@pytest.mark.parametrize(("form", "hooks"), [("text", "json"), ("json", "env")])
def test_secrets_of_urls_are_in_no_log_access_log_hook_dump_or_metric(server, raw, tmp_path, form, hooks, auth):
    with (tmp_path / "events").open("wb") as stdout:
        running = server(INI.format(form=form, directory=tmp_path, hooks=hooks, auth=auth), stdout=stdout)
    use_all(running)
    # A publisher and a player with a secret are there while the dump and the metrics are made.
    sender, watcher = raw(running), raw(running)
    for wire, action in ((sender, "publish"), (watcher, "play")):
        wire.connect("live?token=s3cret", tcUrl="rtmp://ann:s3cret@h/live?token=s3cret")
        wire.command(action, "cam?token=s3cret", msid=wire.create_stream())
        wire.status()
    send_headers(sender)
    port = metrics_port(running) if form == "text" else int(running.wait_for_line(r"127\.0\.0\.1:(\d+)/metrics")[1])
    shown = {path: fetch(port, path)[1] for path in ("/metrics", "/debug/vars")}
    assert b'cam"' in shown["/metrics"]
    os.kill(running.pid, signal.SIGUSR2)
    running.wait_for_line("live/cam.*player")
    sender.close()
    watcher.close()
    wait_until(lambda: b"live/cam" in (tmp_path / "access").read_bytes(), "the access log")
    assert running.stop() == 0
    shown |= {"log": "\n".join(running.lines).encode()}
    shown |= {name: (tmp_path / name).read_bytes() for name in ("access", "events")}
    assert b"live/cam" in shown["events"]
    assert [f"{name}: {line}" for name, text in shown.items() for line in text.splitlines() if _SECRET.encode() in line] == []


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_of_urls_are_in_no_log_file(server, tmp_path, form):
    path = tmp_path / "log"
    command = [sys.executable, "-m", "rtmpd", "--listen", "127.0.0.1:0", "--log-level", "debug"]
    process = subprocess.Popen([*command, "--log-file", str(path), "--log-format", form], cwd=ROOT)
    try:
        wait_until(lambda: path.exists() and "listening on" in path.read_text(), "the start")
        use_all(int(path.read_text().partition("listening on 127.0.0.1:")[2].partition('"')[0].split()[0]))
    finally:
        process.terminate()
        assert process.wait(20) == 0
    assert _lines_with_secret(path) == []


@pytest.fixture
def callback():
    """A callback that takes s3cret-key for a name of cam, and refuses other secrets."""
    with Web() as web:
        web.answers["s3cret-key"] = reply(200, b'{"stream": "cam"}')
        web.answers[""] = 403
        yield web


@pytest.mark.parametrize("auth", ["", TOKENS, KEYS, "callback"], ids=["open", "tokens", "keys", "callback"])
def test_secrets_of_urls_are_in_no_event_of_webhooks_and_scripts_and_in_no_access_log(server, tmp_path, callback, auth):
    script, told = tmp_path / "script", tmp_path / "told"
    script.write_text(f"#!/bin/sh\n{{ env; cat; echo; }} >>{told}\n")
    script.chmod(0o755)
    hooked = Hooked()
    try:
        if auth == "callback":
            auth = f"auth_mode = callback\nauth_callback = '{callback.url}'"
        ini = INI.format(form="text", directory=tmp_path, hooks="env", auth=auth)
        hooks = f"[hooks]\nhook_webhooks = *={hooked.url}\nhook_scripts = *={script}\nhook_queue_limit = 100000\n"
        with (tmp_path / "events").open("wb") as stdout:
            running = server(ini.replace("[hooks]\n", hooks), stdout=stdout)
        use_all(running, _ALL_PLACES if "token" not in auth and auth else _PLACES, _SECRETS[:1])
        # The last of each stream's or connection's events.
        wait_until(lambda: "connection_close" in told.read_text(), "the script", 30)
        assert running.stop() == 0
    finally:
        hooked.close()
    shown = {"log": "\n".join(running.lines), "webhooks": "\n".join(map(json.dumps, hooked.got))}
    shown |= {name: (tmp_path / name).read_text() for name in ("access", "events", "told")}
    assert {each["type"] for each in hooked.got} >= {"connection_close", "play_start", "publish_start", "publish_stop"}
    assert not [line for line in running.lines if "discarded" in line]
    assert [f"{name}: {line}" for name, text in shown.items() for line in text.splitlines() if _SECRET in line] == []


@pytest.mark.parametrize("method", ["keys", "callback"])
def test_a_publish_key_in_the_application_is_in_no_log_access_log_dump_or_metric(server, tmp_path, callback, method):
    auth = KEYS if method == "keys" else f"auth_mode = callback\nauth_callback = '{callback.url}'"
    running = server(INI.format(form="text", directory=tmp_path, hooks="off", auth=auth))
    with Wire(running) as sender:
        sender.connect("live/s3cret-key")
        sender.command("publish", "", msid=sender.create_stream())
        sender.status("NetStream.Publish.Start")
        running.wait_for_line(r"connected to live/\*+ by")
        running.wait_for_line("publishes live/cam$")
        use_all(running, _KEY_PLACES, _SECRETS[:1])
        shown = {path: fetch(metrics_port(running), path)[1].decode() for path in ("/metrics", "/debug/vars")}
        os.kill(running.pid, signal.SIGUSR2)
        running.wait_for_line("live/cam.*player")
    assert running.stop() == 0
    shown |= {"log": "\n".join(running.lines), "access": (tmp_path / "access").read_text()}
    assert re.search(r"app=\S*live/\*+", shown["access"])
    assert [f"{name}: {line}" for name, text in shown.items() for line in text.splitlines() if _SECRET in line] == []


def _lines_with_secret(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if _SECRET in line]


def test_secrets_of_urls_are_in_no_field_of_the_journal(tmp_path):
    """A socket of the test's own takes the journal's place, for this rtmpd alone; that needs root."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    directory = tmp_path / "journal"
    directory.mkdir()
    mounts = f"mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && mount --bind {directory} /run/systemd/journal"
    flags = "--listen 127.0.0.1:0 --log-level debug --log-target journal"
    command = f"{mounts} && exec {sys.executable} -m rtmpd {flags}"
    got = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(directory / "socket"))
        journal.settimeout(20)
        process = subprocess.Popen(["unshare", "-m", "sh", "-c", command], cwd=ROOT)
        try:
            while b"listening on" not in (datagram := journal.recv(1 << 20)):
                pass
            port = int(datagram.partition(b"listening on 127.0.0.1:")[2].split()[0])
            for place, action in itertools.product(_PLACES, ("publish", "play")):
                use(port, place, "user=ann&pass=s3cret", action)
                while not got or b" closed: " not in got[-1]:
                    got.append(journal.recv(1 << 20))
                got.append(b"")
        finally:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                while b"stopped" not in (got[-1] if got else b""):
                    got.append(journal.recv(1 << 20))
            assert process.wait(20) == 0
    assert any(b"RTMPD_STREAM=live/cam" in datagram for datagram in got)
    assert [datagram for datagram in got if _SECRET.encode() in datagram] == []
