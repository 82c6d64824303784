"""Which of the sources of a stream is active: the rules, without sockets and clocks. Pure."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class SourceRole(enum.StrEnum):
    """The role of a source of a stream, the preferred one first."""

    PRIMARY = "primary"
    BACKUP = "backup"
    SLATE = "slate"
    """A file that is played while no publisher can be."""


_RANK = {role: rank for rank, role in enumerate(SourceRole)}


def is_preferred(role: SourceRole, to: SourceRole) -> bool:
    """Return whether sources of a role are preferred to those of another."""
    return role is not to and _RANK[role] < _RANK[to]


class Conflict(enum.Enum):
    """What happens to a publisher of a stream that has one already."""

    ACTIVATE = "there is no other source"
    TAKE_OVER = "the new source replaces one that is there"
    STAND_BY = "the new source stands by"
    REFUSE = "the sources that are there stay"


class OnConflict(enum.StrEnum):
    """The values of ``on_conflict``."""

    REFUSE = "refuse"
    TAKEOVER = "takeover"
    BACKUP = "backup"


class Arrival(NamedTuple):
    """What decides about a publisher of a stream that has publishers already.

    Attributes:
        publishers: How many there are.
        longest_silent_s: How long the most silent one of them has been silent.
        entitled: The new publisher may replace the active one, by ``takeover_by``.
        held: The last takeover of the stream is too recent for another one (``takeover_hold_s``).
    """

    publishers: int
    longest_silent_s: float
    entitled: bool = False
    held: bool = False


class ConflictRules(NamedTuple):
    """The rules of one application for a second publisher.

    Attributes:
        silent_s: A publisher that has been silent for this long is replaced: its encoder has probably lost its network, and
            comes back as the new one. 0: never.
        on_conflict: What happens otherwise.
        standby_limit: The largest number of sources that stand by.
    """

    silent_s: float
    on_conflict: OnConflict = OnConflict.REFUSE
    standby_limit: int = 1

    def decide(self, arrival: Arrival) -> Conflict:
        """Return what happens to a new publisher."""
        if not arrival.publishers:
            return Conflict.ACTIVATE
        backup = self.on_conflict is OnConflict.BACKUP
        if backup and arrival.publishers <= self.standby_limit:
            return Conflict.STAND_BY
        if 0 < self.silent_s <= arrival.longest_silent_s:
            return Conflict.TAKE_OVER
        if self.on_conflict is OnConflict.TAKEOVER and arrival.entitled and not arrival.held:
            return Conflict.TAKE_OVER
        return Conflict.REFUSE


class Condition(enum.IntEnum):
    """The condition of a source, the best first."""

    HEALTHY = 0
    FAULTY = 1
    """It sends media, but violates a rule of ``[publish]``."""
    DOWN = 2
    """It sends no media."""


class Failback(enum.StrEnum):
    """The values of ``failback``: when a source with a preferred role becomes active again."""

    AUTO = "auto"
    MANUAL = "manual"
    NEVER = "never"


class Candidate(NamedTuple):
    """A source, as the selection sees it.

    Attributes:
        role: Its role.
        number: The order of arrival: a lower one is preferred.
        condition: How it is now.
        healthy_s: For how long it has been healthy; 0 if it is not.
        ready: Decoding can start in what is kept of it.
    """

    role: SourceRole
    number: int
    condition: Condition = Condition.HEALTHY
    healthy_s: float = 0.0
    ready: bool = True

    @property
    def _order(self) -> tuple[bool, Condition, int, int]:
        return self.role is SourceRole.SLATE, self.condition, _RANK[self.role], self.number


class Cause(enum.StrEnum):
    """Why a source becomes active."""

    FIRST = "first"
    """No source was active, and readers were on no timeline."""
    RETURN = "return"
    """No publisher was active, and perhaps a slate; readers continue with this one."""
    FAILOVER = "failover"
    """The active source has ended or has a fault."""
    FAILBACK = "failback"
    """The source has a preferred role, and has been healthy for ``failback_after_s``."""
    SLATE = "slate"
    """No publisher can be active."""
    MANUAL = "manual"
    """An operator has requested it."""


class Choice(NamedTuple):
    """The source that is to become active.

    Attributes:
        number: Its number.
        cause: Why.
        at_keyframe: Not before its next keyframe: the active source serves until then.
    """

    number: int
    cause: Cause
    at_keyframe: bool = False


class SelectionRules(NamedTuple):
    """The rules of one application for the active source.

    Attributes:
        failback: When a source with a preferred role becomes active again.
        failback_after_s: Not before it has been healthy for this long.
        hold_s: For this long after a change no fault of the active source leads to another one, unless it sends nothing.
    """

    failback: Failback = Failback.AUTO
    failback_after_s: float = 30.0
    hold_s: float = 5.0

    def choose(self, active: Candidate | None, others: Iterable[Candidate], since_change_s: float) -> Choice | None:
        """Return the source that is to become active instead; None: nothing changes.

        Args:
            active: The active source; None: there is none.
            others: The other sources.
            since_change_s: The time since the active source has changed.
        """
        usable = sorted((each for each in others if each.condition is not Condition.DOWN), key=lambda each: each._order)
        best = next((each for each in usable if each.ready), None)
        if best is None:
            return None
        slate = best.role is SourceRole.SLATE
        if active is None:
            return Choice(best.number, Cause.SLATE if slate else Cause.RETURN)
        if active.role is SourceRole.SLATE:
            return None if slate else Choice(best.number, Cause.RETURN)
        if active.condition is Condition.DOWN:
            return Choice(best.number, Cause.SLATE if slate else Cause.FAILOVER)
        if slate:
            return None
        if active.condition is Condition.FAULTY:
            healthy = best.condition is Condition.HEALTHY
            return Choice(best.number, Cause.FAILOVER) if healthy and since_change_s >= self.hold_s else None
        return self._preferred(active, usable)

    def _preferred(self, active: Candidate, usable: Iterable[Candidate]) -> Choice | None:
        """Return the return to a source with a preferred role, if it is due."""
        if self.failback is not Failback.AUTO:
            return None
        for each in usable:
            preferred = is_preferred(each.role, active.role)
            if preferred and each.condition is Condition.HEALTHY and each.healthy_s >= self.failback_after_s:
                return Choice(each.number, Cause.FAILBACK, at_keyframe=True)
        return None
