"""The rules of one application: what a client has to show for a publish or play. Pure: the time is an argument.

The callback is not asked here; a decision says that it has to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rtmpd.authorization import Action
from rtmpd.config.access_rules import parse_address, within
from rtmpd.config.secret import Secret
from rtmpd.protocol.naming import decoded
from rtmpd.services.auth.credentials import Credentials, PublishKeys
from rtmpd.services.auth.signing import verified
from rtmpd.util.stream_key import StreamKey

if TYPE_CHECKING:
    from rtmpd.authorization import Request
    from rtmpd.config.model import AuthConfig


class Denied(Exception):
    """A client is refused.

    Attributes:
        reason: Why, for the log and for the client; contains no secret and no name that may be one.
        guess: Whether the client may have guessed a secret: that counts towards a ban.
        unproved: Whether a token, signature or login is missing or wrong; None: if it may have been guessed.
    """

    def __init__(self, reason: str, *, guess: bool, unproved: bool | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.guess = guess
        self.unproved = guess if unproved is None else unproved


@dataclass(frozen=True, slots=True)
class Decision:
    """A client is allowed, or the callback decides.

    Attributes:
        key: The stream that the client gets.
        proof: What the client has shown; empty if nothing was required.
        ask: Whether the callback has to be asked.
    """

    key: StreamKey
    proof: str = ""
    ask: bool = False


class Rules:
    """The rules of one application.

    Args:
        options: Its options.
        file: The content of its ``auth_file``; empty without one.
    """

    def __init__(self, options: AuthConfig, file: Credentials) -> None:
        self.options = options
        self._tokens = Credentials.of_tokens(options.auth_tokens) if options.auth_mode == "token" else file
        keys = [(each.name, each.secret.reveal()) for each in options.auth_publish_keys]
        self._publish_keys = PublishKeys([*keys, *((stream, key.reveal()) for stream, key in file.publish_keys)])
        self.users: dict[str, tuple[Secret, ...]] = {name: (password,) for name, password in file.users.items()}
        for each in options.auth_users:
            self.users[each.name] = (*self.users.get(each.name, ()), each.secret)

    def requires_login(self, *, encoder: bool) -> bool:
        """Return whether a client has to log in when it connects. Encoders will publish, other clients will play."""
        return bool(self.users) and (self.options.auth_publish if encoder else self.options.auth_play)

    def public_part(self, app: str) -> str:
        """Return the part of the application of a connect that contains no secret: clients cut URLs in different places.

        With a callback, any name may be a secret that the callback replaces: only the first part is none.
        """
        if self.options.auth_mode == "callback":
            app = app.partition("/")[0]
        return self._publish_keys.public_part(app)

    def decide(self, request: Request, now_s: float, *, exists: bool = False) -> Decision:
        """Decide about a publish or play.

        Args:
            request: The request.
            now_s: The time of day, seconds since 1970.
            exists: Whether there is a stream of the name.

        Raises:
            Denied: The client is refused.
        """
        self._check_address(request)
        decision = self._prove(request, now_s)
        if request.action is Action.PLAY and not exists and not self._publish_keys.allow_stream(decision.key):
            # The same for a publish key and for any other name, so that playing does not tell which names are keys; and no
            # stream is made of the name, which would become public.
            raise Denied("there is no such stream", guess=True)
        return decision

    def _prove(self, request: Request, now_s: float) -> Decision:
        key, proof = self._stream_of(request)
        options = self.options
        required = options.auth_publish if request.action is Action.PUBLISH else options.auth_play
        if not required or not (options.auth_mode != "none" or self.users or options.auth_sign_secrets):
            return Decision(key, proof)
        if request.user and request.user in self.users:
            return Decision(key, "login")
        if options.auth_sign_secrets and "sign" in request.parameters:
            self._check_signature(request, now_s)
            return Decision(key, "signature")
        if options.auth_mode == "callback":
            return Decision(key, ask=True)
        if options.auth_mode in ("token", "file"):
            self._check_token(request, key)
            return Decision(key, "token")
        raise Denied("no signature" if options.auth_sign_secrets else "no login", guess=False, unproved=True)

    def _check_address(self, request: Request) -> None:
        options = self.options
        if request.action is Action.PUBLISH:
            allowed, denied = options.publish_allow, options.publish_deny
        else:
            allowed, denied = options.play_allow, options.play_deny
        if allowed or denied:
            address = parse_address(request.address)
            if within(address, denied) or (allowed and not within(address, allowed)):
                raise Denied("address not allowed", guess=False)

    def _stream_of(self, request: Request) -> tuple[StreamKey, str]:
        """Return the stream that a request names, and what the client has shown by naming it so."""
        key = StreamKey(request.key)
        if request.action is Action.PLAY:
            return key, ""
        stream = self._publish_keys.stream_of(key)
        if stream:
            return StreamKey(stream), "publish key"
        if self._publish_keys.hold_for(key.app):
            raise Denied("unknown publish key", guess=True)
        return key, ""

    def _check_signature(self, request: Request, now_s: float) -> None:
        parameters = request.parameters
        secrets = self.options.auth_sign_secrets
        until_s = verified(secrets, request.action, request.key, parameters.get("expires", ""), parameters["sign"])
        if until_s is None:
            raise Denied("wrong signature", guess=True)
        if now_s > until_s:
            raise Denied("the signed URL has expired", guess=False, unproved=True)

    def _check_token(self, request: Request, key: str) -> None:
        given = request.parameters.get("token", "")
        if not given:
            raise Denied("no token", guess=False, unproved=True)
        tokens = self._tokens.publish_tokens if request.action is Action.PUBLISH else self._tokens.play_tokens
        right = False
        for token in tokens.get(key, ()):
            # What is written in the URL is decoded; so a token that is written in the URL as it is here must be, too.
            right |= token.matches(given) | Secret(decoded(token.reveal())).matches(given)
        if not right:
            raise Denied("wrong token", guess=True)
