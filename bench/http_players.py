"""Players of FLV and of fragmented MP4 over HTTP, as clients of the loop: they find the frames in the body of a response."""

import time

from bench import rtmp, wire

FLV_FILE_HEADER_BYTES, FLV_TAG_HEADER_BYTES, FLV_TAG_END_BYTES = 13, 11, 4
BOX_HEADER_BYTES = 8
NOT_SYNC = 0x10000
SAMPLE_BYTES = 128  # of a frame: its stamp is within them
# The headers that frames have in RTMP, so that players need not know the difference.
KEYFRAME, INTER_FRAME, SOUND = b"\x17\x01\0\0\0", b"\x27\x01\0\0\0", b"\xaf\x01"


class FlvBody:
    """Finds tags in a body."""

    PATH = "/{app}/{name}.flv"

    def __init__(self):
        self._data, self._begun = bytearray(), False

    def feed(self, data):
        """Return type and payload of each message that has become complete."""
        held = self._data
        held += data
        at, found = 0, []
        if not self._begun:
            if len(held) < FLV_FILE_HEADER_BYTES:
                return found
            if held[:3] != b"FLV":
                raise wire.ProtocolError("no FLV")
            self._begun, at = True, FLV_FILE_HEADER_BYTES
        while len(held) - at >= FLV_TAG_HEADER_BYTES:
            start = at + FLV_TAG_HEADER_BYTES
            end = start + int.from_bytes(held[at + 1 : at + 4], "big")
            if len(held) < end + FLV_TAG_END_BYTES:
                break
            found.append((held[at], bytes(held[start:end])))
            at = end + FLV_TAG_END_BYTES
        del held[:at]
        return found


class Mp4Body:
    """Finds fragments of one frame in a body."""

    PATH = "/{app}/{name}.mp4"

    def __init__(self):
        self._data = bytearray()
        self._video = 0  # track id
        self._moof = b""

    def feed(self, data):
        """Return type and the beginning of the payload of each frame that has become complete."""
        held = self._data
        held += data
        at, found = 0, []
        while len(held) - at >= BOX_HEADER_BYTES:
            size, kind = int.from_bytes(held[at : at + 4], "big"), held[at + 4 : at + 8]
            if size < BOX_HEADER_BYTES:
                raise wire.ProtocolError("no MP4")
            if len(held) - at < size:
                break
            if kind == b"moov":
                self._video = _video_track(bytes(held[at : at + size]))
            elif kind == b"moof":
                self._moof = bytes(held[at : at + size])
            elif kind == b"mdat":
                frame = bytes(held[at + BOX_HEADER_BYTES : at + min(size, SAMPLE_BYTES)])
                found.append(self._frame(frame))
            at += size
        del held[:at]
        return found

    def _frame(self, frame):
        moof = self._moof
        track = moof.index(b"tfhd") + 8
        if int.from_bytes(moof[track : track + 4], "big") != self._video:
            return wire.AUDIO, SOUND + frame
        run = moof.index(b"trun") + 4
        fields = int.from_bytes(moof[run + 1 : run + 4], "big")
        # Behind the number of samples: offset of the data, flags of the first sample, duration, size; then its flags.
        flags_at = run + 8 + 4 * sum(bool(fields & field) for field in (1, 4, 0x100, 0x200))
        key = not int.from_bytes(moof[flags_at : flags_at + 4], "big") & NOT_SYNC
        return wire.VIDEO, (KEYFRAME if key else INTER_FRAME) + frame


def _video_track(moov):
    """Return the id of the video track; 0 if there is none."""
    for trak in moov.split(b"trak")[1:]:
        if b"vide" in trak:
            at = trak.index(b"tkhd") + 16
            return int.from_bytes(trak[at : at + 4], "big")
    return 0


class HttpPlayer(rtmp.Client):
    """Play a stream over HTTP, and call on_media() for each message."""

    BODY = FlvBody
    play_ns = 0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._head, self._body = bytearray(), self.BODY()
        path = self.BODY.PATH.format(app=self.app, name=self.name)
        # Instead of the handshake of RTMP, which has not left yet.
        self.pending[:] = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode()
        self.play_ns = time.monotonic_ns()

    def acknowledge(self):
        """Do nothing: HTTP has no acknowledgements."""

    def _on_data(self, data):
        if self._head is not None:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            status = head.split(b" ", 2)[1].decode()
            self._head = None
            if status != "200":
                self.fail(f"status {status}")
                return
        for kind, payload in self._body.feed(data):
            if self.alive and kind in {wire.AUDIO, wire.VIDEO}:
                self.on_media(kind, payload)


class Mp4Player(HttpPlayer):
    """Play a stream as fragmented MP4."""

    BODY = Mp4Body
