"""Which of the sources that want to feed a stream is active: the rules, without sockets and clocks. Pure."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Conflict(enum.Enum):
    """What happens to a new source."""

    ACTIVATE = "there is no other source"
    TAKE_OVER = "the new source replaces the active one"
    REFUSE = "the active source stays"


class SourceSelection(NamedTuple):
    """The rules of one application.

    Attributes:
        takeover_s: An active source that has been silent for this long is replaced: its encoder has probably lost its network,
            and comes back as the new source. 0: never.
    """

    takeover_s: float

    def decide(self, silent_s: float | None) -> Conflict:
        """Return what happens to a new source.

        Args:
            silent_s: How long the active source has been silent; None: there is none.
        """
        if silent_s is None:
            return Conflict.ACTIVATE
        return Conflict.TAKE_OVER if 0 < self.takeover_s <= silent_s else Conflict.REFUSE
