"""What a check of the configuration against this machine has found. Imports nothing of rtmpd."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that an operator should know about an option.

    Attributes:
        path: The option, as `rtmpd.config.loader.origins` names it: its section (or ``applications`` and a name), then itself.
        text: What is wrong, and what was expected.
        is_note: It is as it may be: a start, or a reload, goes well all the same.
    """

    path: tuple[str, ...]
    text: str
    is_note: bool = False
