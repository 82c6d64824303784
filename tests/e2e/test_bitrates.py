"""Slow and fast streams arrive whole, at the same time, through the same server."""

from __future__ import annotations

from tests.e2e.media import AT_ONCE, assert_same, wait_for_plays

KBIT_S = {"slow": (800, 1300), "fast": (45_000, 70_000)}


def test_streams_of_1_and_50_megabits_per_second_arrive_without_a_gap(server, programs, clips):
    for name, (low, high) in KBIT_S.items():
        video = clips.packets(name)["video 0"]
        seconds = (video[-1].dts - video[0].dts + 40) / 1000
        assert low < sum(packet.size for packet in video) * 8 / 1000 / seconds < high, name

    running = server(AT_ONCE)
    players = {name: [programs.play(running.url(name)) for _ in range(2)] for name in KBIT_S}
    for name in KBIT_S:
        wait_for_plays(running, f"live/{name}", 2)
    # FFmpeg may close its end with our last acknowledgement unread, and the kernel then resets the connection: with Nagle's
    # algorithm the last small packets would still be on its side, and be lost.
    publishers = [programs.publish(name, running.url(name), "-tcp_nodelay", 1) for name in KBIT_S]
    for publisher in publishers:
        publisher.succeed()
    for name in KBIT_S:
        for player in players[name]:
            player.succeed()
            assert_same(player.packets(), clips.packets(name), name)
    skips = [line for line in running.log() if "stopped playing" in line]
    assert len(skips) == 4
    assert all(line.endswith(" 0 skips, 0 messages dropped") for line in skips)
