"""A destination of relays that misbehaves as a test demands.

It runs in threads on blocking sockets, and shares only the protocol's encoders and reader with rtmpd.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from rtmpd.errors import RemoteProtocolError
from rtmpd.protocol import status
from rtmpd.protocol.command import Command, decode_command
from rtmpd.protocol.endpoint import Endpoint
from rtmpd.protocol.handshake import ServerHandshake
from rtmpd.protocol.message import COMMAND_TYPES, CONTROL_TYPES, CSID_STATUS
from tests.integration.wire import AUDIO, DATA, VIDEO, Item

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.protocol.chunk import RawMessage

_LIMIT_S = 20


def is_frame(item: Item) -> bool:
    """Return whether a message is a frame: neither metadata nor a sequence header."""
    if item.type_id == DATA:
        return False
    first, second = item.payload[:2].ljust(2, b"\0")
    enhanced = first & 0x80 if item.type_id == VIDEO else first >> 4 == 9
    return bool(first & 0x0F if enhanced else second)


class Peer:
    """One accepted connection.

    Attributes:
        connect: The connect command's object.
        commands: Names of the received commands, in order.
        media: Received audio, video and data.
        published: The published name.
        over: Set when the connection has ended.
    """

    def __init__(self, target: Target, sock: socket.socket) -> None:
        self.sock = sock
        self.connect: dict[str, Any] = {}
        self.commands: list[str] = []
        self.media: list[Item] = []
        self.controls: list[RawMessage] = []
        self.published = ""
        self.over = threading.Event()
        self._target = target
        self._endpoint = Endpoint(0xFFFFFF)
        self._acks = False

    def run(self) -> None:
        """Serve the connection until it ends."""
        handshake = ServerHandshake(os.urandom)
        while not handshake.done:
            data = self.sock.recv(1 << 16)
            if not data:
                return
            self.sock.sendall(handshake.feed(data))
        self._take(handshake.remainder)
        while data := self.sock.recv(1 << 16):
            self._take(data)

    def _take(self, data: bytes) -> None:
        for message in self._endpoint.receive(data):
            if message.type_id in COMMAND_TYPES:
                self._command(decode_command(message))
            elif message.type_id in CONTROL_TYPES:
                self.controls.append(message)
                self._endpoint.control(message)
            elif message.type_id in (AUDIO, VIDEO, DATA):
                assert message.message_stream_id == self._target.message_stream_id
                with self._target.news:
                    self.media.append(Item(message.type_id, message.timestamp, message.payload))
                    self._target.news.notify_all()
                if self._target.on_media is not None:
                    self._target.on_media(self)
        if not self._acks and not self._target.acknowledges:
            # The endpoint itself only sends acknowledgements.
            self._endpoint.outgoing.clear()
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self._endpoint.take_outgoing())

    def say(self, name: str, *arguments: Any, tid: float = 0, msid: int = 0) -> None:
        """Send a command."""
        self._endpoint.send_command(name, tid, *arguments, message_stream_id=msid, csid=CSID_STATUS)
        self.flush()

    def status(self, code: str, description: str = "") -> None:
        """Send an onStatus of the publish."""
        self.say("onStatus", None, status.info(code, description), msid=self._target.message_stream_id)

    def ping(self, value: int) -> None:
        self._endpoint.send_user_control(6, value)
        self.flush()

    def acknowledge(self, count: int) -> None:
        """Acknowledge so many bytes."""
        self._endpoint.outgoing += b"\2\0\0\0\0\0\4\3\0\0\0\0" + count.to_bytes(4, "big")
        self.flush()

    def _command(self, command: Command) -> None:
        self.commands.append(command.name)
        target = self._target
        match command.name:
            case "connect":
                self.connect = command.command_object
                self.say("_result", target.declares, status.info(status.CONNECT_SUCCESS, ""), tid=command.transaction_id)
            case "createStream":
                self.say("_result", None, target.message_stream_id, tid=command.transaction_id)
            case "publish":
                self.published = command.argument(0)
                if target.refusal:
                    self.status(*target.refusal)
                    return
                self.status(status.PUBLISH_START)
                target.on_publish(self)

    def videos(self) -> list[bytes]:
        return [one.payload for one in self.media if one.type_id == VIDEO]


class Target:
    """The server.

    Args:
        on_publish: Called, in the connection's thread, when a publish has started.
        on_media: Called with each message of media.
        refusal: Code and description with which a publish is refused.
        acknowledges: Whether the server sends Acknowledgements.
        message_stream_id: The result of createStream.
        receive_buffer: Of the sockets, bytes; 0 is the kernel's default.
        declares: The command object of the answer to connect.
        raw: A function that serves connections instead of this class.

    Attributes:
        peers: The connections, in order of arrival.
    """

    def __init__(
        self,
        *,
        on_publish: Callable[[Peer], None] = lambda _: None,
        on_media: Callable[[Peer], None] | None = None,
        refusal: tuple[str, str] | None = None,
        acknowledges: bool = True,
        message_stream_id: int = 1,
        receive_buffer: int = 0,
        declares: dict[str, Any] | None = None,
        raw: Callable[[Target, socket.socket], None] | None = None,
    ) -> None:
        self.on_publish = on_publish
        self.on_media = on_media
        self.refusal = refusal
        self.acknowledges = acknowledges
        self.message_stream_id = message_stream_id
        self.declares = declares
        self.peers: list[Peer] = []
        self.news = threading.Condition()
        self.over = threading.Event()
        self._raw = raw
        self._listener = socket.socket()
        if receive_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path: str = "far/{name}") -> str:
        return f"rtmp://127.0.0.1:{self.port}/{path}"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            peer = Peer(self, sock)
            with self.news:
                self.peers.append(peer)
                self.news.notify_all()
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: Peer) -> None:
        try:
            with peer.sock:
                if self._raw is not None:
                    self._raw(self, peer.sock)
                else:
                    peer.run()
        except (OSError, RemoteProtocolError):
            pass
        finally:
            with self.news:
                peer.over.set()
                self.news.notify_all()

    def wait(self, condition: Callable[[], Any], what: str, limit_s: float = _LIMIT_S) -> Any:
        """Wait until a condition on the received messages is true, and return its value."""
        with self.news:
            deadline = time.monotonic() + limit_s
            while not (found := condition()):
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"not within {limit_s} s: {what}"
                self.news.wait(min(left_s, 0.1))
        return found

    def peer(self, number: int = 0) -> Peer:
        """Wait for a connection; return it."""
        self.wait(lambda: len(self.peers) > number, f"connection number {number}")
        return self.peers[number]

    def publishing(self, name: str = "", number: int = 0) -> Peer:
        """Wait until a connection has frames, the first or a later one that publishes *name*; return it.

        Headers may come before the first frame, and a relay that has no frame so far starts at the newest keyframe.
        """

        def found() -> Peer | None:
            fitting = (peer for peer in self.peers if any(map(is_frame, peer.media)) and peer.published.startswith(name))
            return next(itertools.islice(fitting, number, None), None)

        return self.wait(found, f"publish number {number} of {name!r}")

    def close(self) -> None:
        self.over.set()
        self._listener.close()
        for peer in self.peers:
            try:
                peer.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
