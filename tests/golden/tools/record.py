"""Record what other RTMP programs say to each other: runs each through a tap in front of nginx-rtmp.

Needs the Debian 12 packages nginx, libnginx-mod-rtmp, rtmpdump, gstreamer1.0-tools, gstreamer1.0-plugins-good, -bad and
-ugly, and an ffmpeg with libx264, libx265, SVT-AV1, libvpx and libopus (by default the one of the imageio-ffmpeg
package, else the one on PATH).

``record.py`` records everything anew and writes ``../wire/index.json``; ``record.py NAME...`` only those.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path
from typing import Any

import decode
from tap import HOST, Tap

WIRE = Path(__file__).resolve().parent.parent / "wire"
MODULE = "/usr/lib/nginx/modules/ngx_rtmp_module.so"
TAP_PORT = 21935  # in every tcUrl of the recordings
C2S_LIMIT = 150_000
S2C_LIMIT = 24_000
PATIENCE = 40.0

NGINX_CONF = """\
load_module {module};
user {user};
daemon off;
worker_processes 1;
pid {work}/nginx.pid;
error_log {work}/error.log info;
events {{ worker_connections 64; }}
rtmp {{
    access_log off;
    server {{
        listen {host}:{port};
        chunk_size 4096;
        application live {{ live on; }}
        application vod {{ play {work}/vod; }}
        application push {{ live on; push rtmp://{host}:{tap}/live; }}
        application pull {{ live on; pull rtmp://{host}:{tap}/live; }}
    }}
    server {{
        listen {host}:{small_port};
        chunk_size 128;
        ack_window 4096;
        application live {{ live on; publish_notify on; }}
    }}
}}
"""

URL = "rtmp://127.0.0.1:21935/live/{stream}"
PICTURE = "-f lavfi -i testsrc=size=64x48:rate=5"
TONE = "-f lavfi -i sine=frequency=440:sample_rate=44100"
X264 = "-c:v libx264 -preset ultrafast -tune zerolatency -g 10 -pix_fmt yuv420p -threads 1"
X265 = "-c:v libx265 -preset ultrafast -x265-params log-level=none:pools=none"
AAC = "-c:a aac -b:a 32k -ac 1"
EXACT = "-fflags +bitexact -flags:v +bitexact -flags:a +bitexact"
# A large first picture, for messages of several chunks.
NOISE = "-f lavfi -i nullsrc=size=128x96:rate=5,geq=random(1)*255:128:128"


def ffmpeg(inputs: str, codecs: str, *, url: str = URL, seconds: float = 3) -> str:
    return f"ffmpeg -v error -nostdin -re {inputs} -t {seconds:g} {codecs} {EXACT} -f flv {url}"


def gst_publish(sink: str, audio: str = "voaacenc bitrate=32000 ! aacparse") -> str:
    return (
        "gst-launch-1.0 -e flvmux name=m streamable=true ! " + sink + " "
        "videotestsrc is-live=true num-buffers=15 ! video/x-raw,format=I420,width=64,height=48,framerate=5/1 ! "
        "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 bitrate=64 ! h264parse ! queue ! m. "
        "audiotestsrc is-live=true num-buffers=60 samplesperbuffer=2205 ! audio/x-raw,rate=44100,channels=1 ! "
        f"{audio} ! queue ! m."
    )


@dataclass(frozen=True)
class Recording:
    """One run of one client."""

    name: str
    role: str
    command: str  # the client; "" when nginx itself is the client
    app: str = "live"
    stream: str = ""
    program: str = "ffmpeg"
    source: str = ""  # what publishes directly to the server while a player is recorded
    trigger: str = ""  # what makes nginx connect to the tap
    small: bool = False  # the server with chunk_size 128 and ack_window 4096
    interrupt: float = 0  # seconds after which the client gets SIGINT

    @property
    def stream_name(self) -> str:
        return self.stream or self.name


H264_AAC = f"{X264} {AAC}"
SOURCE = ffmpeg(f"{PICTURE} {TONE}", H264_AAC, url="{direct}", seconds=30)
LATE_SOURCE = ffmpeg(f"{NOISE} {TONE}", f"{H264_AAC} -output_ts_offset 16780", url="{direct}", seconds=30)
PLAYED = "-c copy -f null -"

RECORDINGS = [
    Recording("ffmpeg_publish_h264_aac", "publisher", ffmpeg(f"{PICTURE} {TONE}", H264_AAC)),
    Recording("ffmpeg_publish_h264_aac_chunk128", "publisher", ffmpeg(f"{NOISE} {TONE}", H264_AAC, seconds=1), small=True),
    Recording(
        "ffmpeg_publish_query",
        "publisher",
        ffmpeg(PICTURE, X264, url=URL + "?user=alice&token=s3cret", seconds=1),
        stream="ffmpeg_publish_query?user=alice&token=s3cret",
    ),
    Recording(
        "ffmpeg_publish_hevc_enhanced",
        "publisher",
        ffmpeg(
            f"{PICTURE} {TONE}",
            f"{X265}:keyint=10 {AAC} -rtmp_enhanced_codecs hvc1",
        ),
    ),
    Recording(
        "ffmpeg_publish_hevc_hdr_enhanced",
        "publisher",
        ffmpeg(
            PICTURE,
            "-vf format=yuv420p10le,setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc"
            f" {X265}:keyint=10:bframes=2:hdr10=1 -rtmp_enhanced_codecs hvc1",
        ),
    ),
    Recording(
        "ffmpeg_publish_av1_opus_enhanced",
        "publisher",
        ffmpeg(
            f"{PICTURE} {TONE}",
            "-c:v libsvtav1 -preset 12 -g 10 -svtav1-params pred-struct=1:lp=1 -c:a libopus -b:a 24k -ac 1 -ar 48000"
            " -rtmp_enhanced_codecs av01,Opus",
        ),
    ),
    Recording(
        "ffmpeg_publish_vp9_enhanced",
        "publisher",
        ffmpeg(
            f"{PICTURE} {TONE}",
            f"-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 10 -b:v 64k {AAC} -rtmp_enhanced_codecs vp09",
        ),
    ),
    Recording(
        "ffmpeg_publish_vvc_flac_enhanced",
        "publisher",
        ffmpeg(
            f"{PICTURE} {TONE}",
            "-c:v libvvenc -preset faster -period 1 -pix_fmt yuv420p10le -threads 1 -c:a flac -ac 1 -ar 44100"
            " -sample_fmt s16 -rtmp_enhanced_codecs vvc1,fLaC",
            seconds=2,
        ),
    ),
    Recording(
        "ffmpeg_publish_ac3_enhanced",
        "publisher",
        ffmpeg(TONE, "-c:a ac3 -b:a 32k -ac 1 -rtmp_enhanced_codecs ac-3", seconds=2),
    ),
    Recording(
        "ffmpeg_publish_eac3_enhanced",
        "publisher",
        ffmpeg(TONE, "-c:a eac3 -b:a 32k -ac 1 -rtmp_enhanced_codecs ec-3", seconds=2),
    ),
    Recording(
        "ffmpeg_publish_multitrack_audio",
        "publisher",
        ffmpeg(
            f"{PICTURE} {TONE} -f lavfi -i sine=frequency=880:sample_rate=48000",
            f"-map 0:v -map 1:a -map 2:a {X264} -c:a:0 aac -b:a:0 32k -c:a:1 libopus -b:a:1 24k -ac 1"
            " -rtmp_enhanced_codecs Opus",
        ),
    ),
    Recording(
        "ffmpeg_publish_multitrack_video",
        "publisher",
        ffmpeg(
            f"{PICTURE} -f lavfi -i testsrc2=size=32x32:rate=5 {TONE}",
            f"-map 0:v -map 1:v -map 2:a {X264} {AAC} -rtmp_enhanced_codecs avc1",
        ),
    ),
    Recording(
        "ffmpeg_publish_flv1_mp3",
        "publisher",
        ffmpeg(f"{PICTURE} {TONE}", "-c:v flv -b:v 64k -g 10 -c:a libmp3lame -b:a 32k -ac 1"),
    ),
    Recording("ffmpeg_publish_mp3", "publisher", ffmpeg(TONE, "-c:a libmp3lame -b:a 32k -ac 1 -ar 44100")),
    Recording("ffmpeg_publish_pcm_mulaw", "publisher", ffmpeg(TONE, "-c:a pcm_mulaw -ac 1 -ar 8000", seconds=2)),
    Recording("ffmpeg_publish_pcm_alaw", "publisher", ffmpeg(TONE, "-c:a pcm_alaw -ac 1 -ar 8000", seconds=2)),
    Recording("ffmpeg_publish_audio_only", "publisher", ffmpeg(TONE, AAC)),
    Recording("ffmpeg_publish_video_only", "publisher", ffmpeg(PICTURE, X264)),
    Recording(
        "ffmpeg_publish_ts_cross",
        "publisher",
        ffmpeg(f"{PICTURE} {TONE}", f"{H264_AAC} -output_ts_offset 16776 -flvflags no_duration_filesize", seconds=3),
    ),
    Recording(
        "ffmpeg_publish_ts_extended",
        "publisher",
        ffmpeg(f"{NOISE} {TONE}", f"{H264_AAC} -output_ts_offset 16780 -flvflags no_duration_filesize", seconds=1),
        small=True,
    ),
    Recording("ffmpeg_publish_interrupted", "publisher", ffmpeg(PICTURE, X264, seconds=20), interrupt=2.5),
    Recording(
        "ffmpeg_play",
        "player",
        f"ffmpeg -v error -nostdin -rtmp_live live -i {URL} -t 2 {PLAYED}",
        source=SOURCE,
    ),
    Recording(
        "ffmpeg_play_any",
        "player",
        f"ffmpeg -v error -nostdin -i {URL} -t 2 {PLAYED}",
        source=SOURCE,
    ),
    Recording(
        "ffmpeg_play_acks",
        "player",
        f"ffmpeg -v error -nostdin -rtmp_live live -i {URL} -t 4 {PLAYED}",
        source=ffmpeg(f"{NOISE} {TONE}", H264_AAC, url="{direct}", seconds=30),
        small=True,
    ),
    Recording(
        "ffmpeg_play_ts_extended",
        "player",
        f"ffmpeg -v error -nostdin -rtmp_live live -i {URL} -t 1 {PLAYED}",
        source=LATE_SOURCE,
    ),
    Recording(
        "rtmpdump_play",
        "player",
        f"rtmpdump --quiet --live -r {URL} -o {{null}}",
        program="rtmpdump",
        source=SOURCE,
        interrupt=3,
    ),
    Recording(
        "rtmpdump_play_unpublished",
        "player",
        f"rtmpdump --quiet --live -r {URL} -o {{null}}",
        program="rtmpdump",
        source=ffmpeg(f"{PICTURE} {TONE}", H264_AAC, url="{direct}", seconds=4),
        small=True,
    ),
    Recording(
        "rtmpdump_play_swf",
        "player",
        f"rtmpdump --quiet --live -r {URL} --swfUrl http://example.com/player.swf"
        f" --pageUrl http://example.com/ --swfhash {'5a' * 32} --swfsize 4242 --conn S:token -o {{null}}",
        program="rtmpdump",
        source=SOURCE,
        interrupt=3,
    ),
    Recording(
        "rtmpdump_play_acks",
        "player",
        f"rtmpdump --quiet --live -r {URL} -o {{null}}",
        program="rtmpdump",
        source=ffmpeg(f"{NOISE} {TONE}", H264_AAC, url="{direct}", seconds=30),
        small=True,
        interrupt=4,
    ),
    Recording(
        "rtmpdump_play_vod",
        "player",
        "rtmpdump --quiet --buffer 1000 -r rtmp://127.0.0.1:21935/vod/{stream}.flv -o {null}",
        app="vod",
        stream="clip",
        program="rtmpdump",
    ),
    Recording(
        "rtmpdump_play_vod_start",
        "player",
        "rtmpdump --quiet --realtime --start 3 -r rtmp://127.0.0.1:21935/vod/{stream}.flv -o {null}",
        app="vod",
        stream="clip",
        program="rtmpdump",
    ),
    Recording(
        "ffmpeg_play_vod_seek",
        "player",
        f"ffmpeg -v error -nostdin -ss 3 -rtmp_live recorded -i rtmp://127.0.0.1:21935/vod/{{stream}} -t 1 {PLAYED}",
        app="vod",
        stream="clip.flv",
    ),
    Recording(
        "gst_publish",
        "publisher",
        gst_publish(f"rtmp2sink location={URL}"),
        program="gstreamer1.0-plugins-bad",
    ),
    Recording(
        "gst_publish_closestream",
        "publisher",
        gst_publish(f"rtmp2sink location={URL} chunk-size=4096 stop-commands=fcunpublish+closestream+deletestream"),
        program="gstreamer1.0-plugins-bad",
    ),
    Recording(
        "gst_publish_ts_extended",
        "publisher",
        # flvmux starts again from zero, so this relays a stream that is already past 0xFFFFFF.
        "gst-launch-1.0 -e rtmp2src location={direct}_source num-buffers=100 ! rtmp2sink chunk-size=32 sync=false location="
        + URL,
        program="gstreamer1.0-plugins-bad",
        source=LATE_SOURCE.replace("{direct}", "{direct}_source"),
    ),
    Recording(
        "gst_publish_speex",
        "publisher",
        gst_publish(f"rtmp2sink location={URL}", "audioresample ! audio/x-raw,rate=16000 ! speexenc"),
        program="gstreamer1.0-plugins-bad",
    ),
    Recording(
        "gst_play",
        "player",
        f"gst-launch-1.0 -e rtmp2src location={URL} num-buffers=40 ! fakesink",
        program="gstreamer1.0-plugins-bad",
        source=SOURCE,
    ),
    Recording(
        "gst_play_acks",
        "player",
        f"gst-launch-1.0 -e rtmp2src location={URL} num-buffers=200 ! fakesink",
        program="gstreamer1.0-plugins-bad",
        source=ffmpeg(f"{NOISE} {TONE}", H264_AAC, url="{direct}", seconds=30),
        small=True,
    ),
    Recording(
        "librtmp_publish",
        "publisher",
        gst_publish("rtmpsink 'location=" + URL + " live=1'"),
        program="librtmp1",
    ),
    Recording(
        "librtmp_publish_ts_extended",
        "publisher",
        "gst-launch-1.0 -e filesrc location={late} blocksize=1000000 ! rtmpsink 'location=" + URL + " live=1'",
        program="librtmp1",
    ),
    Recording(
        "librtmp_play",
        "player",
        "gst-launch-1.0 -e rtmpsrc 'location=" + URL + " live=1' num-buffers=30 ! fakesink",
        program="librtmp1",
        source=SOURCE,
    ),
    Recording(
        "nginx_push",
        "publisher",
        "",
        program="libnginx-mod-rtmp",
        trigger=ffmpeg(f"{PICTURE} {TONE}", H264_AAC, url="{push}"),
    ),
    Recording(
        "nginx_pull",
        "player",
        "",
        program="libnginx-mod-rtmp",
        source=SOURCE,
        trigger="ffmpeg -v error -nostdin -rtmp_live live -i {pull} -t 2 " + PLAYED,
    ),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until_listening(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        pause(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def find_ffmpeg() -> str:
    try:
        import imageio_ffmpeg
    except ImportError:
        path = shutil.which("ffmpeg")
        if path is None:
            raise SystemExit("no ffmpeg: install imageio-ffmpeg, or give --ffmpeg") from None
        return path
    return str(imageio_ffmpeg.get_ffmpeg_exe())


class Laboratory:
    """nginx-rtmp on two free ports and the programs that talk to it."""

    def __init__(self, work: Path, ffmpeg_path: str) -> None:
        self.work = work
        self.ffmpeg = ffmpeg_path
        self.port, self.small_port = free_port(), free_port()
        self.late = work / "late.flv"

    def prepare(self) -> None:
        (self.work / "vod").mkdir()
        self.work.chmod(0o755)
        clip = ffmpeg(f"{PICTURE} {TONE}", H264_AAC, url=str(self.work / "vod" / "clip.flv"), seconds=6)
        late = ffmpeg(
            f"{NOISE} {TONE}", f"{H264_AAC} -output_ts_offset 16780 -flvflags no_duration_filesize",
            url=str(self.late), seconds=1,
        )  # fmt: skip
        for command in (clip, late):
            subprocess.run(self.argv(command.replace(" -re ", " ")), check=True, timeout=PATIENCE)
        conf = self.work / "nginx.conf"
        conf.write_text(
            NGINX_CONF.format(
                module=MODULE, user=getuser(), work=self.work, host=HOST, port=self.port, small_port=self.small_port,
                tap=TAP_PORT,
            )
        )  # fmt: skip

    def nginx(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["nginx", "-p", self.work, "-c", self.work / "nginx.conf", "-e", self.work / "error.log"])
        wait_until_listening(self.port)
        wait_until_listening(self.small_port)
        return process

    def argv(self, command: str) -> list[str]:
        words = shlex.split(command)
        return [self.ffmpeg, *words[1:]] if words[0] == "ffmpeg" else words

    def spawn(self, command: str, recording: Recording) -> subprocess.Popen[bytes]:
        port = self.small_port if recording.small else self.port
        stream = recording.stream_name.partition("?")[0]
        text = command.format(
            stream=stream,
            null="/dev/null",
            late=self.late,
            direct=f"rtmp://{HOST}:{port}/live/{stream}",
            push=f"rtmp://{HOST}:{port}/push/{stream}",
            pull=f"rtmp://{HOST}:{port}/pull/{stream}",
        )
        environment = os.environ | {"SVT_LOG": "1"}
        return subprocess.Popen(self.argv(text), stdout=subprocess.DEVNULL, cwd=self.work, env=environment)

    def record(self, recording: Recording) -> Tap:
        server_port = self.small_port if recording.small else self.port
        tap = Tap(TAP_PORT, server_port, c2s_limit=C2S_LIMIT, s2c_limit=S2C_LIMIT).start()
        with ExitStack() as stack:
            stack.callback(tap.close)
            if recording.source:
                stack.callback(stop, self.spawn(recording.source, recording))
                pause(2)
            client = self.spawn(recording.command or recording.trigger, recording)
            stack.callback(stop, client)
            if recording.interrupt:
                pause(recording.interrupt)
                client.send_signal(signal.SIGINT)
            code = client.wait(PATIENCE)
            if code and not recording.interrupt:
                print(f"  {recording.name}: the client exited with {code}", file=sys.stderr)
        if not tap.done.wait(PATIENCE):
            raise SystemExit(f"{recording.name}: the connection did not end")
        return tap


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def version_of(program: str, ffmpeg_path: str) -> str:
    if program == "ffmpeg":
        first = subprocess.run([ffmpeg_path, "-version"], capture_output=True, text=True, check=True).stdout
        return first.split()[2]
    shown = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", program], capture_output=True, text=True, check=True)
    return shown.stdout


def shown_command(recording: Recording) -> str:
    """The command line as the index gives it, with placeholders where a path or a direct address would be."""
    places = {"direct": "DIRECT", "push": "PUSH", "pull": "PULL", "late": "late.flv", "null": "/dev/null"}
    text = recording.command or f"nginx, caused by: {recording.trigger}"
    return text.format(stream=recording.stream_name.partition("?")[0], **places)


def entry_of(recording: Recording, tap: Tap, files: list[Path], version: str, server_version: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": recording.name,
        "file": files[0].name,
        "server_file": files[1].name,
        "role": recording.role,
        "program": recording.program,
        "version": version,
        "command_line": shown_command(recording),
        "server": f"libnginx-mod-rtmp {server_version}",
        "app": recording.app,
        "stream_name": recording.stream_name,
        "truncated": tap.c2s.truncated,
        "server_truncated": tap.s2c.truncated,
    }
    return entry | decode.facts(bytes(tap.c2s.data), bytes(tap.s2c.data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="record only these")
    parser.add_argument("--ffmpeg", default="")
    parser.add_argument("--out", type=Path, default=WIRE)
    args = parser.parse_args()
    unknown = set(args.names) - {recording.name for recording in RECORDINGS}
    if unknown:
        raise SystemExit(f"no such recording: {', '.join(sorted(unknown))}")
    ffmpeg_path = args.ffmpeg or find_ffmpeg()
    args.out.mkdir(parents=True, exist_ok=True)
    index = args.out / "index.json"
    entries = {entry["name"]: entry for entry in json.loads(index.read_text())} if index.exists() else {}
    server_version = version_of("libnginx-mod-rtmp", ffmpeg_path)

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        laboratory = Laboratory(Path(folder), ffmpeg_path)
        laboratory.prepare()
        stack.callback(stop, laboratory.nginx())
        for recording in RECORDINGS:
            if args.names and recording.name not in args.names:
                continue
            tap = laboratory.record(recording)
            files = tap.write(args.out / recording.name)
            print(recording.name, *(path.stat().st_size for path in files), flush=True)
            if not tap.c2s.data:
                raise SystemExit(f"{recording.name}: nothing was recorded")
            version = version_of(recording.program, ffmpeg_path)
            entries[recording.name] = entry_of(recording, tap, files, version, server_version)

    ordered = [entries[recording.name] for recording in RECORDINGS if recording.name in entries]
    index.write_text(json.dumps(ordered, indent=2) + "\n")


if __name__ == "__main__":
    main()
