"""The status codes of Flash Media Server, and the info objects that carry them (RTMP 1.0 section 7.2).

Clients compare these strings: OBS does not reconnect after BadName, Denied and Rejected, and does after any other code; FFmpeg
ends on UnpublishNotify and Play.Stop.
"""

from __future__ import annotations

from typing import Any, Final

CONNECT_SUCCESS: Final = "NetConnection.Connect.Success"
CONNECT_REJECTED: Final = "NetConnection.Connect.Rejected"
CONNECT_INVALID_APP: Final = "NetConnection.Connect.InvalidApp"
CONNECT_RECONNECT_REQUEST: Final = "NetConnection.Connect.ReconnectRequest"

PUBLISH_START: Final = "NetStream.Publish.Start"
PUBLISH_BAD_NAME: Final = "NetStream.Publish.BadName"
PUBLISH_DENIED: Final = "NetStream.Publish.Denied"
PUBLISH_REJECTED: Final = "NetStream.Publish.Rejected"
STREAM_FAILED: Final = "NetStream.Failed"
"""For refusals without a code of their own that may be temporary: encoders try again."""

UNPUBLISH_SUCCESS: Final = "NetStream.Unpublish.Success"

PLAY_RESET: Final = "NetStream.Play.Reset"
PLAY_START: Final = "NetStream.Play.Start"
PLAY_STOP: Final = "NetStream.Play.Stop"
PLAY_FAILED: Final = "NetStream.Play.Failed"
PLAY_INSUFFICIENT_BW: Final = "NetStream.Play.InsufficientBW"
PLAY_NO_TRACK: Final = "NetStream.Play.NoSupportedTrackFound"
PLAY_STREAM_NOT_FOUND: Final = "NetStream.Play.StreamNotFound"
PLAY_PUBLISH_NOTIFY: Final = "NetStream.Play.PublishNotify"
PLAY_UNPUBLISH_NOTIFY: Final = "NetStream.Play.UnpublishNotify"

PAUSE_NOTIFY: Final = "NetStream.Pause.Notify"
UNPAUSE_NOTIFY: Final = "NetStream.Unpause.Notify"
SEEK_NOTIFY: Final = "NetStream.Seek.Notify"
SEEK_FAILED: Final = "NetStream.Seek.Failed"

_ERROR_ENDINGS = (".Rejected", ".InvalidApp", ".Failed", ".BadName", ".Denied", ".StreamNotFound", ".NoSupportedTrackFound")


def info(code: str, description: str, **more: Any) -> dict[str, Any]:
    """Return an info object. Its level follows from the code: ``error`` for refusals, otherwise ``status``."""
    level = "error" if code.endswith(_ERROR_ENDINGS) else "status"
    return {"level": level, "code": code, "description": description, **more}
