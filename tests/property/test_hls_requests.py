"""Random requests for media playlists while a stream goes on: each answer is right, and keeps the rules."""

from __future__ import annotations

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hls_rules import Client, parse
from tests.unit.services.hls.stage import FakePackager, Rendition, Stage

MEDIA = "/live/test/main/media.m3u8"


@pytest.fixture(scope="module")
def stage():
    made = Stage()
    made.publish()
    yield made
    made.close()


def newest(playlist):
    """The sequence number of the last segment, and how many parts of the next one there are."""
    last = playlist.segments[-1].number if playlist.segments else playlist.first - 1
    return last, len(playlist.open.parts) if playlist.open else 0


def check(reply, number, part, skip):
    playlist = parse(reply.text)
    assert playlist.violations == []
    last, parts = newest(playlist)
    if number is not None:
        # The segment is complete, or the part is there; one behind the end of a segment is the first of the next.
        assert last >= number or (part is not None and last + 1 == number and parts > part), (number, part, last, parts)
    assert not playlist.skipped or skip


directives = st.tuples(
    st.one_of(st.none(), st.integers(-8, 6)), st.one_of(st.none(), st.integers(0, 5), st.just(40)), st.booleans()
)
steps = st.lists(st.one_of(st.integers(1, 9), directives), max_size=25)


@given(steps, st.booleans())
def test_each_request_gets_what_it_asks_for_or_is_told_why_not(stage, actions, ends):
    rendition = Rendition()
    stage.hls.packagers["live/test"] = FakePackager("live/test", rendition)
    window = rendition.window
    rendition.add(4)
    loader = Client(has_keyframes=False)
    held = []
    sock = stage.connect()
    for action in actions:
        if isinstance(action, int):
            rendition.add(action)
            assert loader.load(stage.get(f"{MEDIA}?_HLS_skip=YES", sock=sock).text, skip=loader.before is not None) == []
            continue
        offset, part, skip = action
        number = None if offset is None else window.last_number + offset
        query = f"_HLS_msn={number}&" if number is not None else ""
        query += f"_HLS_part={part}&" if part is not None else ""
        query += "_HLS_skip=YES" if skip else ""
        last, parts = window.last_number, len(window.open.parts)
        bad = (number is None and part is not None) or (number is not None and (number > last + 2 or number < 0))
        bad |= number == last + 1 and part is not None and part >= parts + window.targets.advance_parts
        bad |= number == last + 2 and part is not None and part >= window.targets.advance_parts
        if bad:
            assert stage.get(f"{MEDIA}?{query}", sock=sock).status == 400, query
        else:
            held.append((stage.later(f"{MEDIA}?{query}"), number, part, skip))
            gevent.sleep(0)
    gevent.sleep(0.001)
    for _ in range(4):
        rendition.add(4)
        gevent.sleep(0.001)
    if ends:
        rendition.end()
    for greenlet, number, part, skip in held:
        reply = greenlet.get(timeout=10)
        assert reply.status == 200, (number, part, reply)
        if not window.ended:
            check(reply, number, part, skip)
    sock.close()
