"""The command ``rtmpd``."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rtmpd import __version__
from rtmpd.errors import ConfigError, RemuxError, SlateError
from rtmpd.util import speed

# Modules that --version and --help do not need are imported where they are used, since gevent and the configuration are slow.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtmpd.config.model import Config


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag that overrides one option of the configuration.

    Attributes:
        name: The flag.
        argument: The name of its argument; empty: the flag has none and means yes.
        section: The option's section.
        option: The option.
        repeated: Whether the flag can be repeated, for an option with several values.
        description: The text of ``--help``.
    """

    name: str
    argument: str
    section: str
    option: str
    repeated: bool
    description: str


FLAGS: Final = (
    Flag("--listen", "ADDR", "server", "listen", True, "listen on HOST:PORT, [IPv6]:PORT or :PORT; can be repeated"),
    Flag("--log-level", "LEVEL", "log", "level", False, "lowest level to log: debug, info, warning or error"),
    Flag("--log-target", "TARGET", "log", "log_target", False, "write the log to stderr or journal"),
    Flag("--log-file", "PATH", "log", "log_file", False, "write the log to this file"),
    Flag("--log-format", "FORMAT", "log", "log_format", False, "format of the log: text or json"),
    Flag("--access-log", "PATH", "log", "access_log_file", False, "write a line per publish and play to this file"),
    Flag("--tls-listen", "ADDR", "tls", "tls_listen", True, "listen on this address for RTMPS; can be repeated"),
    Flag("--tls-cert", "PATH", "tls", "tls_cert", True, "certificate file of the server (PEM); can be repeated"),
    Flag("--tls-key", "PATH", "tls", "tls_key", True, "private key file of a certificate (PEM); can be repeated"),
    Flag("--chunk-size", "BYTES", "server", "chunk_size_bytes", False, "size of chunks that the server sends"),
    Flag("--record-all", "", "record", "record_all", False, "record every stream"),
    Flag("--record-dir", "DIR", "record", "record_directory", False, "write recordings to this directory"),
    Flag("--record-format", "FORMAT", "record", "record_format", False, "format of recordings: flv or mp4"),
    Flag("--segment-duration", "SECONDS", "record", "segment_duration_s", False, "longest duration of one recorded file"),
    Flag("--segment-pattern", "NAME", "record", "record_file_name", False, "name of recordings: {app}/{name}-{n}"),
    Flag("--auth-mode", "MODE", "auth", "auth_mode", False, "what clients need: none, token, file or callback"),
    Flag("--auth-token", "KEY=TOKEN", "auth", "auth_tokens", True, "token of the stream APPLICATION/NAME; can be repeated"),
    Flag("--auth-file", "PATH", "auth", "auth_file", False, "JSON file with tokens, publish keys and users"),
    Flag("--auth-callback", "URL", "auth", "auth_callback", False, "web server that authorizes clients"),
    Flag("--auth-callback-timeout", "SECONDS", "auth", "auth_callback_timeout_s", False, "time for its answer"),
    Flag("--relay-to", "URL", "relay", "relay_to", True, "push each stream to this rtmp[s]:// URL; can be repeated"),
    Flag("--http-listen", "ADDR", "http", "http_listen", True, "serve HTTP on this address; can be repeated"),
    Flag("--metrics-addr", "ADDR", "metrics", "metrics_listen", True, "serve metrics on HOST:PORT or :PORT; can be repeated"),
    Flag("--hook-script", "HOOK", "hooks", "hook_scripts", True, "run a program for events: EVENT=PATH; can be repeated"),
    Flag("--hook-webhook", "HOOK", "hooks", "hook_webhooks", True, "post events to a web server: EVENT=URL; can be repeated"),
    Flag("--hook-stdio-format", "FORMAT", "hooks", "hook_stdio_format", False, "write events to stdout: off, json or env"),
    Flag("--hook-timeout", "SECONDS", "hooks", "hook_timeout_s", False, "time for a program, or for one attempt to post"),
    Flag("--hook-concurrency", "COUNT", "hooks", "hook_concurrency", False, "most programs and posts at the same time"),
)
"""The flags that override options. The spec names them, too, and a test compares the two."""

_DEFAULTS_NAME = "the built-in configuration"
_SIGN_S = 86400


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. *argv* are the arguments; None: those of ``sys.argv``.

    Raises:
        SystemExit: By argparse: status 2 for wrong arguments, 0 after ``--help`` and ``--version``.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.like is not None and not arguments.make_slate:
        parser.error("argument --like: only allowed with argument --make-slate")
    if arguments.make_slate:
        picture, out = arguments.make_slate
        return _make_slate(picture, out, arguments.like)
    if arguments.remux:
        return _remux(*arguments.remux)
    try:
        config = _load(arguments)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 1
    if arguments.check_config:
        return _check(config, arguments)
    if arguments.print_config:
        from rtmpd.config.loader import origins
        from rtmpd.config.render import render_config

        return _print(render_config(config, origins(arguments.config, _overrides(arguments))))
    if arguments.sign_publish or arguments.sign_play:
        return _sign(config, arguments)
    from rtmpd.daemon.main import run

    return run(config, lambda: _load(arguments))


def _parser() -> argparse.ArgumentParser:
    # No abbreviations: they could become ambiguous with the next flag.
    parser = argparse.ArgumentParser(prog="rtmpd", description="An RTMP server.", allow_abbrev=False)
    parser.add_argument("-c", "--config", metavar="FILE", help="configuration file; without it the defaults apply")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument(
        "--check-config", action="store_true", help="check whether the configuration would work on this machine, and exit"
    )
    actions.add_argument("--print-config", action="store_true", help="print all options with their effective values, and exit")
    actions.add_argument("--sign-publish", metavar="URL", help="print this URL with a signature for publishing, and exit")
    actions.add_argument("--sign-play", metavar="URL", help="print this URL with a signature for playing, and exit")
    parser.add_argument(
        "--sign-for", metavar="SECONDS", type=_seconds, default=_SIGN_S, help="validity of the signature; default: one day"
    )
    actions.add_argument(
        "--make-slate",
        nargs=2,
        metavar=("PICTURE", "OUT"),
        help="make a slate, a short FLV or MP4 file to be sent in a loop, from a picture with ffmpeg, and exit",
    )
    actions.add_argument(
        "--remux",
        nargs=2,
        metavar=("RECORDING", "OUT"),
        help="make a fragmented MP4 file of an FLV recording, without encoding it again, and exit",
    )
    parser.add_argument("--like", metavar="RECORDING", help="encode the slate as this FLV or MP4 file is encoded")
    parser.add_argument("--version", action="version", version=f"rtmpd {__version__} ({speed.IN_USE})")
    for flag in FLAGS:
        if flag.argument:
            action = "append" if flag.repeated else "store"
            parser.add_argument(flag.name, metavar=flag.argument, action=action, help=flag.description)
        else:
            parser.add_argument(flag.name, action="store_const", const="yes", help=flag.description)
    return parser


def _load(arguments: argparse.Namespace) -> Config:
    from rtmpd.config.loader import load_file, load_text

    if arguments.config is None:
        return load_text("", _DEFAULTS_NAME, _overrides(arguments))
    return load_file(arguments.config, _overrides(arguments))


def _overrides(arguments: argparse.Namespace) -> dict[tuple[str, str], list[str] | str]:
    """Return the values of options that flags set."""
    given = {(flag.section, flag.option): getattr(arguments, flag.name[2:].replace("-", "_")) for flag in FLAGS}
    return {option: value for option, value in given.items() if value is not None}


def _seconds(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 10**10:
        raise argparse.ArgumentTypeError(f"expected a whole number of seconds, got {text!r}")
    return int(text)


def _check(config: Config, arguments: argparse.Namespace) -> int:
    """Check a valid configuration against this machine and print the findings."""
    from rtmpd.config.loader import origins
    from rtmpd.daemon.preflight import preflight

    name = arguments.config or _DEFAULTS_NAME
    places = origins(arguments.config, _overrides(arguments))
    found = preflight(config, name, places, is_file=arguments.config is not None)
    for line in found.notes + found.problems:
        print(line, file=sys.stderr)
    return 1 if found.problems else _print(f"{name}: ok\n")


def _sign(config: Config, arguments: argparse.Namespace) -> int:
    """Print a signed URL. It is signed with the first secret of its application."""
    from rtmpd.services.auth.signing import sign_url, stream_of_url
    from rtmpd.util.stream_key import StreamKey

    action, url = ("publish", arguments.sign_publish) if arguments.sign_publish else ("play", arguments.sign_play)
    try:
        found = config.application(StreamKey(stream_of_url(url)).app)
    except ValueError as error:
        print(f"rtmpd: {error}", file=sys.stderr)
        return 1
    secrets = found[1].auth.auth_sign_secrets if found is not None else ()
    if not secrets:
        print("rtmpd: can't sign: auth_sign_secrets is not set for this application", file=sys.stderr)
        return 1
    return _print(sign_url(secrets[0], action, url, int(time.time()) + arguments.sign_for) + "\n")


def _make_slate(picture: str, out: str, like: str | None) -> int:
    """Make a slate and print its description."""
    from rtmpd.slate_maker import differences, make_slate

    try:
        slate, form = make_slate(picture, out, like)
    except SlateError as error:
        print(f"rtmpd: can't make a slate: {error}", file=sys.stderr)
        return 1
    if like is not None:
        for difference in differences(slate, form):
            print(f"rtmpd: note: the slate has {difference}", file=sys.stderr)
    return _print(f"{out}: {slate.description}\n")


def _remux(recording: str, out: str) -> int:
    """Make an MP4 file of a recording and print its description."""
    from rtmpd.remuxer import remux

    try:
        remuxed = remux(recording, out)
    except RemuxError as error:
        print(f"rtmpd: can't remux: {error}", file=sys.stderr)
        return 1
    for note in remuxed.notes:
        print(f"rtmpd: note: {note}", file=sys.stderr)
    return _print(f"{out}: {remuxed.description}\n")


def _print(text: str) -> int:
    """Print *text*; a pipe whose reader closes it early is not an error. Return the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A configuration is UTF-8 in every locale; the bytes of a file's name are printed as they were given.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        # Without another descriptor the interpreter would report an error when it flushes at exit.
        _discard_stdout()
    except OSError as error:
        _discard_stdout()
        print(f"rtmpd: can't write: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _discard_stdout() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
