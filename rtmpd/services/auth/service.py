"""The authentication service: the hub's authorizer.

All but a callback is decided at once, in the greenlet of the connection. At a reload the daemon reads the files, in a thread,
before anything changes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

import gevent
from gevent.lock import Semaphore

from rtmpd.authorization import Action
from rtmpd.config.access_rules import is_user_name, parse_address, within
from rtmpd.config.model import DEFAULT_APPLICATION
from rtmpd.config.secret import MASK
from rtmpd.errors import LoginRequired, Refused, RtmpdError
from rtmpd.live.grant import Grant
from rtmpd.protocol import adobe_auth, status
from rtmpd.services.auth.bans import Bans
from rtmpd.services.auth.callback import THREADS, Callback, CallbackFailed
from rtmpd.services.auth.credentials import Credentials, CredentialsError, read_credentials
from rtmpd.services.auth.rules import Denied, Rules
from rtmpd.util.backoff import Backoff
from rtmpd.util.stream_key import StreamKey
from rtmpd.util.text import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rtmpd.authorization import Connect, Request
    from rtmpd.config.model import AuthConfig, Config
    from rtmpd.hub import Hub

log = logging.getLogger(__name__)

_TICK_S = 5.0
_RECHECKS = THREADS // 2
_RETRY_S, _RETRY_LIMIT_S = 1.0, 15.0
"""Waits between repeated questions about a running publish or play."""
_CODES = {Action.PUBLISH: status.PUBLISH_DENIED, Action.PLAY: status.PLAY_FAILED}


def _credential(request: Request) -> str:
    """Return a digest of what a client has shown: its user, or the name and the query, which have the token or the signature.

    Two publishers with the same one may replace each other (``takeover_by``). What names a backup is left out.
    """
    if request.user:
        return hashlib.sha256(f"user {request.user}".encode(errors="surrogatepass")).hexdigest()
    shown = sorted((name, value) for name, value in request.parameters.items() if name not in ("role", "backup"))
    return hashlib.sha256(repr((request.key, shown)).encode(errors="surrogatepass")).hexdigest()


class AuthOptions(NamedTuple):
    """The part of a configuration that authentication uses.

    Attributes:
        applications: The options of each application; under ``*`` those that hold without a more special one.
        application_of: Returns the name of the application that a path belongs to; None: it belongs to none.
    """

    applications: Mapping[str, AuthConfig]
    application_of: Callable[[str], str | None]

    @property
    def files(self) -> list[str]:
        """Every ``auth_file``."""
        return sorted({options.auth_file for options in self.applications.values() if options.auth_file})


def read_files(paths: Iterable[str]) -> dict[str, Credentials]:
    """Read each ``auth_file``. Blocks.

    Raises:
        RtmpdError: One can't be used; the message says which and why.
    """
    files = {}
    for path in paths:
        try:
            files[path] = read_credentials(path)
        except CredentialsError as error:
            raise RtmpdError(f"auth_file {path}: {error}") from None
    return files


class Auth:
    """The service.

    Args:
        hub: The hub.
        options: The options in force.

    Attributes:
        files: What was read of each ``auth_file``, by path. Set before the start and each reload.
    """

    def __init__(self, hub: Hub, options: AuthOptions) -> None:
        self._hub = hub
        self._options = options
        self._rules: dict[str, Rules] = {}
        # By application: what its rules are made of.
        self._credentials: dict[str, Credentials] = {}
        self.files: Mapping[str, Credentials] = {}
        self._bans = Bans()
        self._challenges = adobe_auth.Challenges(os.urandom(32))
        self._callback = Callback(hub)
        self._rechecks = Semaphore(_RECHECKS)
        self._greenlet: gevent.Greenlet[[], None] | None = None
        # An unknown user takes as long as a wrong password.
        self._no_password = os.urandom(16).hex()

    # The service -------------------------------------------------------------------------------------------------------

    @staticmethod
    def select(config: Config) -> AuthOptions:
        """Return the options of authentication, of all applications."""

        def application_of(path: str) -> str | None:
            found = config.application(path)
            return found[0] if found is not None else None

        applications = {name: application.auth for name, application in config.applications.items()}
        return AuthOptions({DEFAULT_APPLICATION: config.auth} | applications, application_of)

    def start(self) -> None:
        """Become the hub's authorizer, with the `files` that have been read."""
        self._make_rules()
        self._hub.authorizer = self
        self._hub.gauges["auth_callbacks_active"] = lambda: self._callback.active
        self._greenlet = gevent.spawn(self._run)

    def reload(self, options: AuthOptions) -> None:
        """Apply new options at once, with the `files` that have been read for them."""
        self._options = options
        self._make_rules()
        for path in options.files:
            if path in self.files:
                log.info("auth_file %s was read", path)

    def stop(self, limit_s: float) -> None:
        """Stop the greenlets. Requests are decided until the last connection is closed."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _make_rules(self) -> None:
        """Make the rules of each application. If its file has not been read, its earlier credentials stay in force."""
        applications = self._options.applications
        earlier, empty = self._credentials, Credentials()
        self._credentials = {
            name: self.files.get(options.auth_file) or earlier.get(name, empty)
            for name, options in applications.items()
            if options.auth_file
        }
        self._rules = {name: Rules(options, self._credentials.get(name, empty)) for name, options in applications.items()}

    def _run(self) -> None:
        while True:
            gevent.sleep(_TICK_S)
            for ban in self._bans.over(time.monotonic()):
                log.info("%s is no longer banned, %s refused", ban.address, count_of(ban.refused, "connection"))

    # Authorizer --------------------------------------------------------------------------------------------------------

    def bars(self, address: str) -> bool:
        """Return whether an address is banned."""
        if not self._bans.bars(address, time.monotonic()):
            return False
        self._hub.count("auth_banned_connections")
        return True

    def login(self, connect: Connect) -> str:
        """Return the user as which a client connects; empty: no login is required.

        Raises:
            Refused: The login failed.
            LoginRequired: The client has to connect again with the next step of a login.
        """
        # Clients cut URLs in different places: this may be only the beginning of an application's path.
        rules = self._rules_of(connect.app) or self._rules[DEFAULT_APPLICATION]
        if not rules.users:
            return ""
        parameters = adobe_auth.query_parameters(connect.query)
        authmod = parameters.get("authmod")
        if authmod is None:
            # A token or a signature is checked when the client publishes or plays.
            if not rules.requires_login(encoder=connect.encoder) or connect.parameters.keys() & {"token", "sign"}:
                return ""
            raise LoginRequired(status.CONNECT_REJECTED, adobe_auth.NEED_AUTH)
        try:
            return self._check_login(rules, authmod, parameters)
        except Denied as denied:
            text = adobe_auth.AUTH_FAILED if authmod == "adobe" else adobe_auth.UNKNOWN_AUTHMOD
            self._fail(rules, connect.address, denied)
            raise Refused(status.CONNECT_REJECTED, text, denied.reason) from None

    def _check_login(self, rules: Rules, authmod: str, parameters: dict[str, str]) -> str:
        if authmod != "adobe":
            raise Denied(f"authmod={ascii(authmod[:20])[1:-1]} is not supported, only adobe", guess=False)
        # As it is written in the URL: clients make their digest of that.
        written = parameters.get("user", "")
        user = unquote(written)
        if len(written) > 64 or not is_user_name(user):
            raise Denied("wrong user or password", guess=True)
        now_s = time.monotonic()
        if "response" not in parameters:
            raise LoginRequired(status.CONNECT_REJECTED, self._challenges.describe(written, now_s, os.urandom(9)))
        if not self._challenges.fresh(written, parameters.get("opaque", ""), now_s):
            raise Denied("the login took too long, or its challenge was used before", guess=False)
        passwords = [password.reveal() for password in rules.users.get(user, ())]
        if not self._challenges.proves(parameters, passwords or [self._no_password]):
            raise Denied("wrong user or password", guess=True)
        return user

    def shown_app(self, app: str) -> str:
        """Return an application, with a mask in place of what may be a publish key; a name of a live stream is none."""
        name = self._options.application_of(app)
        if name is None or app == name or app in self._hub.streams:
            return app
        shown = max(name if app.startswith(f"{name}/") else "", self._rules[name].public_part(app), key=len)
        return app if shown == app else f"{shown}/{MASK}".lstrip("/")

    def authorize(self, request: Request) -> Grant:
        """Return what a client is granted. Waits for a callback, if there is one.

        Raises:
            Refused: The client may not publish or play it.
        """
        rules = self._rules_of(StreamKey(request.key).app)
        if rules is None:
            # There is no such application: the hub refuses it.
            return Grant(StreamKey(request.key))
        try:
            if self._bans and self._bans.bars(request.address, time.monotonic()):
                # Banned after the connection was accepted: the callback must not be asked again.
                raise Denied("this address is banned", guess=False)
            grant, proved = self._decide(request, rules)
        except Denied as denied:
            self._fail(rules, request.address, denied)
            text = f"Not authorized: {denied.reason}."
            raise Refused(_CODES[request.action], text, denied.reason, unproved=denied.unproved) from None
        if proved:
            self._hub.count("auth_successes")
        return grant

    def is_open(self, request: Request) -> bool:
        """Return whether any client of that address may do this, and no callback has to be asked."""
        rules = self._rules_of(StreamKey(request.key).app)
        if rules is None or (self._bans and self._bans.bars(request.address, time.monotonic())):
            return False
        try:
            decision = rules.decide(replace(request, user="", parameters={}), time.time(), exists=True)
        except Denied:
            return False
        return not decision.ask and not decision.proof

    def _decide(self, request: Request, rules: Rules) -> tuple[Grant, bool]:
        """Return what a client is granted, and whether it had to prove anything. May wait; raises `Denied`."""
        exists = request.running_s is not None or request.key in self._hub.streams
        known = self._without_foreign_user(request, rules)
        decision = rules.decide(known, time.time(), exists=exists)
        if not decision.ask:
            return Grant(decision.key, credential=_credential(known) if decision.proof else ""), bool(decision.proof)
        grant = self._callback.ask(rules.options, request, decision.key)
        # A callback may take the name for a secret, and then returns another one. Otherwise a bare name shows nothing.
        credential = _credential(known) if known.user or known.parameters or grant.key != request.key else ""
        expires_s = grant.expires_s or rules.options.auth_recheck_s
        return replace(grant, expires_s=expires_s, credential=credential), True

    def renew(self, request: Request, grant: Grant) -> Grant:
        """Decide about a running publish or play again, by the rules in force now; only the time of the answer counts.

        While the callback fails, the question is repeated, for ``auth_recheck_grace_s`` at most.

        Raises:
            Refused: The client may not continue.
        """
        self._hub.count("auth_rechecks")
        began_s, backoff = time.monotonic(), Backoff(random.random)
        while True:
            rules = self._rules_of(StreamKey(request.key).app)
            if rules is None:
                return grant
            grace_s = rules.options.auth_recheck_grace_s
            try:
                found = self._decide_in_turn(request, rules, max(grace_s, rules.options.auth_callback_timeout_s))
            except Denied as denied:
                left_s = began_s + grace_s - time.monotonic()
                if not isinstance(denied, CallbackFailed) or left_s <= 0:
                    self._hub.count("auth_revocations")
                    raise Refused(_CODES[request.action], f"No longer authorized: {denied.reason}.", denied.reason) from None
                gevent.sleep(min(left_s, backoff.next_s(_RETRY_S, _RETRY_LIMIT_S)))
            else:
                return replace(grant, expires_s=found.expires_s or grant.expires_s)

    def _decide_in_turn(self, request: Request, rules: Rules, limit_s: float) -> Grant:
        """Decide when fewer than `_RECHECKS` other re-checks ask the callback: clients that come have the other threads."""
        if not self._rechecks.acquire(timeout=limit_s):
            self._callback.failed(rules.options, f"no turn for a re-check within {limit_s:g} s", recheck=True)
            raise CallbackFailed
        try:
            return self._decide(request, rules)[0]
        finally:
            self._rechecks.release()

    def _without_foreign_user(self, request: Request, rules: Rules) -> Request:
        """Return a request without its user, if the user of that name has another password in the stream's application."""
        if request.user:
            home = self._rules_of(request.app) or self._rules[DEFAULT_APPLICATION]
            if home.users.get(request.user) != rules.users.get(request.user):
                return replace(request, user="")
        return request

    def _rules_of(self, path: str) -> Rules | None:
        name = self._options.application_of(path)
        return self._rules[name] if name is not None else None

    def _fail(self, rules: Rules, address: str, denied: Denied) -> None:
        self._hub.count("auth_failures")
        options = rules.options
        if not denied.guess or within(parse_address(address), options.auth_ban_exempt):
            return
        banned = self._bans.fail(
            address,
            time.monotonic(),
            failures=options.auth_ban_failures,
            window_s=options.auth_ban_window_s,
            ban_s=options.auth_ban_s,
        )
        if banned:
            self._hub.count("auth_bans")
            text = "%s is banned for %g s (auth_ban_s) after %d failures (auth_ban_failures)"
            log.warning(text, banned, options.auth_ban_s, options.auth_ban_failures)
