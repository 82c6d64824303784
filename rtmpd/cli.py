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
from rtmpd.errors import ConfigError

# What only a started server needs is imported where it is used: --version and --help must not wait for gevent.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rtmpd.config.model import Config

__all__ = ["FLAGS", "Flag", "main"]


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag that overrides one option of the configuration.

    Attributes:
        name: The flag.
        argument: What its argument is called; empty: it has none, and means yes.
        section: The option's section.
        option: The option.
        repeated: Whether it can be given more than once, for an option that takes several values.
        description: What ``--help`` says.
    """

    name: str
    argument: str
    section: str
    option: str
    repeated: bool
    description: str


FLAGS: Final = (
    Flag("--listen", "ADDR", "server", "listen", True, "listen on HOST:PORT, :PORT or [IPv6]:PORT; can be repeated"),
    Flag("--log-level", "LEVEL", "log", "level", False, "log this level and above: debug, info, warning or error"),
    Flag("--log-target", "TARGET", "log", "log_target", False, "log to stderr or journal"),
    Flag("--log-file", "PATH", "log", "log_file", False, "log to this file"),
    Flag("--log-format", "FORMAT", "log", "log_format", False, "log text or json"),
    Flag("--access-log", "PATH", "log", "access_log_file", False, "write to this file how each publish and play went"),
    Flag("--tls-listen", "ADDR", "tls", "tls_listen", True, "listen on this address for RTMPS; can be repeated"),
    Flag("--tls-cert", "PATH", "tls", "tls_cert", True, "a file with certificates (PEM); can be repeated"),
    Flag("--tls-key", "PATH", "tls", "tls_key", True, "a file with the certificate's key (PEM); can be repeated"),
    Flag("--chunk-size", "BYTES", "server", "chunk_size_bytes", False, "send chunks of this size"),
    Flag("--record-all", "", "record", "record_all", False, "record every stream"),
    Flag("--record-dir", "DIR", "record", "record_directory", False, "write recordings to this directory"),
    Flag("--segment-duration", "SECONDS", "record", "segment_duration_s", False, "begin another file after this time"),
    Flag("--segment-pattern", "NAME", "record", "record_file_name", False, "name recordings like this"),
    Flag("--auth-mode", "MODE", "auth", "auth_mode", False, "what a client has to show: none, token, file or callback"),
    Flag("--auth-token", "KEY=TOKEN", "auth", "auth_tokens", True, "the token of a stream, APPLICATION/NAME; can be repeated"),
    Flag("--auth-file", "PATH", "auth", "auth_file", False, "a JSON file with the tokens of streams"),
    Flag("--auth-callback", "URL", "auth", "auth_callback", False, "ask this web server"),
    Flag("--auth-callback-timeout", "SECONDS", "auth", "auth_callback_timeout_s", False, "time that the callback has"),
    Flag(
        "--relay-to", "URL", "relay", "relay_to", True, "push every stream on to rtmp://HOST/APPLICATION/NAME; can be repeated"
    ),
    Flag("--metrics-addr", "ADDR", "metrics", "metrics_listen", True, "serve metrics on HOST:PORT or :PORT; can be repeated"),
    Flag("--hook-script", "HOOK", "hooks", "hook_scripts", True, "run a program: EVENT=PATH ARGUMENTS; can be repeated"),
    Flag("--hook-webhook", "HOOK", "hooks", "hook_webhooks", True, "post events to a web server: EVENT=URL; can be repeated"),
    Flag("--hook-stdio-format", "FORMAT", "hooks", "hook_stdio_format", False, "write events to standard output: json or env"),
    Flag("--hook-timeout", "SECONDS", "hooks", "hook_timeout_s", False, "time for a program, or for one try to post"),
    Flag("--hook-concurrency", "COUNT", "hooks", "hook_concurrency", False, "programs and posts at the same time"),
)
"""Every flag that overrides an option; the spec names the same ones."""

_DEFAULTS_NAME = "the built-in configuration"
_SIGN_S = 86400


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (``sys.argv`` if there are none) and give its exit status.

    Raises:
        SystemExit: As argparse does: status 2 for arguments that are wrong, 0 after ``--help`` and ``--version``.
    """
    arguments = _parser().parse_args(argv)
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
    # Without abbreviations: one that works today would be ambiguous after the next flag.
    parser = argparse.ArgumentParser(prog="rtmpd", description="An RTMP server.", allow_abbrev=False)
    parser.add_argument("-c", "--config", metavar="FILE", help="the configuration file; without it, the defaults")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--check-config", action="store_true", help="say whether the configuration would work here, and exit")
    actions.add_argument("--print-config", action="store_true", help="print the whole effective configuration, and exit")
    actions.add_argument("--sign-publish", metavar="URL", help="print this URL with a signature to publish, and exit")
    actions.add_argument("--sign-play", metavar="URL", help="print this URL with a signature to play, and exit")
    parser.add_argument("--sign-for", metavar="SECONDS", type=_seconds, default=_SIGN_S, help="how long a signature is good")
    parser.add_argument("--version", action="version", version=f"rtmpd {__version__}")
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
    """Return the options that flags have set."""
    given = {(flag.section, flag.option): getattr(arguments, flag.name[2:].replace("-", "_")) for flag in FLAGS}
    return {option: value for option, value in given.items() if value is not None}


def _seconds(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 10**10:
        raise argparse.ArgumentTypeError("expected a whole number of seconds")
    return int(text)


def _check(config: Config, arguments: argparse.Namespace) -> int:
    """Check a configuration, whose values are right, against this machine; say what is wrong."""
    from rtmpd.config.loader import origins
    from rtmpd.daemon.preflight import preflight

    name = arguments.config or _DEFAULTS_NAME
    places = origins(arguments.config, _overrides(arguments))
    found = preflight(config, name, places, is_file=arguments.config is not None)
    for line in found.notes + found.problems:
        print(line, file=sys.stderr)
    return 1 if found.problems else _print(f"{name}: ok\n")


def _sign(config: Config, arguments: argparse.Namespace) -> int:
    """Print a signed URL. The secret is the first one of the URL's application."""
    from rtmpd.services.auth.signing import sign_url, stream_of_url

    action, url = ("publish", arguments.sign_publish) if arguments.sign_publish else ("play", arguments.sign_play)
    try:
        found = config.application(stream_of_url(url).rpartition("/")[0])
    except ValueError as error:
        print(f"rtmpd: {error}", file=sys.stderr)
        return 1
    secrets = found[1].auth.auth_sign_secrets if found is not None else ()
    if not secrets:
        print("rtmpd: there are no auth_sign_secrets for this application", file=sys.stderr)
        return 1
    return _print(sign_url(secrets[0], action, url, int(time.time()) + arguments.sign_for) + "\n")


def _print(text: str) -> int:
    """Print ``text``, also into a pipe that nobody reads to the end."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A configuration is UTF-8 whatever the locale is; a file's name goes out as it came in.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        # The reader has what it wanted. The interpreter would complain when it flushes at exit: give it nothing to hit.
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
