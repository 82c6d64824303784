"""The key of a stream, ``app/name``. Pure."""

from __future__ import annotations


class StreamKey(str):
    """``app/name``: the application is all but the last part of the path.

    It is a text, so that it can be a key, be compared, formatted and logged as one.
    """

    __slots__ = ()

    @property
    def app(self) -> str:
        """The application's path; empty if there is only a name."""
        return self.rpartition("/")[0]

    @property
    def name(self) -> str:
        """The stream's name within the application."""
        return self.rpartition("/")[2]
