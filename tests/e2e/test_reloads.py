"""A hundred reloads, each of a changed file, while streams continue and lose nothing."""

from __future__ import annotations

import re
import signal
import subprocess
from typing import TYPE_CHECKING

from tests.e2e.media import AT_ONCE, assert_same, until, wait_for_plays
from tests.integration.beside import Bystander

if TYPE_CHECKING:
    from pathlib import Path

RELOADS = 100
RECORDING = 3 * RELOADS  # of the files, one that records everything
CLIP = "h264_aac_minute"
QUICK = (
    # Reloads rest a quarter of a second in between, which would be all that this test waits for.
    "from rtmpd.daemon import supervision; supervision._RELOAD_REST_S = 0.01\n"
    "import sys; from rtmpd import cli; sys.exit(cli.main())"
)

CHANGES = {
    "log": ["level = debug", "level = info\nstream_summary_s = 1", "level = info\naccess_log_file = {tmp}/access.{n}"],
    "limits": ["players_per_stream_limit = 1{n}", "command_limit = 1{n}", "gop_cache_limit_bytes = 1{n}K"],
    "backpressure": ["lag_limit_s = 1{n}", "lag_limit_bytes = 9{n}K"],
    "auth": ["auth_mode = token\nauth_tokens = live/other=token{n}", "publish_deny = 192.0.2.{n}", "auth_ban_s = {n}0"],
    "relay": ["relay_to = rtmp://127.0.0.1:9/live/{{name}}_{n}", "relay_retry_s = 1"],
    "record": [
        "record_streams = live/*\nrecord_directory = {tmp}/recordings",
        "record_streams = live/b*\nrecord_directory = {tmp}/recordings\nrecord_file_name = {{name}}-{n}",
        "record_directory = {tmp}/recordings\nsegment_duration_s = 1{n}",
    ],
    "metrics": ["stream_series_limit = 1{n}"],
    "hooks": ["hook_scripts = publish_*=/bin/true {n}", "hook_scripts = *=/bin/false", "hook_timeout_s = 1{n}"],
    "applications": ["[[live]]", "[[live]]\ngop_cache = no", "[[live]]\n[[studio{n}]]"],
}
"""What a file has of each section: one of these after the other."""


def text_of(number: int, directory: Path) -> str:
    """Return a file that is different from the one before in every section. An address comes and goes."""
    more = ", 127.0.0.2:0" if number % 3 == 0 else ""
    text = f"{AT_ONCE}[server]\nlisten = 127.0.0.1:0{more}\nread_timeout_s = {number + 60}\n"
    for section, options in CHANGES.items():
        text += f"[{section}]\n{options[number % len(options)].format(n=number, tmp=directory)}\n"
    return text


class Encoder:
    """An ffmpeg that publishes until it is asked to end, and then says how many pictures it has sent."""

    def __init__(self, ffmpeg: str, clip: Path, url: str, directory: Path) -> None:
        self._progress, self._errors = directory / "progress", directory / "errors"
        command = [ffmpeg, "-v", "error", "-re", "-copyts", "-progress", self._progress, "-i", clip, "-map", "0", "-c", "copy"]
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*map(str, command), "-flvflags", "no_duration_filesize", "-f", "flv", url],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def finish(self) -> int:
        """End as with the key q; return the number of pictures."""
        self.process.communicate(b"q", timeout=30)
        assert (self.process.returncode, self._errors.read_text()) == (0, "")
        return int(re.findall(r"^frame=(\d+)$", self._progress.read_text(), re.MULTILINE)[-1])


def test_a_hundred_reloads_of_changed_files_cost_no_message(server, programs, clips, ffmpeg, tmp_path):
    running = server(text_of(1, tmp_path), start=("-c", QUICK))
    player = programs.play(running.url())
    wait_for_plays(running, "live/test")
    bystander = Bystander(running)
    encoder = Encoder(ffmpeg, clips[CLIP], running.url(), tmp_path)
    try:
        until(lambda: player.has_reached(200), "a stream")
        bystander.check()
        for number in range(1, RELOADS + 1):
            (tmp_path / "rtmpd.ini").write_text(text_of(1 + number, tmp_path))
            running.process.send_signal(signal.SIGHUP)
            # Each is one of its own: the file is not changed again before it was read.
            until(lambda n=number: len(reloads(running)) == n, f"reload {number}", 10)
            assert encoder.process.poll() is None, "the clip was too short"
        # The last one records, and stays: a recording may take longer to begin than a file of the others is in force.
        (tmp_path / "rtmpd.ini").write_text(text_of(RECORDING, tmp_path))
        running.process.send_signal(signal.SIGHUP)
        until(lambda: any("live/bystander: recording to " in line for line in running.log()), "a recording", 10)
        bystander.check()
        pictures = encoder.finish()
    finally:
        encoder.process.kill()
        bystander.close()
    player.succeed()
    assert_whole(player, clips.packets(CLIP), pictures)
    log = "\n".join(running.log())
    # They did something. Summaries are not among what must be seen: each file is in force for less than their interval.
    assert all(", " in line and "nothing has changed" not in line for line in reloads(running))
    for sign in ("no longer listening on 127.0.0.2:", "relay"):
        assert re.search(sign, log), sign
    assert "reload failed" not in log
    assert len(list(tmp_path.glob("access.*"))) >= RELOADS // 3


def reloads(running) -> list[str]:
    return [line for line in running.log() if "configuration reloaded: " in line]


def assert_whole(player, sent, pictures: int) -> None:
    """Assert that a player has what was sent of a clip, to the last picture, and each once."""
    got = player.packets()
    assert len(got["video 0"]) == len(player.pictures()) == pictures
    assert_same(got, {name: track[: len(got[name])] for name, track in sent.items()})
