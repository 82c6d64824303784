"""Hold decode.py against Wireshark's RTMP dissector, over a capture file made of each recording.

Kinds, order, timestamps and media payloads must be the same, and the latter give the digest that the index states.

``crosscheck.py INDEX`` compares every recording that the index names; needs the Debian package tshark.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import decode

SEGMENT = 1400
CLIENT_PORT, SERVER_PORT = 40000, 1935
LINKTYPE_RAW = 101
SYN, ACK, PSH_ACK, SYN_ACK, FIN_ACK = 0x02, 0x10, 0x18, 0x12, 0x11
KINDS = {
    "AMF0 Command": "command",
    "AMF0 Data": "data",
    "Abort": "abort",
    "Acknowledgement": "ack",
    "Audio Data": "audio",
    "Set Chunk Size": "set-chunk-size",
    "Set Peer Bandwidth": "set-peer-bandwidth",
    "User Control Message": "user-control",
    "Video Data": "video",
    "Window Acknowledgement Size": "window-ack-size",
}
CLIENT_ADDRESS, SERVER_ADDRESS = b"\x7f\0\0\1", b"\x7f\0\0\2"


class Capture:
    """A pcap file of one TCP connection."""

    def __init__(self) -> None:
        self.frames = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, LINKTYPE_RAW)]
        self.sequence = {True: 1000, False: 5000}
        self.clock = 0
        self._segment(True, SYN)
        self._segment(False, SYN_ACK)
        self._segment(True, ACK)

    def _segment(self, upward: bool, flags: int, payload: bytes = b"") -> None:
        ports = (CLIENT_PORT, SERVER_PORT) if upward else (SERVER_PORT, CLIENT_PORT)
        addresses = CLIENT_ADDRESS + SERVER_ADDRESS if upward else SERVER_ADDRESS + CLIENT_ADDRESS
        acknowledged = self.sequence[not upward] if flags & ACK else 0
        tcp = struct.pack(">HHIIBBHHH", *ports, self.sequence[upward], acknowledged, 5 << 4, flags, 65535, 0, 0)
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp) + len(payload), 0, 0, 64, 6, 0) + addresses
        frame = ip + tcp + payload
        self.clock += 100
        self.frames.append(struct.pack("<IIII", *divmod(self.clock, 1_000_000), len(frame), len(frame)) + frame)
        self.sequence[upward] += len(payload) + (1 if flags & (SYN | 0x01) else 0)

    def send(self, data: bytes, *, upward: bool) -> None:
        for at in range(0, len(data), SEGMENT):
            self._segment(upward, PSH_ACK, data[at : at + SEGMENT])
            self._segment(not upward, ACK)

    def bytes(self) -> bytes:
        return b"".join(self.frames)


def capture_of(c2s: bytes, s2c: bytes) -> bytes:
    """The connection as it may have gone: the handshake in turns, then the client, then the server."""
    capture = Capture()
    first = 1 + decode.HANDSHAKE_SIZE
    second = first + decode.HANDSHAKE_SIZE
    capture.send(c2s[:first], upward=True)
    capture.send(s2c[:second], upward=False)
    capture.send(c2s[first:second], upward=True)
    capture.send(c2s[second:], upward=True)
    capture.send(s2c[second:], upward=False)
    return capture.bytes()


@dataclass
class Seen:
    """What one decoder makes of one message; a timestamp of None is one it could not tell."""

    kind: str
    timestamp: int | None
    media: bytes = b""

    def agrees(self, other: Seen) -> bool:
        same_time = None in (self.timestamp, other.timestamp) or self.timestamp == other.timestamp
        return same_time and (self.kind, self.media) == (other.kind, other.media)


def tshark_messages(pcap: Path) -> list[Seen]:
    """The messages that the client sent, in order."""
    shown = subprocess.run(
        ["tshark", "-n", "-r", pcap, "-Y", f"tcp.srcport=={CLIENT_PORT}", "-T", "pdml"],
        capture_output=True, check=True,
    )  # fmt: skip
    messages = []
    for proto in ET.fromstring(shown.stdout).iter("proto"):
        if proto.get("name") != "rtmpt":
            continue
        label = proto.get("showname", "").partition("(")[2]
        if label.startswith("Handshake"):
            continue
        kind = next((name for prefix, name in KINDS.items() if label.startswith(prefix)), label)
        if kind == "command":
            kind += " " + label.removeprefix("AMF0 Command ").partition("(")[0]
        fields = {field.get("name", ""): field for field in proto.iter("field")}
        media = b""
        for name in ("control", "data"):
            field = fields.get(f"rtmpt.{kind}.{name}")
            if field is not None:
                media += bytes.fromhex(field.get("value", ""))
        messages.append(Seen(kind, _timestamp(fields), media))
    return messages


def _timestamp(fields: dict[str, ET.Element]) -> int | None:
    """The absolute timestamp, which the dissector does not give where it goes backwards."""
    field = fields.get("rtmpt.header.timestamp")
    if field is None:
        return None
    if "rtmpt.header.timestampdelta" not in fields and "rtmpt.header.ets" in fields:
        field = fields["rtmpt.header.ets"]
    return int(field.get("show", ""))


def our_messages(c2s: bytes) -> list[Seen]:
    """The same of decode.py."""
    messages = []
    for message in decode.decode(c2s).messages:
        kind = decode.TYPE_NAMES[message.type]
        if kind == "command":
            kind += f" {decode.values_of(message)[0]}"
        media = message.payload if kind in ("audio", "video") else b""
        messages.append(Seen(kind, message.timestamp, media))
    return messages


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        pcap = Path(folder) / "one.pcap"
        for entry in json.loads(args.index.read_text()):
            c2s = (args.index.parent / entry["file"]).read_bytes()
            s2c = (args.index.parent / entry["server_file"]).read_bytes()
            pcap.write_bytes(capture_of(c2s, s2c))
            ours, theirs = our_messages(c2s), tshark_messages(pcap)
            digest = hashlib.sha256(b"".join(seen.media for seen in theirs)).hexdigest()
            odd = [pair for pair in zip(ours, theirs, strict=False) if not pair[0].agrees(pair[1])]
            if not odd and len(ours) == len(theirs) and digest == entry["digest_of_media"]:
                print(f"{entry['name']}: {len(ours)} messages, tshark agrees")
                continue
            wrong += 1
            print(f"{entry['name']}: {len(ours)} messages, tshark sees {len(theirs)}; {len(odd)} differ")
            for mine, other in odd[:3]:
                print(f"  decode.py {mine.kind} {mine.timestamp} {mine.media[:16].hex()} ({len(mine.media)} B)")
                print(f"  tshark    {other.kind} {other.timestamp} {other.media[:16].hex()} ({len(other.media)} B)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
