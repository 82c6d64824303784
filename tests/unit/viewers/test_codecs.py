"""Viewers that wait for the codecs of a stream."""

from __future__ import annotations

import time
from types import SimpleNamespace

import gevent
import pytest

from rtmpd.errors import TransportClosed
from rtmpd.viewers import codecs, formats
from rtmpd.viewers.codecs import CodecWatch, Mp4Codecs
from rtmpd.viewers.formats import FlvFormat

NOTHING, KNOWN = Mp4Codecs("", "", False), Mp4Codecs("video/mp4", "", True)
VIEWERS = 30


def test_viewers_that_are_woken_at_once_leave_turns_to_others(monkeypatch):
    found, begun, ticks = [NOTHING], [], []
    monkeypatch.setattr(codecs, "mp4_codecs", lambda stream: found[0])
    watch = CodecWatch(lambda key: None)
    watch.start()

    def view():
        begun.append(watch.wait("live/test", 10, lambda: None))
        until_s = time.perf_counter() + 0.002
        while time.perf_counter() < until_s:
            pass

    def tick():
        while len(begun) < VIEWERS:
            gevent.sleep(0.0005)
            ticks.append(len(begun))

    greenlets = [*[gevent.spawn(view) for _ in range(VIEWERS)], gevent.spawn(tick)]
    gevent.sleep(0.01)
    found[0] = KNOWN
    gevent.joinall(greenlets, timeout=10)
    watch.stop()
    assert begun == [KNOWN] * VIEWERS
    assert len(set(ticks)) > VIEWERS / 2


def test_a_viewer_that_leaves_waits_for_no_tracks(monkeypatch):
    monkeypatch.setattr(formats, "is_complete", lambda stream: False)
    stream = SimpleNamespace(ingest=SimpleNamespace(active=object()))
    asked = []

    def ensure_open():
        asked.append(True)
        if len(asked) == 2:
            raise TransportClosed("closed by the client")

    with gevent.Timeout(10), pytest.raises(TransportClosed):
        FlvFormat(lambda key: stream).wait("live/test", ensure_open, long=False)
    assert len(asked) == 2


def test_codecs_that_cannot_be_found_out_end_no_other_wait(monkeypatch, caplog):
    found = {"bad": NOTHING, "good": NOTHING}

    def mp4_codecs(key):
        if found[key] is None:
            raise ZeroDivisionError
        return found[key]

    monkeypatch.setattr(codecs, "mp4_codecs", mp4_codecs)
    # Viewers do not look themselves.
    monkeypatch.setattr(codecs, "_CHECK_S", 60)
    watch = CodecWatch(lambda key: key)
    watch.start()
    bad, good = (gevent.spawn(watch.wait, key, 30, lambda: None) for key in found)
    gevent.sleep(0.01)
    found["bad"] = None
    gevent.joinall([bad], timeout=10)
    assert isinstance(bad.exception, ZeroDivisionError)
    assert "the codecs of bad are not known" in caplog.text
    found["good"] = KNOWN
    assert good.get(timeout=10) == KNOWN
    watch.stop()
