"""A grant: what an authorizer allows for one publish or play. Pure.

It is kept with the source or the player. Whatever serves a stream reads there what holds for this publish alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from rtmpd.util.stream_key import StreamKey

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtmpd.config.model import LimitsConfig, RelayConfig
    from rtmpd.config.relay_url import RelayUrl


@dataclass(frozen=True, slots=True)
class Grant:
    """What is allowed. All but the key and the time concern publishes.

    Attributes:
        key: The stream.
        relay_to: Destinations besides those of ``relay_to``.
        record: Whether the publish is recorded; None: as the options of ``[record]`` say.
        limits: Options of ``[limits]`` that hold instead of the application's.
        expires_s: After this time the authorizer is asked again; 0: it is not.
        credential: A digest of what the client has shown, to be compared with another one's; empty: nothing was required.
    """

    key: StreamKey
    relay_to: tuple[RelayUrl, ...] = field(default=(), repr=False)
    record: bool | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    expires_s: float = 0.0
    credential: str = field(default="", repr=False, compare=False)

    def __str__(self) -> str:
        """Return all but the key, for the log: without secrets, and empty if nothing differs from the options."""
        found = [f"relay_to {url}" for url in self.relay_to]
        if self.record is not None:
            found.append("recorded" if self.record else "not recorded")
        found += [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in self.limits.items()]
        if self.expires_s:
            found.append(f"expires_s {self.expires_s:g}")
        return ", ".join(found)

    def limited(self, limits: LimitsConfig) -> LimitsConfig:
        """Return the limits in force for the publish, where *limits* are those of its application."""
        return replace(limits, **self.limits) if self.limits else limits

    def destinations(self, options: RelayConfig, key: StreamKey) -> tuple[RelayUrl, ...]:
        """Return where the stream is relayed to: each destination once, those of the options first."""
        found: dict[str, RelayUrl] = {}
        for url in (*options.relay_to, *self.relay_to):
            found.setdefault(url.expand(key.app, key.name), url)
        return tuple(found.values())


NOTHING_GRANTED: Final = Grant(StreamKey())
"""Stands for the grant of a stream without a source: the options hold."""
