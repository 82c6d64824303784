"""Make a server emit events, and serve as the web server of its webhooks.

Runs as a process of its own: ``python -m bench.events --port N --web-port N``. It prints one JSON line when it has started, and
one with figures when its time is over or at SIGTERM. A play that starts and stops at once makes six events: stream_create,
subscriber_count, play_start, play_stop, subscriber_count, stream_delete.
"""

import argparse
import http.server
import json
import signal
import threading
import time

from bench import rtmp
from bench.players import add_connection_options
from bench.servers import pause

EVENTS_PER_PLAY = 6
CONNECTIONS = 8
TICK_S = 0.01
START_LIMIT_S = 10


class Cycler(rtmp.Client):
    """Play streams without a publisher, and stop at once."""

    plays = 0

    def on_connected(self):
        self.command("createStream", None, answer=self._on_stream)

    def _on_stream(self, values):
        self.stream_id = int(values[3])

    def cycle(self):
        if self.alive:
            self.plays += 1
            self.command("play", None, f"{self.name}_{self.plays % 100}", stream_id=self.stream_id)
            self.command("closeStream", None, stream_id=self.stream_id)


class Web(http.server.ThreadingHTTPServer):
    """Accepts posts, and answers each after a delay."""

    daemon_threads = True
    request_queue_size = 128
    posts = 0

    def __init__(self, port, answer_s):
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                if answer_s:
                    pause(answer_s)
                self.wfile.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                web.posts += 1

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        """Ignore connections that break because the server under test is stopped in the middle of a post."""


def run(options):
    loop = rtmp.Loop()
    web = Web(options.web_port, options.answer_ms / 1000)
    cyclers = [Cycler(loop, options.port, options.app, f"events{number}") for number in range(CONNECTIONS)]
    loop.spin(START_LIMIT_S, lambda: all(cycler.stream_id for cycler in cyclers))
    print(json.dumps({"ready": sum(bool(cycler.stream_id) for cycler in cyclers)}), flush=True)
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    per_s = options.events / EVENTS_PER_PLAY
    start_s = time.monotonic()
    plays = 0
    while not over.is_set() and time.monotonic() - start_s < options.seconds:
        due = int((time.monotonic() - start_s) * per_s)
        while plays < due:
            cyclers[plays % CONNECTIONS].cycle()
            plays += 1
        loop.spin(TICK_S)
    took_s = time.monotonic() - start_s
    return {
        "events_per_s": round(plays * EVENTS_PER_PLAY / took_s),
        "posts_per_s": round(web.posts / took_s, 1),
        "errors": loop.errors,
    }


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.events", description=__doc__)
    add_connection_options(parser)
    parser.add_argument("--web-port", type=int, required=True, help="port to accept posts on")
    parser.add_argument("--answer-ms", type=float, default=0, help="how long each answer takes")
    parser.add_argument("--events", type=int, default=1000, help="events per second")
    print(json.dumps(run(parser.parse_args())), flush=True)


if __name__ == "__main__":
    main()
