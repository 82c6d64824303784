"""Publish H.264-shaped and AAC-shaped messages at a steady rate, each with the time and a number inside.

Runs as a process of its own: ``python -m bench.publisher --port N``. It prints one JSON line when all publishers are
live and one with its figures at the end (after --seconds, or on SIGTERM).
"""

import argparse
import heapq
import json
import mmap
import os
import resource
import signal
import struct
import time
from pathlib import Path

from bench import rtmp, wire
from bench.servers import ServerSample, core_figures

FRAMES_PER_S = 30
GOP_S = 2
GOP_FRAMES = FRAMES_PER_S * GOP_S
KEY_FRAME_TIMES = 8  # a keyframe is this many times an inter frame
AUDIO_BYTES = 170  # 64 kbit/s AAC
AUDIO_SAMPLES, AUDIO_RATE = 1024, 48000
CHUNK_BYTES = 4096  # what OBS and ffmpeg-based encoders set
CLOCK_MARK = b"rtmpd-bench-mark"  # sixteen bytes, so that it can be the UUID of an SEI message
STAMP = struct.Struct(">QI")  # CLOCK_MONOTONIC in ns, then the number of the message in its track
PENDING_LIMIT_BYTES = 4 * 1024 * 1024
CHUNK_HEADER_BYTES = 12

# Main profile, level 3.1, 1280x720; then AAC-LC, 48 kHz, stereo.
AVC_HEADER = bytes.fromhex("1700000000 014d401fffe10017674d401fda014016ec0440000003004000000f03c60ca8 01000468ef0fc8")
AAC_HEADER = bytes.fromhex("af001190")
KEY_SLICE, NEEDED_SLICE, DISPOSABLE_SLICE = b"\x65", b"\x41", b"\x01"


class Published:
    """Messages published so far on each stream, in shared memory: players read the counts in the middle of a run."""

    FIELDS = struct.Struct("=QQ")

    def __init__(self, path, *, create=0):
        """Open the file; create it for this many streams if *create* is not 0."""
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
        if create:
            os.ftruncate(descriptor, create * self.FIELDS.size)
        self._map = mmap.mmap(descriptor, 0)
        os.close(descriptor)

    def read(self, stream=0):
        """Return the video and audio messages of a stream."""
        return self.FIELDS.unpack_from(self._map, stream * self.FIELDS.size)

    def write(self, stream, video, audio):
        self.FIELDS.pack_into(self._map, stream * self.FIELDS.size, video, audio)


def inter_frame_bytes(kbps):
    """Return the size of an inter frame, so that a whole GOP has the bitrate."""
    return max(96, int(kbps * 1000 / 8 * GOP_S / (GOP_FRAMES - 1 + KEY_FRAME_TIMES)))


def _video_payload(size, slice_type):
    """An AVC tag with two NAL units: an SEI message that holds the stamp, and a slice of noise."""
    key = slice_type == KEY_SLICE
    sei = b"\x06\x05" + bytes([len(CLOCK_MARK) + STAMP.size]) + CLOCK_MARK + bytes(STAMP.size) + b"\x80"
    start = bytes([0x17 if key else 0x27, 1, 0, 0, 0]) + len(sei).to_bytes(4, "big") + sei
    slice_bytes = size - len(start) - 4
    noise = bytes(value | 0x80 for value in os.urandom(slice_bytes - 1))  # never looks like a start code
    return start + slice_bytes.to_bytes(4, "big") + slice_type + noise


def _audio_payload():
    start = b"\xaf\x01" + CLOCK_MARK + bytes(STAMP.size)
    return start + b"Z" * (AUDIO_BYTES - len(start))


class Template:
    """A message cut into chunks once, of which only timestamp, stream id and stamp change."""

    def __init__(self, chunk_stream, kind, payload):
        self.data = wire.message(chunk_stream, kind, 0, payload, CHUNK_BYTES)
        self._stamp_at = CHUNK_HEADER_BYTES + payload.index(CLOCK_MARK) + len(CLOCK_MARK)

    def stamped(self, stream_id, timestamp_ms, number, time_ns):
        self.data[1:4] = timestamp_ms.to_bytes(3, "big")
        self.data[8:12] = stream_id.to_bytes(4, "little")
        STAMP.pack_into(self.data, self._stamp_at, time_ns, number)
        return self.data


class Load:
    """The templates, the schedule and the counts that all publishers of this process share."""

    def __init__(self, kbps, published, copies=False):
        self.copies = copies
        small = inter_frame_bytes(kbps)
        self.key_frame = Template(6, wire.VIDEO, _video_payload(small * KEY_FRAME_TIMES, KEY_SLICE))
        self.inter_frames = [
            Template(6, wire.VIDEO, _video_payload(small, slice_type)) for slice_type in (NEEDED_SLICE, DISPOSABLE_SLICE)
        ]
        self.audio_frame = Template(4, wire.AUDIO, _audio_payload())
        self.kbps, self.published = kbps, published
        self.due = []  # a heap of (time in ns, index, publisher)
        self.video = self.audio = self.sent_bytes = self.skipped = 0
        self.pending_max_bytes = self.lag_max_ns = 0

    def publish_due(self):
        """Send all messages that are due, and return the seconds until the next one."""
        due = self.due
        while due:
            now_ns = time.monotonic_ns()
            due_ns, index, publisher = due[0]
            if due_ns > now_ns:
                return (due_ns - now_ns) / 1e9
            if not publisher.alive:
                heapq.heappop(due)
                continue
            self.lag_max_ns = max(self.lag_max_ns, now_ns - due_ns)
            heapq.heapreplace(due, (publisher.publish_one(), index, publisher))
            if self.published:
                self.published.write(index, publisher.sent_video, publisher.sent_audio)
        return 0.02


class Publisher(rtmp.Client):
    """One publisher: connects as an encoder does, then sends when Load says so."""

    SENT_CHUNK_BYTES = CHUNK_BYTES
    FLASH_VERSION = "FMLE/3.0 (compatible; rtmpd-bench)"

    def __init__(self, loop, port, app, name, load, index):
        super().__init__(loop, port, app, name)
        self.load, self.index = load, index
        self.live = False
        self.start_ns = self.video = self.audio = 0
        self.sent_video = self.sent_audio = 0  # without those that did not fit

    def on_connected(self):
        self.command("releaseStream", None, self.name)
        self.command("FCPublish", None, self.name)
        self.command("createStream", None, answer=self._on_stream)

    def _on_stream(self, values):
        self.stream_id = int(values[3])
        self.command("publish", None, self.name, "live", stream_id=self.stream_id, chunk_stream=8)

    def on_status(self, code):
        if code != "NetStream.Publish.Start" or self.live:
            return
        about = {"width": 1280, "height": 720, "videodatarate": self.load.kbps, "framerate": FRAMES_PER_S}
        about |= {"videocodecid": 7, "audiocodecid": 10, "audiosamplerate": AUDIO_RATE, "stereo": True}
        first = (
            (4, wire.DATA, wire.amf("@setDataFrame", "onMetaData", about)),
            (6, wire.VIDEO, AVC_HEADER),
            (4, wire.AUDIO, AAC_HEADER),
        )
        for chunk_stream, kind, payload in first:
            self.send(wire.message(chunk_stream, kind, self.stream_id, payload, CHUNK_BYTES))
        self.live = True
        self.start_ns = time.monotonic_ns()
        heapq.heappush(self.load.due, (self.start_ns, self.index, self))

    def publish_one(self):
        """Send the next video or audio message in order of time, and return when the following one is due."""
        load = self.load
        video_ms = self.video * 1000 // FRAMES_PER_S
        audio_ms = self.audio * AUDIO_SAMPLES * 1000 // AUDIO_RATE
        # An encoder drops frames too when the server does not take them.
        fits = len(self.pending) < PENDING_LIMIT_BYTES
        if video_ms <= audio_ms:
            template = load.inter_frames[self.video % 2] if self.video % GOP_FRAMES else load.key_frame
            timestamp_ms, number = video_ms, self.video
            self.video += 1
            self.sent_video += fits
            load.video += fits
        else:
            template, timestamp_ms, number = load.audio_frame, audio_ms, self.audio
            self.audio += 1
            self.sent_audio += fits
            load.audio += fits
        if fits:
            # Copies of a stream are equal to the last byte.
            time_ns = number if load.copies else time.monotonic_ns()
            self.send(template.stamped(self.stream_id, timestamp_ms, number, time_ns))
            load.sent_bytes += len(template.data)
            load.pending_max_bytes = max(load.pending_max_bytes, len(self.pending))
        else:
            load.skipped += 1
        next_s = min(self.video / FRAMES_PER_S, self.audio * AUDIO_SAMPLES / AUDIO_RATE)
        return self.start_ns + int(next_s * 1e9)

    def leave(self):
        """End the stream as an encoder does."""
        if self.alive and self.live and not self.pending:
            self.command("FCUnpublish", None, self.name)
            self.command("deleteStream", None, self.stream_id)
        self.close()


class Run:
    """A set of publishers from the first connect to the last figure."""

    LOOP = rtmp.Loop

    def __init__(self, options):
        self.options = options
        self.loop = self.LOOP()
        published = Published(options.stat, create=options.publishers) if options.stat else None
        self.load = Load(options.kbps, published, getattr(options, "copies", False))
        self.publishers = []
        self.stopping = False
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, *_):
        self.stopping = True

    def spin(self, seconds, done=lambda: False):
        end_s = time.monotonic() + seconds
        while not self.stopping and not done():
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return
            self.loop.turn(min(left_s, self.load.publish_due()))

    def live(self):
        return sum(publisher.live and publisher.alive for publisher in self.publishers)

    def connect(self, over_s):
        """Connect all publishers within *over_s*, wait until they are live or have failed, and print their number.

        Connecting takes time on purpose: keyframes of different publishers must not coincide.
        """
        options = self.options
        count = options.publishers
        pause_s = over_s / count if count > 1 else 0
        for index in range(count):
            stream = index // getattr(options, "sources", 1)
            name = f"{options.name}_{stream}" if count > 1 else options.name
            self.publishers.append(Publisher(self.loop, options.port, options.app, name, self.load, index))
            self.spin(pause_s)
        settled = len(self.publishers)
        self.spin(15, lambda: sum(p.live or not p.alive for p in self.publishers) == settled)
        print(json.dumps({"live": self.live()}), flush=True)

    def figures(self):
        """Connect, publish for the window, and return the figures."""
        options, load = self.options, self.load
        self.connect(options.publishers / max(options.publishers, 200))
        self.spin(options.settle)
        load.lag_max_ns = load.pending_max_bytes = 0
        messages, sent_bytes = load.video + load.audio, load.sent_bytes
        before, self_before_s = ServerSample.take(options.pid), _own_cpu_s()
        self.spin(options.seconds, lambda: not self.live())
        after = ServerSample.take(options.pid)
        window_s = after.time_s - before.time_s
        figures = {"live": self.live()}
        if options.pid:
            figures |= {**core_figures(before, after), "rss_start_mb": before.rss_mb, "rss_mb": after.rss_mb}
        figures |= {
            "messages": load.video + load.audio - messages,
            "mbps": round((load.sent_bytes - sent_bytes) * 8 / 1e6 / window_s, 1),
            "skipped": load.skipped,
            "lag_max_ms": round(load.lag_max_ns / 1e6, 1),
            "pending_max_bytes": load.pending_max_bytes,
            "load_cpu": round(100 * (_own_cpu_s() - self_before_s) / window_s, 1),
            "errors": self.loop.errors,
        }
        for publisher in self.publishers:
            publisher.leave()
        return figures


def _own_cpu_s():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.publisher", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--app", default="live")
    parser.add_argument("--name", default="bench", help="stream name; several publishers add _0, _1 ...")
    parser.add_argument("--publishers", type=int, default=1)
    parser.add_argument("--sources", type=int, default=1, help="publishers of each stream (on_conflict = backup)")
    parser.add_argument("--copies", action="store_true", help="the publishers of a stream send identical frames")
    parser.add_argument("--kbps", type=int, default=1000, help="video bitrate of each publisher")
    parser.add_argument("--settle", type=float, default=1, help="seconds between the last publisher and the window")
    parser.add_argument("--seconds", type=float, default=10, help="length of the window")
    parser.add_argument("--pid", type=int, default=0, help="server to sample")
    parser.add_argument("--stat", type=Path, help="file that shares the number of published messages of each stream")
    print(json.dumps(Run(parser.parse_args()).figures()), flush=True)


if __name__ == "__main__":
    main()
