"""Tests of the bench's turns: pauses, commands, and the ratios of pairs."""

import json
import os

import pytest

from bench import __main__ as command_line
from bench import paired, servers, turns


class Turn:
    """A contender with given costs of its turns."""

    def __init__(self, name, *costs_us):
        self.name = name
        self.turns = [{"us_per_message": cost_us} for cost_us in costs_us]


def test_a_ratio_is_the_median_of_pairs_and_not_of_servers():
    # The machine becomes slower from turn to turn, for both.
    figures = paired._ratios(Turn("rtmpd", 3, 6, 12, 24, 30), Turn("nginx", 1, 2, 4, 8, 30))
    assert figures == {"ratio": "rtmpd/nginx", "cpu_ratio": 3.0, "quartiles": "3.00..3.00", "turns": 5}


def test_one_turn_has_a_ratio():
    assert paired._ratios(Turn("a", 3), Turn("b", 2))["quartiles"] == "1.50..1.50"


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    os.close(read)


def test_commands_come_in_order_and_the_end_of_the_input_is_the_end(pipe):
    read, write = pipe
    loop = turns.FineLoop()
    commands = turns.Commands(loop, read)
    os.write(write, b'{"command": "pause"}\n{"command": "turn", "seconds": 1}\n{"comm')
    assert commands.next(lambda: loop.turn(10)) == {"command": "pause"}
    assert commands.next(lambda: loop.turn(10)) == {"command": "turn", "seconds": 1}
    os.write(write, b'and": "acknowledge"}\n')
    os.close(write)
    assert commands.next(lambda: loop.turn(10)) == {"command": "acknowledge"}
    assert commands.next(lambda: loop.turn(10)) == {"command": "end"}


class Clock:
    now_ns = 1_000_000_000

    def monotonic_ns(self):
        return self.now_ns


def test_a_pause_moves_the_schedule_and_leaves_media_time(monkeypatch):
    """What was due 5 ms after the pause is due 5 ms after the resumption: no burst, no gap in the timestamps."""
    clock = Clock()
    monkeypatch.setattr(turns.time, "monotonic_ns", clock.monotonic_ns)
    run = turns.TurnPublishers.__new__(turns.TurnPublishers)
    first, second = (type("Publisher", (), {"start_ns": clock.now_ns, "video": 7})() for _ in range(2))
    run.publishers = [first, second]
    due = [(clock.now_ns + 5_000_000, 0, first), (clock.now_ns + 9_000_000, 1, second)]
    run.load = type("Load", (), {"due": due})()
    run._pause()
    assert not run.load.due
    clock.now_ns += 4_000_000_000
    run._resume()
    assert run.load.due == [(clock.now_ns + 5_000_000, 0, first), (clock.now_ns + 9_000_000, 1, second)]
    assert {each.start_ns for each in run.publishers} == {5_000_000_000}
    assert {each.video for each in run.publishers} == {7}


def test_further_servers_are_started_as_the_first(tmp_path):
    also = "before=env -u PYTHONPATH -C /old python -m rtmpd --listen 127.0.0.1:{port}"
    arguments = ["many", "--server-command", "rtmpd --listen :{port}", "--pure", "--also", also]
    options = command_line.parser().parse_args(arguments)
    kinds = servers.many_kinds(options, servers.UNPACED_INI, "-unpaced")
    assert [kind.name for kind in kinds] == ["rtmpd-unpaced", "rtmpd-pure-unpaced", "before-unpaced"]
    ini = ["-c", str(tmp_path / "rtmpd.ini")]
    assert kinds[1].argv(tmp_path, 19) == ["env", "RTMPD_PURE=1", "rtmpd", "--listen", ":19", *ini]
    assert kinds[2].argv(tmp_path, 19)[:5] == ["env", "-u", "PYTHONPATH", "-C", "/old"]
    assert kinds[2].argv(tmp_path, 19)[-3:] == ["127.0.0.1:19", *ini]


@pytest.mark.parametrize("text", ["rtmpd", "=rtmpd", "before="])
def test_a_further_server_needs_a_name_and_a_command(text, capsys):
    with pytest.raises(SystemExit):
        command_line.parser().parse_args(["many", "--also", text])
    assert "not NAME=COMMAND" in capsys.readouterr().err


def test_the_clock_of_a_process_counts_its_cpu_time():
    start_ns = servers.cpu_ns(os.getpid())
    json.dumps(list(range(100_000)))
    assert servers.cpu_ns(os.getpid()) - start_ns > 100_000
