"""Command line of the bench: ``python -m bench SCENARIO...``."""

import argparse
import shlex
import sys
from pathlib import Path

from bench import attacks, scenarios, servers
from bench.players import PROTOCOLS


def _counts(text):
    return [int(word) for word in text.split(",") if word]


def _streams(text):
    """Pairs of streams and players of each: 100x5,20x50."""
    return [tuple(map(int, word.split("x"))) for word in text.split(",") if word]


def _named_command(text):
    """NAME=COMMAND, as a name and a list of words."""
    name, equals, command = text.partition("=")
    words = shlex.split(command)
    if not name or not equals or not words:
        raise argparse.ArgumentTypeError(f"not NAME=COMMAND: {text}")
    return name, words


def _protocols(text):
    protocols = text.split(",")
    unknown = [protocol for protocol in protocols if protocol not in PROTOCOLS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such protocol: {', '.join(unknown)}")
    return protocols


def _names(text):
    names = text.split(",")
    unknown = [name for name in names if name not in attacks.ATTACKS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such attack: {', '.join(unknown)}")
    return names


def parser():
    known = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure rtmpd over loopback: CPU, memory, latency and what was delivered. See bench/README.rst.",
        epilog="\n".join(f"  {name:16}{run.__doc__}" for name, run in scenarios.SCENARIOS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known.add_argument("scenarios", nargs="+", metavar="SCENARIO", choices=[*scenarios.SCENARIOS, "all"])
    known.add_argument("--players", type=_counts, default=[100, 1000, 5000], help="fanout, floor: 100,1000,5000")
    known.add_argument("--viewers", type=_counts, default=[500], help="hls: 500")
    known.add_argument("--publishers", type=_counts, default=[50, 200], help="ingest: 50,200")
    known.add_argument("--streams", type=_streams, default=[(100, 5)], help="many: streams x players of each (100x5)")
    known.add_argument("--turns", type=int, default=15, help="many: turns of each server (15)")
    known.add_argument("--turn-seconds", type=float, default=1, help="many: length of a turn (1)")
    known.add_argument(
        "--protocol",
        type=_protocols,
        default=["rtmp"],
        metavar="PROTOCOLS",
        help=f"many: how players play, some of {','.join(PROTOCOLS)} (rtmp): one server for each",
    )
    known.add_argument("--pure", action="store_true", help="many: measure rtmpd with RTMPD_PURE=1, too")
    known.add_argument("--floor", action="store_true", help="many: also plain send(2), where there is one stream")
    known.add_argument(
        "--also",
        type=_named_command,
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="many: measure one more rtmpd, started as by --server-command; may be given several times",
    )
    known.add_argument("--joins", type=int, default=200, help="join: how many (200)")
    known.add_argument("--seconds", type=float, default=10, help="length of each window (10; stall at least 15)")
    known.add_argument("--kbps", type=int, help="video bitrate (1000; stall 5000)")
    known.add_argument("--peer", choices=["nginx"], help="measure this server beside rtmpd, where it is installed")
    known.add_argument(
        "--server-command",
        type=shlex.split,
        default=servers.RTMPD_COMMAND,
        metavar="COMMAND",
        help="how to start rtmpd in the foreground; {port} becomes the port; some scenarios add -c FILE",
    )
    known.add_argument(
        "--attacks", type=_names, help=f"torture: some of {', '.join(attacks.ATTACKS)} (all of them)", metavar="NAMES"
    )
    known.add_argument("--strict", action="store_true", help="torture: every bound that is broken is a failure")
    known.add_argument("--causes", action="store_true", help="torture: sample what the server does in long turns")
    known.add_argument("--json", type=Path, metavar="FILE", help="append every row to this JSON list")
    return known


def main():
    options = parser().parse_args()
    if "all" in options.scenarios:
        options.scenarios = [name for name in scenarios.SCENARIOS if name != "torture"]
    return scenarios.run(options)


if __name__ == "__main__":
    sys.exit(main())
