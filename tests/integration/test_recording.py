"""Recordings with hostile names, names that collide, thousands of short streams, and reloads."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import gevent
import pytest

from rtmpd.client import Client
from rtmpd.media.flv_repair import scan
from rtmpd.media.fmp4.repair import scan as mp4_scan
from tests.fmp4_files import all_kinds
from tests.integration.beside import wait_until
from tests.integration.wire import AVC_HEADER, AVC_HEADER_2, VIDEO, Wire, gop, headers, send
from tests.unit.services.recorder.recordings import read, recording, write
from tests.unit.services.recorder.test_mp4_segment import Mp4Scene

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Server

RECORD = "[publish]\npublisher_grace_s = 0\n[record]\nrecord_directory = {}\n"


def files(directory: Path) -> list[str]:
    """Every file below a directory, by its relative path."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def frames(path: Path) -> int:
    with path.open("rb") as file:
        result = scan(file)
    assert result.clean
    return result.frames


def publish(server: Server, name: str, app: str = "live", gops: int = 2) -> None:
    """Publish two groups of pictures, and leave."""
    with Client(server.url("", app)) as client:
        client.publish(name)
        send(client, headers())
        for number in range(gops):
            send(client, gop(number))
        client.unpublish()


@pytest.fixture
def recorder(server, tmp_path):
    """A server that records everything in a directory of its own, under the stream's name."""

    def start(more: str = "record_all = yes\nrecord_file_name = {app}/{name}\n") -> tuple[Server, Path]:
        directory = tmp_path / "recordings"
        return server(RECORD.format(directory) + more, level="info"), directory

    return start


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("../../etc/passwd", "live%2F..%2F..%2Fetc/passwd.flv"),
        ("..", "live/%2E..flv"),
        (".hidden", "live/%2Ehidden.flv"),
        ("a b;$(reboot)&'\"", "live/a%20b%3B%24%28reboot%29%26%27%22.flv"),
        ("caméra", "live/cam%C3%A9ra.flv"),
        ("caf\udce9", "live/caf%E9.flv"),
        ("x" * 1000, "live/" + "x" * 83),
    ],
)
def test_a_stream_of_any_name_is_recorded_inside_the_directory(recorder, name, path, tmp_path):
    server, directory = recorder()
    publish(server, name)
    server.wait_for_line(r": recorded ")
    (found,) = files(directory)
    assert found.startswith(path.removesuffix(".flv"))
    assert frames(directory / found) > 5
    assert {path.name for path in tmp_path.iterdir()} == {"recordings", "rtmpd.ini"}


@pytest.mark.parametrize("name", ["two\nlines", "x" * 2_000, "\0"])
def test_a_name_with_control_characters_or_too_long_is_refused_and_not_recorded(recorder, name):
    server, directory = recorder()
    with pytest.raises(Exception, match=r"BadName"):
        publish(server, name)
    server.wait_for_line(r"WARNING .*publish refused: NetStream.Publish.BadName: The stream's name has control characters")
    assert not directory.exists()


def test_streams_with_the_same_file_name_get_files_of_their_own(recorder):
    server, directory = recorder("record_all = yes\nrecord_file_name = {name}\n")
    with Client(server.url("same", "one")) as one, Client(server.url("same", "two")) as two:
        for client, gops in ((one, 2), (two, 3)):
            client.publish()
            send(client, headers())
            for number in range(gops):
                send(client, gop(number))
        wait_until(lambda: files(directory) == ["same-2.flv.part", "same.flv.part"], "both parts")
    server.wait_for_line(r"one/same: recorded ")
    server.wait_for_line(r"two/same: recorded ")
    publish(server, "same", "three", 4)
    server.wait_for_line(r"three/same: recorded .*/same-3.flv")
    counts = {name: frames(directory / name) for name in files(directory)}
    assert len(counts) == 3
    assert len(set(counts.values())) == 3


def test_only_streams_that_match_are_recorded(recorder):
    server, directory = recorder("record_streams = live/cam?, */keep\nrecord_file_name = {app}/{name}\n")
    for app, name in (("live", "cam1"), ("live", "cam10"), ("other", "cam1"), ("other", "keep")):
        publish(server, name, app)
    # Files are closed in threads: one may overtake another.
    for key in ("live/cam1", "other/keep"):
        server.wait_for_line(rf"{key}: recorded ")
    assert files(directory) == ["live/cam1.flv", "other/keep.flv"]


def test_a_pattern_of_one_asterisk_is_every_stream_even_without_application(recorder):
    server, directory = recorder("record_streams = *\nrecord_file_name = {app}-{name}\n")
    for app in ("live", "a/b", ""):
        publish_raw(server, "cam", app)
    wait_until(lambda: len(files(directory)) == 3 and not any(name.endswith("part") for name in files(directory)), "the files")
    assert files(directory) == ["%-cam.flv", "a%2Fb-cam.flv", "live-cam.flv"]


def test_a_pattern_without_a_slash_is_a_stream_without_application(recorder):
    server, directory = recorder("record_streams = cam\nrecord_file_name = {name}\n")
    publish(server, "other")
    publish(server, "cam")
    publish_raw(server, "cam", "")
    server.wait_for_line(r" cam: recorded ")
    assert files(directory) == ["cam.flv"]


def publish_raw(server, name, app):
    with Wire(server) as wire:
        wire.connect(app, tcUrl="rtmp://localhost")
        wire.command("publish", name, msid=wire.create_stream())
        wire.status()
        send(wire, headers())
        send(wire, gop(0))
        wire.sync()


def test_a_reload_begins_and_ends_recordings_of_live_streams(recorder, tmp_path):
    server, directory = recorder("record_streams = live/a\nrecord_file_name = {name}-{n}\n")
    ini = tmp_path / "rtmpd.ini"
    with Client(server.url("a")) as a, Client(server.url("b")) as b:
        for client in (a, b):
            client.publish()
            send(client, headers())
            send(client, gop(0))
        wait_until(lambda: files(directory) == ["a-1.flv.part"], "the recording of a")
        ini.write_text(ini.read_text().replace("live/a", "live/b"))
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line(r"live/a: recorded ")
        for number in (1, 2):
            for client in (a, b):
                send(client, gop(number))
        wait_until(lambda: files(directory) == ["a-1.flv", "b-1.flv.part"], "the recording of b")
    server.wait_for_line(r"live/b: recorded ")
    # The recording began in the middle of the publish, and still has the headers and a keyframe.
    with (directory / "b-1.flv").open("rb") as file:
        result = scan(file)
    assert result.clean
    assert result.sequence_header is not None
    assert result.frames >= 5


def test_a_stop_closes_recordings(recorder):
    server, directory = recorder()
    with Client(server.url("a")) as client:
        client.publish()
        send(client, headers())
        send(client, gop(0))
        wait_until(lambda: files(directory) == ["live/a.flv.part"], "the recording")
        assert server.stop() == 0
    assert files(directory) == ["live/a.flv"]
    assert frames(directory / "live" / "a.flv") >= 5
    (line,) = [line for line in server.lines if "recorded" in line and "live/a:" in line]
    assert re.search(r"live/a: recorded .*/live/a.flv; \d\.\d s, \d+ bytes", line)


# Publishers that are lost ------------------------------------------------------------------------------------------------


@pytest.fixture
def grace(server, tmp_path):
    """A server that records everything, with the default grace."""
    directory = tmp_path / "recordings"
    ini = f"[record]\nrecord_all = yes\nrecord_directory = {directory}\nrecord_file_name = {{name}}-{{n}}\n"
    return server(ini, level="info"), directory


def publish_and_break(server: Server, first: int, last: int, avc: bytes = AVC_HEADER) -> None:
    """Publish groups of pictures, and close the connection without an unpublish."""
    with Client(server.url("cam")) as client:
        client.publish()
        send(client, [item._replace(payload=avc) if item.type_id == VIDEO else item for item in headers()])
        for number in range(first, last + 1):
            send(client, gop(number))


def wait_for_loss(server: Server, times: int = 1) -> None:
    wait_until(lambda: len([line for line in server.log() if "stopped publishing live/cam" in line]) == times, "the loss")


def videos(path: Path) -> list[tuple[int, bytes]]:
    """Return timestamps and payloads of the video of a complete recording, in which no timestamp goes back."""
    with path.open("rb") as file:
        assert scan(file).clean
    found = read(path)
    for type_id in (8, 9):
        times = [time for each, time, _ in found if each == type_id]
        assert times == sorted(times)
    return [(time, payload) for type_id, time, payload in found if type_id == VIDEO]


def test_a_publisher_that_is_lost_and_returns_is_recorded_in_one_file(grace):
    server, directory = grace
    for number in range(3):
        publish_and_break(server, 2 * number, 2 * number + 1)
        wait_for_loss(server, number + 1)
        assert files(directory) in ([], ["cam-1.flv.part"])
    publish(server, "cam")
    server.wait_for_line(r"live/cam: recorded ")
    assert files(directory) == ["cam-1.flv"]
    found = videos(directory / "cam-1.flv")
    sent = [item.payload for number in (0, 1, 2, 3, 4, 5, 0, 1) for item in gop(number) if item.type_id == VIDEO]
    assert [payload for _, payload in found] == [AVC_HEADER, *sent]
    # It begins at 0, whatever the publishers' clocks, and the time between them is in the file.
    assert found[0][0] == 0


def test_a_publisher_that_returns_with_other_parameters_begins_another_file(grace):
    server, directory = grace
    publish_and_break(server, 0, 1)
    wait_for_loss(server)
    publish_and_break(server, 2, 3, AVC_HEADER_2)
    wait_for_loss(server, 2)
    publish_and_break(server, 4, 5, AVC_HEADER_2)
    wait_for_loss(server, 3)
    assert server.stop() == 0
    assert files(directory) == ["cam-1.flv", "cam-2.flv"]
    first, second = (videos(directory / name) for name in files(directory))
    sent = [[item.payload for item in gop(number) if item.type_id == VIDEO] for number in range(6)]
    assert [payload for _, payload in first] == [AVC_HEADER, *sent[0], *sent[1]]
    assert [payload for _, payload in second] == [AVC_HEADER_2, *sent[2], *sent[3], *sent[4], *sent[5]]
    assert second[1] == (0, sent[2][0])


def test_parameters_that_change_within_a_publish_begin_another_file(grace):
    server, directory = grace
    with Client(server.url("cam")) as client:
        client.publish()
        send(client, [*headers(), *gop(0), headers(160)[1], *gop(1)])
        client.send(VIDEO, 320, AVC_HEADER_2)
        send(client, gop(2))
        client.unpublish()
    server.wait_for_line(r"recorded .*/cam-2\.flv")
    assert len(videos(directory / "cam-1.flv")) == 10
    assert [payload for _, payload in videos(directory / "cam-2.flv")][:2] == [AVC_HEADER_2, gop(2)[0].payload]


def test_an_unpublish_closes_the_file_at_once(grace):
    server, directory = grace
    with Client(server.url("cam")) as client:
        client.publish()
        send(client, [*headers(), *gop(0)])
        client.unpublish()
        server.wait_for_line(r"live/cam: recorded ", 5)
    # The next publish is another recording.
    publish(server, "cam")
    server.wait_for_line(r"live/cam: recorded .*/cam-1-2\.flv", 5)
    assert files(directory) == ["cam-1-2.flv", "cam-1.flv"]


def test_a_takeover_continues_the_file(server, tmp_path):
    ini = f"record_all = yes\nrecord_directory = {tmp_path / 'recordings'}\nrecord_file_name = {{name}}-{{n}}\n"
    made = server(f"[publish]\non_conflict = takeover\ntakeover_by = any\n[record]\n{ini}", level="info")
    with Client(made.url("cam")) as first, Client(made.url("cam")) as second:
        for number, client in enumerate((first, second)):
            client.publish()
            send(client, [*headers(), *gop(number)])
        made.wait_for_line(r"stopped publishing live/cam: another publisher took over")
        send(second, gop(2))
        second.unpublish()
        made.wait_for_line(r"live/cam: recorded ")
    assert files(tmp_path / "recordings") == ["cam-1.flv"]
    sent = [item.payload for number in range(3) for item in gop(number) if item.type_id == VIDEO]
    assert [payload for _, payload in videos(tmp_path / "recordings" / "cam-1.flv")] == [AVC_HEADER, *sent]


@pytest.mark.parametrize(("avc", "count"), [(AVC_HEADER, 1), (AVC_HEADER_2, 2)])
def test_a_failover_continues_the_file_unless_the_parameters_differ(server, tmp_path, avc, count):
    ini = f"record_all = yes\nrecord_directory = {tmp_path / 'recordings'}\nrecord_file_name = {{name}}-{{n}}\n"
    made = server(f"[publish]\non_conflict = backup\nmatch_copies = no\n[record]\n{ini}", level="info")
    with Client(made.url("cam")) as backup:
        with Client(made.url("cam")) as primary:
            primary.publish()
            send(primary, [*headers(), *gop(0)])
            backup.publish()
            send(backup, [item._replace(payload=avc) if item.type_id == VIDEO else item for item in headers()])
            send(backup, gop(1))
        made.wait_for_line(r"live/cam: the backup from \S+ is active from now on")
        send(backup, gop(2))
        backup.unpublish()
        for _ in range(count):
            made.wait_for_line(rf"recorded .*/cam-{count}\.flv")
    found = [videos(tmp_path / "recordings" / name) for name in files(tmp_path / "recordings")]
    assert len(found) == count
    sent = [item.payload for number in range(3) for item in gop(number) if item.type_id == VIDEO]
    assert [payload for file in found for _, payload in file if payload not in (AVC_HEADER, AVC_HEADER_2)] == sent
    assert found[-1][0][1] == avc


FLOOD = 4_000
PUBLISHERS = 4


@pytest.mark.timeout(400)
def test_many_short_streams_leave_a_file_each_and_no_memory(server, tmpfs):
    # In memory: each recording is written through to its disk, which takes a while on a real one.
    in_memory = tmpfs("2g")
    ini = f"{RECORD.format(in_memory)}record_all = yes\nrecord_file_name = {{app}}/{{name}}\nsegment_duration_s = 10\n"
    made = server(ini, level="info")
    short = [*headers(), *gop(0)]

    def publish_some(first: int, last: int) -> None:
        for number in range(first, last):
            with Client(made.url(f"short{number}"), handshake="plain") as client:
                client.publish()
                send(client, short)

    publish_some(0, 500)
    before_mb = made.rss_mb()
    rest = (FLOOD - 500) // PUBLISHERS
    workers = [gevent.spawn(publish_some, 500 + rest * index, 500 + rest * (index + 1)) for index in range(PUBLISHERS)]
    while not all(worker.dead for worker in workers):
        made.log()  # so that it never waits for its reader
        gevent.sleep(0.05)
    gevent.joinall(workers, raise_error=True)

    def recorded() -> bool:
        made.log()
        return sum(path.endswith(".flv") for path in files(in_memory)) == FLOOD

    wait_until(recorded, "all files", 60)
    assert made.rss_mb() - before_mb < 8
    assert len(files(in_memory)) == FLOOD


@pytest.mark.parametrize(
    ("zeros", "kept"), [(4096, "no copy of it was kept"), (300 << 10, r"as it was: .*/live/cam\.flv\.broken")]
)
def test_a_damaged_part_is_repaired_around_the_damage_with_a_warning(recorder, tmp_path, zeros, kept):
    data = bytearray(recording(10_000))
    data[len(data) // 10 : len(data) // 10 + zeros] = bytes(zeros)
    write(tmp_path / "recordings/live/cam.flv.part", bytes(data))
    server, directory = recorder()
    server.wait_for_line(rf"INFO +repaired .*/live/cam\.flv; 400\.0 s, {len(data)} bytes, 0 bytes cut off$")
    text = r"WARNING .*/live/cam\.flv was damaged: lost (\d+) bytes \(\d+\.\d s\) in 1 places and 0 bytes at its end; "
    assert zeros < int(server.wait_for_line(text + kept)[1]) < zeros + 2000
    assert frames(directory / "live/cam.flv") > 15_000
    broken = directory / "live/cam.flv.broken"
    assert (broken.read_bytes() == data) if zeros > 4096 else not broken.exists()


# MP4 ----------------------------------------------------------------------------------------------------------------------


def mp4_frames(path: Path) -> int:
    """Return the number of frames of a finished recording as MP4."""
    with path.open("rb") as file:
        result = mp4_scan(file)
    assert (result.ours, result.gaps, result.rest_bytes) == (True, (), 0)
    assert all_kinds(path.read_bytes())[-1] == b"mfra"
    return result.frames


def test_each_application_has_its_format_and_a_reload_changes_that_of_the_next_file(server, tmp_path):
    directory, ini = tmp_path / "recordings", tmp_path / "rtmpd.ini"
    options = "record_all = yes\nrecord_file_name = {app}/{name}-{n}\n[applications]\n[[*]]\n[[studio]]\nrecord_format = mp4\n"
    made = server(RECORD.format(directory) + options, level="info")
    publish(made, "a", "studio", gops=10)
    publish(made, "a", "live", gops=10)
    for key in ("studio/a", "live/a"):
        made.wait_for_line(rf"{key}: recorded ")
    assert files(directory) == ["live/a-1.flv", "studio/a-1.mp4"]
    assert mp4_frames(directory / "studio/a-1.mp4") == frames(directory / "live/a-1.flv")
    ini.write_text(ini.read_text().replace("mp4", "flv"))
    made.process.send_signal(signal.SIGHUP)
    made.wait_for_line(r"configuration reloaded: \[\[studio\]\] record_format = flv")
    publish(made, "c", "studio")
    made.wait_for_line(r"studio/c: recorded .*/c-1\.flv")


def test_mp4_is_rotated_by_size_and_whole_on_a_full_disk(server, tmpfs):
    directory = tmpfs("2m")
    options = "record_all = yes\nrecord_format = mp4\nrecord_file_name = {name}-{n}\nsegment_size_bytes = 400000\n"
    made = server(RECORD.format(directory) + options + "disk_reserve_bytes = 1\nrecord_retry_s = 1h\n", level="info")
    with Client(made.url("a")) as client:
        client.publish()
        send(client, headers())
        for number in range(40):
            send(client, [item._replace(payload=item.payload + b"x" * 10_000) for item in gop(number)])
        made.wait_for_line(r"ERROR +live/a: can't record .*; retrying every 3600 s \(record_retry_s\)")
        for _ in range(2):
            made.wait_for_line(r"live/a: recorded ")
        wait_until(lambda: not any(name.endswith(".part") for name in files(directory)), "all files")
    assert len(files(directory)) >= 3
    for name in files(directory):
        with (directory / name).open("rb") as file:
            assert mp4_scan(file).rest_bytes == 0


def test_parts_of_mp4_are_repaired_and_announced(recorder, tmp_path):
    scene = Mp4Scene()
    scene.begin()
    scene.seconds(0, 5)
    data = scene.files[1].getvalue()
    write(tmp_path / "recordings/live/cam.mp4.part", data + b"the beginning of a fragment")
    server, directory = recorder()
    server.wait_for_line(r"INFO +repaired .*/live/cam\.mp4; 4\.0 s, \d+ bytes, 27 bytes cut off$")
    assert files(directory) == ["live/cam.mp4"]
    assert mp4_frames(directory / "live/cam.mp4") > 190
