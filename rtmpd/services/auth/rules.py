"""The rules of one application: what a client has to show, and what it gets for it.

Pure: nothing waits here, and the time is the caller's. A callback is not asked here, only found to be needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rtmpd.authorization import Action
from rtmpd.config.access_rules import parse_address, within
from rtmpd.services.auth.signing import verified
from rtmpd.services.auth.table import PublishKeys, Table

if TYPE_CHECKING:
    from rtmpd.authorization import Request
    from rtmpd.config.model import AuthConfig
    from rtmpd.config.secret import Secret

__all__ = ["Decision", "Denied", "Rules"]


class Denied(Exception):
    """A client is not let in.

    Attributes:
        reason: Why, for the log and for the client; holds no secret and no name that may be one.
        guess: Whether the client may have been guessing: that counts towards a ban.
    """

    def __init__(self, reason: str, *, guess: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.guess = guess


@dataclass(frozen=True, slots=True)
class Decision:
    """A client may come in, or the callback decides.

    Attributes:
        key: The stream that it gets.
        proof: What let it in; empty if nothing was asked.
        ask: The callback has to be asked.
    """

    key: str
    proof: str = ""
    ask: bool = False


class Rules:
    """What holds for one application.

    Args:
        config: Its options.
        table: What its ``auth_file`` holds; an empty table without one.
    """

    def __init__(self, config: AuthConfig, table: Table) -> None:
        self.config = config
        self._tokens = Table.of_tokens(config.auth_tokens) if config.auth_mode == "token" else table
        keys = [(each.name, each.secret.reveal()) for each in config.auth_publish_keys]
        self._publish_keys = PublishKeys([*keys, *((stream, key.reveal()) for stream, key in table.publish_keys)])
        self.users: dict[str, tuple[Secret, ...]] = {name: (password,) for name, password in table.users.items()}
        for each in config.auth_users:
            self.users[each.name] = (*self.users.get(each.name, ()), each.secret)

    def asks(self, action: Action) -> bool:
        """Whether those who want to do this are asked for anything but a publish key."""
        config = self.config
        if not (config.auth_publish if action is Action.PUBLISH else config.auth_play):
            return False
        return config.auth_mode != "none" or bool(self.users) or bool(config.auth_sign_secrets)

    def asks_for_login(self, *, encoder: bool) -> bool:
        """Whether a client has to log in when it connects. What it will do is only known of encoders, by what they say."""
        return bool(self.users) and (self.config.auth_publish if encoder else self.config.auth_play)

    def decide(self, request: Request, now_s: float) -> Decision:
        """Decide about a publish or play.

        Args:
            request: What is wanted.
            now_s: The time of day, seconds since 1970.

        Raises:
            Denied: It is not to be.
        """
        self._check_address(request)
        key, proof = self._stream_of(request)
        if not self.asks(request.action):
            return Decision(key, proof)
        config = self.config
        if request.user and request.user in self.users:
            return Decision(key, "login")
        if config.auth_sign_secrets and "sign" in request.parameters:
            self._check_signature(request, now_s)
            return Decision(key, "signature")
        if config.auth_mode == "callback":
            return Decision(key, ask=True)
        if config.auth_mode in ("token", "file"):
            self._check_token(request, key)
            return Decision(key, "token")
        raise Denied("no signature" if config.auth_sign_secrets else "no login", guess=False)

    def _check_address(self, request: Request) -> None:
        config = self.config
        if request.action is Action.PUBLISH:
            allowed, denied = config.publish_allow, config.publish_deny
        else:
            allowed, denied = config.play_allow, config.play_deny
        if allowed or denied:
            address = parse_address(request.address)
            if within(address, denied) or (allowed and not within(address, allowed)):
                raise Denied("address not allowed", guess=False)

    def _stream_of(self, request: Request) -> tuple[str, str]:
        """Return the stream that a client means, and what it has shown by naming it so."""
        stream = self._publish_keys.stream_of(request.key)
        if request.action is Action.PLAY:
            if stream and stream != request.key:
                # It would become the name of a stream, and so be seen.
                raise Denied("a publish key can't be played", guess=False)
            return request.key, ""
        if stream:
            return stream, "publish key"
        if self._publish_keys.hold_for(request.key.rpartition("/")[0]):
            raise Denied("unknown publish key", guess=True)
        return request.key, ""

    def _check_signature(self, request: Request, now_s: float) -> None:
        parameters = request.parameters
        secrets = self.config.auth_sign_secrets
        until_s = verified(secrets, request.action, request.key, parameters.get("expires", ""), parameters["sign"])
        if until_s is None:
            raise Denied("wrong signature", guess=True)
        if now_s > until_s:
            raise Denied("the signed URL has expired", guess=False)

    def _check_token(self, request: Request, key: str) -> None:
        given = request.parameters.get("token", "")
        if not given:
            raise Denied("no token", guess=False)
        tokens = self._tokens.publish_tokens if request.action is Action.PUBLISH else self._tokens.play_tokens
        right = False
        for token in tokens.get(key, ()):
            right |= token.matches(given)
        if not right:
            raise Denied("wrong token", guess=True)
