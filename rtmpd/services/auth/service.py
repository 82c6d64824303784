"""The authentication service: the hub's authorizer.

Everything but a callback is decided at once, in the greenlet of whoever asks. A callback is asked by one of a few native
threads, and the connection waits for it, for a bounded time; when too many wait already, the next one is denied. Nothing is
remembered of an answer. Files are read by a thread of their own when the configuration is reloaded.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import unquote

import gevent

from rtmpd.authorization import Action
from rtmpd.config.access_rules import is_user_name, parse_address, within
from rtmpd.config.model import DEFAULT_APPLICATION
from rtmpd.errors import LoginRequired, Refused, RtmpdError
from rtmpd.protocol import adobe_auth, status
from rtmpd.services.auth.bans import Bans
from rtmpd.services.auth.callback import Call, CallbackFailed, name_of, place_of
from rtmpd.services.auth.rules import Denied, Rules
from rtmpd.services.auth.table import Table, TableError
from rtmpd.services.auth.table_file import read_table
from rtmpd.util.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rtmpd.authorization import Connect, Request
    from rtmpd.config.model import AuthConfig, Config
    from rtmpd.hub import Hub
    from rtmpd.services.auth.callback import Answer
    from rtmpd.services.auth.rules import Decision

__all__ = ["CALLS", "Auth"]

log = logging.getLogger(__name__)

CALLS = 16
_CALLS_LIMIT = 256
"""Callbacks under way or waiting for a thread: more are denied."""
_TICK_S = 5.0
_REPEAT_S = 10.0
_BANNED = "this address is banned"
_CODES = {Action.PUBLISH: status.PUBLISH_DENIED, Action.PLAY: status.PLAY_FAILED}


class Auth:
    """The service.

    Attributes:
        calls: How many callbacks are under way or wait for a thread.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._rules: dict[str, Rules] = {}
        # By application: what each goes by; and by path, for applications that a reload adds.
        self._tables: dict[str, Table] = {}
        self._files: dict[str, Table] = {}
        self._bans = Bans()
        self._challenges = adobe_auth.Challenges(os.urandom(32))
        self._threads = Threads(CALLS)
        self._reader = Threads(1)
        self.calls = 0
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._reading: gevent.Greenlet[..., None] | None = None
        self._callback_logged_at = float("-inf")
        # Somebody who is no user needs as long as one with a wrong password.
        self._nobody = os.urandom(16).hex()

    # The service's life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin.

        Raises:
            RtmpdError: An ``auth_file`` can't be used, so that it is not known who may come in.
        """
        config = self._hub.config
        for path in _paths(config):
            try:
                self._files[path] = read_table(path)
            except TableError as error:
                raise RtmpdError(f"auth_file {path}: {error}") from None
        self._make_rules(config)
        self._hub.authorizer = self
        self._hub.gauges["auth_callbacks_active"] = lambda: self.calls
        self._greenlet = gevent.spawn(self._run)

    @staticmethod
    def select(config: Config) -> Config:
        """Return the part of a configuration that the service uses."""
        return config

    def reload(self, config: Config) -> None:
        """Go by other options at once, and read the files again."""
        self._make_rules(config)
        # One after the other: what an older reload has read must not replace what a newer one has.
        self._reading = gevent.spawn(self._read_again, config, self._reading)

    def stop(self, limit_s: float) -> None:
        """End. What is asked for until all connections are closed is denied."""
        for greenlet in (self._greenlet, self._reading):
            if greenlet is not None:
                greenlet.kill(block=False)

    def _make_rules(self, config: Config) -> None:
        """Make the rules of each application, by what is known of its file: what it went by before, if the file is wrong."""
        empty = Table()
        self._tables = {
            name: self._files.get(auth.auth_file) or self._tables.get(name, empty)
            for name, auth in _parts(config)
            if auth.auth_file
        }
        self._rules = {name: Rules(auth, self._tables.get(name, empty)) for name, auth in _parts(config)}

    def _read_again(self, config: Config, before: gevent.Greenlet[..., None] | None) -> None:
        if before is not None:
            before.join()
        files: dict[str, Table] = {}
        for path in _paths(config):
            try:
                files[path] = self._reader.call(read_table, path)
            except TableError as error:
                self._hub.count("auth_file_errors")
                log.error("auth_file %s: %s; what was read before stays in force", path, error)
                if path in self._files:
                    files[path] = self._files[path]
            else:
                log.info("auth_file %s was read", path)
        self._files = files
        self._make_rules(self._hub.config)

    def _run(self) -> None:
        while True:
            gevent.sleep(_TICK_S)
            for ban in self._bans.over(time.monotonic()):
                log.info("%s is no longer banned; %d connections were refused", ban.who, ban.refused)

    # Authorizer --------------------------------------------------------------------------------------------------------

    def bars(self, address: str) -> bool:
        """Whether an address is banned."""
        if not self._bans.bars(address, time.monotonic()):
            return False
        self._hub.count("auth_banned_connections")
        return True

    def login(self, connect: Connect) -> str:
        """Let a client connect, as a user if its application has users.

        Raises:
            Refused: The login failed. LoginRequired: It has to go on.
        """
        # Clients cut URLs in different places: this may be only the beginning of an application's path.
        rules = self._rules_of(connect.app) or self._rules[DEFAULT_APPLICATION]
        if not rules.users:
            return ""
        parameters = adobe_auth.query_parameters(connect.query)
        authmod = parameters.get("authmod")
        if authmod is None:
            # Who brings something else to show is asked for it when it publishes or plays.
            if not rules.asks_for_login(encoder=connect.encoder) or not connect.parameters.keys().isdisjoint(("token", "sign")):
                return ""
            raise LoginRequired(status.CONNECT_REJECTED, adobe_auth.NEED_AUTH)
        try:
            return self._judge_login(rules, authmod, parameters)
        except Denied as denied:
            text = adobe_auth.AUTH_FAILED if authmod == "adobe" else adobe_auth.UNKNOWN_AUTHMOD
            self._fail(rules, connect.address, denied)
            raise Refused(status.CONNECT_REJECTED, text, denied.reason) from None

    def _judge_login(self, rules: Rules, authmod: str, parameters: dict[str, str]) -> str:
        if authmod != "adobe":
            raise Denied(f"authmod={ascii(authmod[:20])[1:-1]} is not supported, only adobe", guess=False)
        # As it stands in the URL, as a rule; its digest is made of that.
        written = parameters.get("user", "")
        user = unquote(written)
        if len(written) > 64 or not is_user_name(user):
            raise Denied("wrong user or password", guess=True)
        now = time.monotonic()
        if "response" not in parameters:
            raise LoginRequired(status.CONNECT_REJECTED, self._challenges.describe(written, now, os.urandom(9)))
        if not self._challenges.fresh(written, parameters.get("opaque", ""), now):
            raise Denied("the login took too long, or its challenge was used before", guess=False)
        passwords = [password.reveal() for password in rules.users.get(user, ())]
        if not self._challenges.proves(parameters, passwords or [self._nobody]):
            raise Denied("wrong user or password", guess=True)
        return user

    def authorize(self, request: Request) -> str:
        """Let a client publish or play; waits for a callback if there is one.

        Raises:
            Refused: It may not.
        """
        rules = self._rules_of(request.key.rpartition("/")[0])
        if rules is None:
            # There is no such application. The hub knows what to say.
            return request.key
        try:
            if self._bans and self._bans.bars(request.address, time.monotonic()):
                # It has been, since this connection was accepted: no more callbacks for it.
                raise Denied(_BANNED, guess=False)
            decision = rules.decide(self._at_home(request, rules), time.time())
            key = self._ask(rules, request, decision) if decision.ask else decision.key
        except Denied as denied:
            self._fail(rules, request.address, denied)
            raise Refused(_CODES[request.action], f"Not authorized: {denied.reason}.", denied.reason) from None
        if decision.ask or decision.proof:
            self._hub.count("auth_successes")
        return key

    def _at_home(self, request: Request, rules: Rules) -> Request:
        """Return a request without its user, if that is somebody else where the stream is: another password, the same name."""
        if request.user:
            home = self._rules_of(request.app) or self._rules[DEFAULT_APPLICATION]
            if home.users.get(request.user) != rules.users.get(request.user):
                return replace(request, user="")
        return request

    def _rules_of(self, path: str) -> Rules | None:
        found = self._hub.config.application(path)
        return self._rules[found[0]] if found is not None else None

    def _fail(self, rules: Rules, address: str, denied: Denied) -> None:
        self._hub.count("auth_failures")
        config = rules.config
        if not denied.guess or within(parse_address(address), config.auth_ban_exempt):
            return
        banned = self._bans.fail(
            address,
            time.monotonic(),
            failures=config.auth_ban_failures,
            window_s=config.auth_ban_window_s,
            ban_s=config.auth_ban_s,
        )
        if banned:
            self._hub.count("auth_bans")
            log.warning("%s is banned for %g s after %d failures", banned, config.auth_ban_s, config.auth_ban_failures)

    # The callback ------------------------------------------------------------------------------------------------------

    def _ask(self, rules: Rules, request: Request, decision: Decision) -> str:
        request.waiting()
        config = rules.config
        app, _, name = decision.key.rpartition("/")
        token = request.parameters.get("token", "")
        question = {
            "action": str(request.action),
            "app": app,
            "stream_name": name,
            "stream_key": decision.key,
            "token": token,
            "remote_addr": request.peer,
        }
        try:
            ca = self._hub.tls.client.ca
            answer = self._answer(Call(config.auth_callback, question, config.auth_callback_timeout_s, ca), config)
            given = name_of(answer) if answer.allowed and request.action is Action.PUBLISH else ""
        except CallbackFailed as error:
            self._say_callback_failed(config, error)
            raise Denied("the authentication service failed", guess=False) from None
        if not answer.allowed:
            # Without a token and to play, there was nothing to guess.
            raise Denied("the callback said no", guess=bool(token) or request.action is Action.PUBLISH)
        return f"{app}/{given}" if given else decision.key

    def _answer(self, call: Call, config: AuthConfig) -> Answer:
        """Have a thread ask. Waits for a thread, and for the answer, together no longer than the callback has."""
        if self.calls >= _CALLS_LIMIT:
            raise CallbackFailed(f"{self.calls} others wait for it")
        self.calls += 1
        limit_s = config.auth_callback_timeout_s
        timeout = gevent.Timeout(limit_s)
        timeout.start()
        try:
            return self._threads.call(call.run)
        except gevent.Timeout as error:
            if error is not timeout:
                raise
            raise CallbackFailed(f"it did not answer within {limit_s:g} s") from None
        finally:
            timeout.cancel()
            self.calls -= 1
            # Harmless if it is over.
            call.cut()

    def _say_callback_failed(self, config: AuthConfig, error: CallbackFailed) -> None:
        self._hub.count("auth_callback_errors")
        now = time.monotonic()
        if now - self._callback_logged_at > _REPEAT_S:
            self._callback_logged_at = now
            failures = self._hub.counters["auth_callback_errors"]
            log.error("auth_callback %s: %s (%d failures so far)", place_of(config.auth_callback), error, failures)


def _parts(config: Config) -> Iterator[tuple[str, AuthConfig]]:
    """Every application by its name, and what holds for all if there are none."""
    yield DEFAULT_APPLICATION, config.auth
    for name, options in config.applications.items():
        yield name, options.auth


def _paths(config: Config) -> list[str]:
    """Every file that is to be read."""
    return sorted({auth.auth_file for _, auth in _parts(config) if auth.auth_file})
