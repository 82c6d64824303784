"""Makes commands.json: what ffmpeg and rtmpdump write in AMF0, and what Py3AMF reads in it.

Run it with a Python that has Py3AMF (see README.rst): ``python make_commands.py FFMPEG RTMPDUMP``
It uses nothing of rtmpd.
"""

import json
import pathlib
import shlex
import socket
import struct
import subprocess
import sys
import tempfile
import threading

import pyamf

FFMPEG, RTMPDUMP = sys.argv[1:]
SOURCE = shlex.split("-f lavfi -i testsrc2=size=320x180:rate=25 -f lavfi -i sine=frequency=440:sample_rate=44100 -t 1")
CODECS = shlex.split("-c:v libx264 -preset ultrafast -pix_fmt yuv420p -c:a aac -b:a 96k")

CONNECTED = pyamf.encode("_result", 1.0, None, {"code": "NetConnection.Connect.Success"}, encoding=0).getvalue()
PUBLISHING = pyamf.encode("onStatus", 0.0, None, {"code": "NetStream.Publish.Start"}, encoding=0).getvalue()


def message(body, stream=0):
    """One command message on chunk stream 3, in one chunk of at most 128 bytes."""
    assert len(body) <= 128
    return bytes((3, 0, 0, 0)) + len(body).to_bytes(3, "big") + bytes((20,)) + struct.pack("<I", stream) + body


def messages(stream):
    """Yield type and body of each message of a chunk stream, until it ends."""
    size = 128
    state = {}
    while first := stream.read(1):
        kind, number = first[0] >> 6, first[0] & 0x3F
        assert number > 1, "chunk stream numbers over 63 don't come here"
        length, message_type, part, extended = state.get(number, (0, 0, b"", False))
        if kind < 3:
            header = stream.read((11, 7, 3)[kind])
            extended = header[:3] == b"\xff\xff\xff"
            if kind < 2:
                length, message_type = int.from_bytes(header[3:6], "big"), header[6]
        if extended:
            stream.read(4)
        part += stream.read(min(size, length - len(part)))
        state[number] = length, message_type, part, extended
        if len(part) == length:
            state[number] = length, message_type, b"", extended
            if message_type == 1:
                size = int.from_bytes(part, "big")
            yield message_type, part


def serve(listener, found, publish):
    connection, _ = listener.accept()
    connection.settimeout(20)
    stream = connection.makefile("rb")
    try:
        c1 = stream.read(1537)[1:]
        connection.sendall(b"\x03" + bytes(1536) + c1)
        stream.read(1536)
        for message_type, body in messages(stream):
            if message_type not in (18, 20):
                continue
            found.append((message_type, body))
            name = body[3 : 3 + int.from_bytes(body[1:3], "big")].decode()
            number = body[3 + len(name) :][:9]
            if name == "connect":
                connection.sendall(message(CONNECTED))
            elif name == "createStream":
                connection.sendall(message(b"\x02\0\x07_result" + number + b"\x05\x00" + struct.pack(">d", 1)))
            elif name == "publish":
                connection.sendall(message(PUBLISHING, 1))
            elif name == "play" and not publish:
                break
    except OSError:
        pass
    finally:
        stream.close()
        connection.close()


def record(command, publish):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"rtmp://127.0.0.1:{listener.getsockname()[1]}/live/key"
        found = []
        server = threading.Thread(target=serve, args=(listener, found, publish))
        server.start()
        subprocess.run([url if word == "URL" else word for word in command], capture_output=True, timeout=60)
        server.join()
    return found


def script_tag(flv):
    """The body of the first tag of an FLV file, which ffmpeg makes the metadata."""
    tag = flv[13:]
    assert tag[0] == 18
    return tag[11 : 11 + int.from_bytes(tag[1:4], "big")]


def described(value):
    """What rtmpd is to decode, from what Py3AMF did."""
    if isinstance(value, pyamf.MixedArray):
        return {"!": "ecma", "members": {str(name): described(member) for name, member in value.items()}}
    if isinstance(value, dict):
        return {str(name): described(member) for name, member in value.items()}
    if isinstance(value, list):
        return [described(member) for member in value]
    return float(value) if type(value) is int else value


def vector(source, message_type, body):
    values = [described(value) for value in pyamf.decode(body, encoding=0)]
    return {"name": f"{source}: {values[0]}", "amf": 0, "type": message_type, "hex": body.hex(), "values": values}


def main():
    vectors = []
    for source, command, publish in (
        ("ffmpeg publish", [FFMPEG, *SOURCE, *CODECS, "-f", "flv", "URL"], True),
        ("ffmpeg play", [FFMPEG, "-i", "URL", "-f", "null", "-"], False),
        ("rtmpdump play", [RTMPDUMP, "-r", "URL", "-o", "/dev/null"], False),
    ):
        for message_type, body in record(command, publish):
            vectors.append(vector(source, message_type, body))
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "out.flv")
        subprocess.run([FFMPEG, *SOURCE, *CODECS, file], check=True, capture_output=True)
        vectors.append(vector("ffmpeg flv", 18, script_tag(file.read_bytes())))
        subprocess.run(
            [FFMPEG, *SOURCE, *CODECS, "-flvflags", "add_keyframe_index", file, "-y"], check=True, capture_output=True
        )
        vectors.append(vector("ffmpeg flv keyframes", 18, script_tag(file.read_bytes())))
    text = "[\n" + ",\n".join(json.dumps(one) for one in vectors) + "\n]\n"
    pathlib.Path(__file__).with_name("commands.json").write_text(text, encoding="ascii")


main()
