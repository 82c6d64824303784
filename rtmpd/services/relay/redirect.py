"""What a destination sends about the publish while a relay is up: that it stops accepting it, or wants it elsewhere. Pure."""

from __future__ import annotations

from rtmpd.client import RtmpUrl
from rtmpd.errors import Refused, RtmpdError
from rtmpd.protocol import status
from rtmpd.protocol.command import Command

_LENGTH = 1000


class Redirected(RtmpdError):
    """The destination asks to connect again (Enhanced RTMP v2, "Reconnect Request").

    Attributes:
        tc_url: Where to; empty: to the same server.
    """

    def __init__(self, tc_url: str) -> None:
        super().__init__("the destination asks to connect again")
        self.tc_url = tc_url


def check(item: object) -> None:
    """Check what a destination has sent.

    Raises:
        Refused: The destination no longer accepts the stream. Redirected: It wants the stream on another connection.
    """
    if not isinstance(item, Command) or item.name != "onStatus":
        return
    info = item.argument(0)
    if not isinstance(info, dict):
        return
    code, description, tc_url = (_text(info.get(name)) for name in ("code", "description", "tcUrl"))
    if code == status.CONNECT_RECONNECT_REQUEST:
        raise Redirected(tc_url)
    if info.get("level") == "error":
        raise Refused(code or "publish failed", description)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def redirect_url(url: str, tc_url: str) -> str:
    """Return the URL to connect to next.

    The stream's name is sent to the new server, as it must, but never without TLS if the old one had TLS. User and password are
    not: they are the old server's.

    Args:
        url: The URL that the relay is connected to.
        tc_url: The URL of the application that it is redirected to.

    Returns:
        Empty: the configured URL holds, since there is no other one, or that can't be used.
    """
    # The specification allows relative references too; no server is known to send one.
    if not tc_url or len(tc_url) > _LENGTH or "?" in tc_url or "#" in tc_url or not tc_url.isprintable():
        return ""
    now = RtmpUrl.parse(url)
    # A double slash: the name may contain slashes.
    found = f"{tc_url.rstrip('/')}{'//' if '/' in now.name.partition('?')[0] else '/'}{now.name}"
    try:
        new = RtmpUrl.parse(found)
    except ValueError:
        return ""
    if new.user or (now.scheme == "rtmps" and new.scheme != "rtmps"):
        return ""
    return found
