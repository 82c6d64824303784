"""Players that read too slowly lose frames or their connection; other clients lose nothing."""

from __future__ import annotations

import itertools

import gevent
import pytest

from tests.integration.wire import (
    AUDIO,
    AVC_HEADER,
    AVC_HEADER_2,
    DATA,
    METADATA,
    VIDEO,
    Item,
    inter,
    key,
    metadata,
    played,
    send_headers,
    sound,
)

INI = """
[server]
unsent_limit_bytes = 16384
write_timeout_s = 60
[backpressure]
lag_limit_bytes = 400000
"""
CUTTING_INI = """
[server]
unsent_limit_bytes = 16384
write_timeout_s = 1
[backpressure]
lag_limit_bytes = 400000
"""
FRAME_BYTES = 20_000
GROUP = 10


class Flood:
    """A publisher of big frames and its fast player, which must get every frame."""

    def __init__(self, server, raw, name) -> None:
        self.fast = raw(server).play(name)
        self.encoder = raw(server).publish(name)
        send_headers(self.encoder)
        self.number = 0
        self.sent: list[Item] = []
        self.got: list[Item] = []
        self.send(1)

    def item(self) -> Item:
        n = self.number
        self.number += 1
        return Item(VIDEO, n * 40, inter(n, FRAME_BYTES) if n % GROUP else key(n, FRAME_BYTES))

    def send(self, count: int) -> None:
        """Send frames, each when the fast player has had the one before it."""
        for _ in range(count):
            item = self.item()
            self.encoder.send(*item)
            self.sent.append(item)
            self.got += played(self.fast, item)
            self.encoder.available()

    def extra(self, item: Item) -> None:
        """Send something else among the frames."""
        self.encoder.send(*item)
        self.sent.append(item)

    def check(self) -> None:
        assert self.got[3:] == self.sent
        assert len(self.got) == len(self.sent) + 3


def stuck(server, raw, name):
    """Connect a player with a small receive buffer, which then does not read."""
    return raw(server, receive_buffer=4096).play(name)


def read_all(wire, last):
    """Return the media that a slow player gets when it reads at last; every message must be whole."""
    got = played(wire, last, limit_s=20)
    for one in got:
        assert one.type_id in (AUDIO, VIDEO, DATA)
    return got


def test_a_stuck_player_skips_to_a_keyframe_and_other_players_get_everything(shared, raw, name):
    flood = Flood(shared, raw, name)
    slow = stuck(shared, raw, name)
    flood.send(120)
    got = read_all(slow, flood.sent[-1])
    flood.check()
    assert got[:3] == flood.got[:3]
    frames = [one for one in got if one.type_id == VIDEO][1:]
    assert set(frames) <= set(flood.sent)
    numbers = [one.timestamp // 40 for one in frames]
    assert numbers == sorted(set(numbers))
    jumps = [b for a, b in itertools.pairwise(numbers) if b != a + 1]
    assert jumps
    assert all(number % GROUP == 0 for number in jumps), numbers
    # Nothing is far behind: what it gets at the end is at most the last two groups, after what its buffers held.
    assert jumps[-1] >= 100
    # Headers that did not change are not sent again.
    assert [one.payload for one in got].count(AVC_HEADER) == 1
    slow.close()
    shared.wait_for_line(rf"stopped playing live/{name}: .* [1-9]\d* skips?, [1-9]\d* messages? dropped$")


def test_changed_headers_are_sent_before_the_keyframe_that_a_player_skips_to(shared, raw, name):
    flood = Flood(shared, raw, name)
    slow = stuck(shared, raw, name)
    flood.send(59)
    changed = metadata({**METADATA, "width": 1.0})
    flood.extra(Item(DATA, 0, changed))
    flood.extra(Item(VIDEO, 2400, AVC_HEADER_2))
    flood.send(61)
    got = read_all(slow, flood.sent[-1])
    flood.check()
    after = next(i for i, one in enumerate(got) if one.payload == AVC_HEADER_2)
    first_key = next(one for one in got[after + 1 :] if one.type_id == VIDEO)
    assert first_key.payload[0] == 0x17
    assert changed in [one.payload for one in got]
    assert all(one.timestamp >= 2400 for one in got[after:] if one.type_id == VIDEO)


def test_a_player_that_reads_nothing_is_cut_after_the_write_timeout(server, raw, name):
    running = server(CUTTING_INI)
    flood = Flood(running, raw, name)
    slow = stuck(running, raw, name)
    flood.send(40)
    line = running.wait_for_line(rf"{slow.address} closed: (.*)")[1]
    assert line.startswith("it took nothing for 1 s")
    flood.send(40)
    flood.check()


def test_a_player_that_reads_slowly_is_not_cut(server, raw, name):
    running = server(CUTTING_INI)
    flood = Flood(running, raw, name)
    slow = stuck(running, raw, name)
    # 20 kB/s for longer than the timeout and two sweeps.
    for _ in range(60):
        flood.send(3)
        slow.read_exactly(1000)
        gevent.sleep(0.05)
    assert not [line for line in running.log() if slow.address in line and "closed" in line]
    flood.check()


def test_audio_only_laggards_skip_too(shared, raw, name):
    fast = raw(shared).play(name)
    encoder = raw(shared).publish(name)
    encoder.send(AUDIO, 0, sound(0, 5000))
    first = played(fast, sound(0, 5000))
    slow = stuck(shared, raw, name)
    sent = [Item(AUDIO, n * 100, sound(n, 5000)) for n in range(1, 600)]
    for item in sent:
        encoder.send(*item)
        assert played(fast, item) == [item]
    got = read_all(slow, sent[-1])
    stamps = [one.timestamp for one in got]
    assert stamps == sorted(set(stamps))
    assert set(got) <= {*first, *sent}
    assert len(got) < len(sent)


def test_replies_reach_a_player_that_was_stuck_between_whole_messages(shared, raw, name):
    flood = Flood(shared, raw, name)
    slow = stuck(shared, raw, name)
    flood.send(20)
    for _ in range(5):
        slow.command("getStreamLength", name)
        flood.send(4)
    last = slow.command("getStreamLength", name)
    answer = slow.answer(last)
    assert answer.argument(0) == 0
    videos = [Item(one.type_id, one.timestamp, one.payload) for one in slow.seen if one.type_id == VIDEO]
    assert set(videos[1:]) <= set(flood.sent)
    assert [c.name for c in slow.commands_seen()].count("_result") == 5
    flood.check()


def test_a_player_that_asks_and_never_reads_the_answers_is_cut(shared, raw, name):
    flood = Flood(shared, raw, name)
    slow = stuck(shared, raw, name)
    pings = slow.frame(4, 0, b"\0\x06\0\0\0\x01", 2, 0) * 3_000_000
    with pytest.raises(ConnectionError):
        slow.write(pings)
    shared.wait_for_line(rf"{slow.address} closed: it does not read the replies to its commands")
    assert shared.rss_mb() < 150
    flood.send(20)
    flood.check()


@pytest.mark.parametrize("command", ["pause", "closeStream", "receiveVideo"])
def test_a_stuck_player_that_changes_its_mind_gets_whole_messages(shared, raw, name, command):
    flood = Flood(shared, raw, name)
    slow = stuck(shared, raw, name)
    flood.send(60)
    slow.command(command, command == "pause", tid=0, msid=1)
    flood.send(60)
    # What was half sent is finished, then comes the answer.
    code = {"pause": "NetStream.Pause.Notify", "closeStream": "NetStream.Play.Stop"}.get(command)
    if code:
        slow.status(code)
    else:
        slow.command("getStreamLength", name)
        slow.wait_for(lambda c: c.name == "_result" and c.argument(0) == 0)
    videos = [Item(one.type_id, one.timestamp, one.payload) for one in slow.seen if one.type_id == VIDEO]
    assert set(videos[1:]) <= set(flood.sent)
    flood.check()
    slow.close()
    shared.wait_for_line(f"{slow.address} closed: ")
