"""What a destination says of the publish while it is up: that it takes it no longer, or wants it elsewhere.

Pure. Imports the commands and the URL of the client library.
"""

from __future__ import annotations

from rtmpd.client import RtmpUrl
from rtmpd.errors import Refused, RtmpdError
from rtmpd.protocol import status
from rtmpd.protocol.command import Command

__all__ = ["Moved", "check", "moved_url"]

_LENGTH = 1000


class Moved(RtmpdError):
    """The destination asks to connect again (Enhanced RTMP v2, "Reconnect Request").

    Attributes:
        tc_url: Where to; empty: to where the relay is.
    """

    def __init__(self, tc_url: str) -> None:
        super().__init__("it asks to connect again")
        self.tc_url = tc_url


def check(item: object) -> None:
    """Look at what a destination has sent.

    Raises:
        Refused: It takes the stream no longer. Moved: It wants it on another connection.
    """
    if not isinstance(item, Command) or item.name != "onStatus":
        return
    info = item.argument(0)
    if not isinstance(info, dict):
        return
    code, description, tc_url = (_text(info.get(name)) for name in ("code", "description", "tcUrl"))
    if code == status.CONNECT_RECONNECT_REQUEST:
        raise Moved(tc_url)
    if info.get("level") == "error":
        raise Refused(code or "publish failed", description)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def moved_url(url: str, tc_url: str) -> str:
    """Return the URL to connect to next.

    The stream's name goes on to the new server, as it must, but never from TLS to the clear; the user and password do not: they
    are the old server's.

    Args:
        url: Where the relay is.
        tc_url: The application's URL that it is sent to.

    Returns:
        Empty: to where the configuration says, since there is no other place or it is none to go to.
    """
    # A reference relative to the URL is allowed, too; nobody is known to send one.
    if not tc_url or len(tc_url) > _LENGTH or "?" in tc_url or "#" in tc_url or not tc_url.isprintable():
        return ""
    now = RtmpUrl.parse(url)
    try:
        new = RtmpUrl.parse(f"{tc_url.rstrip('/')}/{now.name}")
    except ValueError:
        return ""
    if new.user or (now.scheme == "rtmps" and new.scheme != "rtmps"):
        return ""
    return f"{tc_url.rstrip('/')}/{now.name}"
