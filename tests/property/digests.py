"""The digests of many traces, for a process of another form of the hot paths to compare with its own."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def digest(steps: Iterator[object]) -> str:
    """Return the digest of all steps of a trace."""
    found = hashlib.sha1(usedforsecurity=False)
    for each in steps:
        found.update(repr(each).encode())
    return found.hexdigest()


def main(steps: Callable[[int], Iterator[object]]) -> None:
    """Print the steps of the seed, or the digests of the range of seeds, that the arguments name."""
    first, *rest = map(int, sys.argv[1:])
    if rest:
        print("\n".join(digest(steps(seed)) for seed in range(first, *rest)))
    else:
        print("\n".join(map(repr, steps(first))))
