"""Slates: read at a start and by a reload, played to players without a publisher, and replaced while they play."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from itertools import pairwise

import pytest

from rtmpd.media import flv
from tests.conftest import ROOT
from tests.integration.wire import (
    AAC_HEADER,
    AUDIO,
    AVC_HEADER,
    AVC_HEADER_2,
    VIDEO,
    Item,
    codes,
    gop,
    key,
    received,
    send,
    send_headers,
    sound,
    status,
)

PICTURE, SECOND_PICTURE = key(5001), key(5002)


def write_slate(path, picture=PICTURE, header=AVC_HEADER):
    """A slate of half a second whose frames are all *picture*."""
    items = [(VIDEO, 0, header), (AUDIO, 0, AAC_HEADER)]
    for time_ms in range(0, 500, 50):
        items += [(VIDEO, time_ms, picture), (AUDIO, time_ms, sound(1))]
    path.write_bytes(flv.file_header(True, True) + b"".join(flv.tag(*item) for item in items))


@pytest.fixture
def slate(tmp_path):
    path = tmp_path / "slate.flv"
    write_slate(path)
    return path


def is_frame(payload):
    return lambda one: isinstance(one, Item) and one.payload == payload


def reload(running):
    running.process.send_signal(signal.SIGHUP)


def test_a_player_sees_the_slate_until_a_publisher_comes_and_again_when_it_is_lost(server, raw, player, slate):
    running = server(f"[slate]\nslate_file = {slate}\n[publish]\npublisher_grace_s = 0.5\n")
    assert running.wait_for_line(rf"slate_file {slate} was read: video h264 .*, audio aac ")
    watcher = player(running, "cam")
    got = received(watcher, is_frame(PICTURE))
    encoder = raw(running).publish("cam")
    send_headers(encoder)
    send(encoder, gop(0))
    got += received(watcher, is_frame(gop(0)[-1].payload))
    encoder.close()
    got += received(watcher, is_frame(PICTURE))
    # The player stays on one timeline, and gets no notice of an end.
    times = [one.timestamp for one in got if isinstance(one, Item) and one.type_id == VIDEO]
    assert times == sorted(times)
    assert "NetStream.Play.UnpublishNotify" not in codes(got)
    running.wait_for_line(r"live/cam: the slate is active from now on: ")


def test_a_server_does_not_start_with_a_slate_that_it_can_not_use(tmp_path):
    path = tmp_path / "slate.flv"
    path.write_bytes(b"FLV\1\5\0\0\0\x09\0\0\0\0no tags")
    (tmp_path / "rtmpd.ini").write_text(f"[slate]\nslate_file = {path}\n")
    command = [sys.executable, "-m", "rtmpd", "--listen", "127.0.0.1:0", "-c", str(tmp_path / "rtmpd.ini")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "slate" in line]
    assert re.search(rf" ERROR +slate_file {path}: truncated: the file ends within a tag at byte 13$", line)
    done = subprocess.run([*command, "--check-config"], capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert done.returncode == 1
    assert f"rtmpd.ini:2: [slate] slate_file: {path}: truncated: the file ends within a tag at byte 13" in done.stderr


def test_a_reload_with_a_wrong_file_keeps_the_old_slate(server, player, slate, tmp_path):
    running = server(f"[slate]\nslate_file = {slate}\n")
    watcher = player(running, "cam")
    received(watcher, is_frame(PICTURE))
    slate.write_bytes(slate.read_bytes()[:-3])
    reload(running)
    running.wait_for_line(rf"ERROR +slate_file {slate} can't be used: .*; what was read of it before stays in use")
    running.wait_for_line("configuration reloaded: nothing has changed")
    received(watcher, is_frame(PICTURE))
    received(player(running, "other"), is_frame(PICTURE))
    # A file that was never read can't be replaced by an earlier one.
    (tmp_path / "rtmpd.ini").write_text(f"[slate]\nslate_file = {tmp_path}/none.flv\n")
    reload(running)
    running.wait_for_line(rf"reload failed: slate_file {tmp_path}/none\.flv: No such file or directory; the old configuration")
    received(watcher, is_frame(PICTURE))
    running.stop()
    running.wait_for_line(r"counted: .*slate_errors 2")


def test_a_slate_that_is_replaced_while_it_plays_goes_on_with_the_new_one(server, player, slate):
    running = server(f"[slate]\nslate_file = {slate}\n")
    watcher = player(running, "cam")
    got = received(watcher, is_frame(PICTURE))
    write_slate(slate, SECOND_PICTURE, AVC_HEADER_2)
    reload(running)
    got += received(watcher, is_frame(SECOND_PICTURE))
    assert "NetStream.Play.UnpublishNotify" not in codes(got)
    assert [one.payload for one in got if isinstance(one, Item) and one.payload in (AVC_HEADER, AVC_HEADER_2)] == [
        AVC_HEADER,
        AVC_HEADER_2,
    ]
    times = [one.timestamp for one in got if isinstance(one, Item) and one.type_id == VIDEO]
    assert times == sorted(times)


def test_a_reload_with_an_unchanged_slate_does_not_begin_it_again(server, player, slate):
    running = server(f"[slate]\nslate_file = {slate}\n")
    watcher = player(running, "cam")
    got = received(watcher, is_frame(PICTURE))
    for _ in range(2):
        reload(running)
        got += received(watcher, is_frame(PICTURE))
    running.wait_for_line("configuration reloaded: nothing has changed")
    for _ in range(12):
        got += received(watcher, is_frame(PICTURE))
    assert [one.payload for one in got if isinstance(one, Item)].count(AVC_HEADER) == 1
    times = [one.timestamp for one in got if isinstance(one, Item) and one.type_id == VIDEO]
    assert all(later - earlier <= 51 for earlier, later in pairwise(times[1:]))


def test_a_slate_that_is_switched_off_by_a_reload_ends(server, raw, player, slate, tmp_path):
    running = server(f"[slate]\nslate_file = {slate}\n")
    watcher = player(running, "cam")
    received(watcher, is_frame(PICTURE))
    (tmp_path / "rtmpd.ini").write_text("[slate]\nslate_file =\n")
    reload(running)
    status(watcher, "NetStream.Play.UnpublishNotify")
    encoder = raw(running).publish("cam")
    send_headers(encoder)
    send(encoder, gop(0))
    received(watcher, is_frame(gop(0)[-1].payload))
