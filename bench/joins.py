"""Join one stream late, again and again, at random moments of its GOP, and time the first keyframe.

Runs as a process of its own: ``python -m bench.joins --port N``. It prints one JSON line at the end.
"""

import argparse
import json
import random
import time

from bench import rtmp, wire
from bench.players import Player, add_connection_options, is_key, percentile_ms
from bench.publisher import CLOCK_MARK, STAMP

JOIN_LIMIT_S = 10


class Joiner(Player):
    """Play until the first whole keyframe, then disconnect."""

    first_key_ns = 0
    key_age_ns = 0
    first_is_key = None

    def on_frame(self, kind, payload, now_ns):
        if kind != wire.VIDEO or self.first_key_ns:
            return
        key = is_key(payload)
        if self.first_is_key is None:
            self.first_is_key = key
        if key:
            self.first_key_ns = now_ns
            at = payload.find(CLOCK_MARK)
            if at >= 0:
                self.key_age_ns = now_ns - STAMP.unpack_from(payload, at + len(CLOCK_MARK))[0]
            self.close()


def figures(options):
    """Start joins over --seconds at random moments, wait for the last keyframe, and return the figures."""
    loop = rtmp.Loop()
    chance = random.Random(1)  # every run and every server sees the same moments
    moments_s = sorted(chance.uniform(0, options.seconds) for _ in range(options.joins))
    start_s = time.monotonic()
    joiners = []
    for moment_s in moments_s:
        loop.spin(start_s + moment_s - time.monotonic())
        joiners.append(Joiner(loop, options.port, options.app, options.name))
    loop.spin(JOIN_LIMIT_S, lambda: not any(joiner.alive for joiner in joiners))
    waits_ns = sorted(joiner.first_key_ns - joiner.play_ns for joiner in joiners if joiner.first_key_ns)
    ages_ns = sorted(joiner.key_age_ns for joiner in joiners if joiner.first_key_ns)
    starts = [joiner.first_is_key for joiner in joiners if joiner.first_is_key is not None]
    return {
        "joins": len(joiners),
        "joined": len(waits_ns),
        "p50_ms": percentile_ms(waits_ns, 0.5),
        "p99_ms": percentile_ms(waits_ns, 0.99),
        "max_ms": percentile_ms(waits_ns, 1),
        "first_video_is_key": round(sum(starts) / len(starts), 3) if starts else None,
        "key_age_p50_ms": percentile_ms(ages_ns, 0.5),
        "errors": loop.errors,
    }


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.joins", description=__doc__)
    add_connection_options(parser)
    parser.add_argument("--joins", type=int, default=200)
    print(json.dumps(figures(parser.parse_args())), flush=True)


if __name__ == "__main__":
    main()
