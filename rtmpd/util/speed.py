"""The choice between the compiled and the pure Python form of the hot paths.

`rtmpd._fast` is an extension that a build makes if there is a C compiler. The pure Python form of everything in it is the
reference: the extension behaves exactly as it does, and the server works without the extension.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

INTERFACE: Final = 20
"""What `rtmpd._fast` must have, as a number that changes with it: an extension of other sources is not used."""

PURE: Final[dict[str, object]] = {}
"""The pure Python forms by name, for tests that compare both."""

_Form = TypeVar("_Form")
_Method = TypeVar("_Method")


def _load() -> ModuleType | None:
    if os.environ.get("RTMPD_PURE") == "1":
        return None
    try:
        from rtmpd import _fast
    except ImportError:
        return None
    return _fast if _fast.INTERFACE == INTERFACE else None


_FAST: Final = _load()

IN_USE: Final = "compiled" if _FAST is not None else "pure Python"
"""Which form is in use, as the log, the metrics and ``rtmpd --version`` name it."""


def accelerated(pure: _Form) -> _Form:
    """Replace a function or class by its compiled form of the same name, if the extension is in use. A decorator."""
    name: str = pure.__name__  # type: ignore[attr-defined]
    PURE[name] = pure
    return pure if _FAST is None else getattr(_FAST, name)


def completes(base: type) -> Callable[[_Method], _Method]:
    """Replace a method by that of a compiled *base*, which handles ordinary cases itself. A decorator.

    The compiled method calls this one in all other cases. A pure *base* has no such method, and this one stays.
    """

    def decorate(pure: _Method) -> _Method:
        method: str = pure.__name__  # type: ignore[attr-defined]
        name = f"{base.__name__}.{method}"
        PURE[name] = pure
        if _FAST is None:
            return pure
        _FAST.hand_over(name, pure)
        return getattr(base, method)  # type: ignore[no-any-return]

    return decorate
