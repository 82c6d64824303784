"""Command and data messages: AMF in messages of type 20, 17, 18 and 15 (RTMP 1.0 sections 7.1.1 and 7.1.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rtmpd.errors import RemoteProtocolError
from rtmpd.protocol import amf0
from rtmpd.protocol.amf_values import UNDEFINED
from rtmpd.protocol.message import MessageType

if TYPE_CHECKING:
    from rtmpd.protocol.chunk import RawMessage


@dataclass(slots=True)
class Command:
    """A command message.

    Attributes:
        name: The name, such as ``connect`` or ``_result``.
        transaction_id: The number that the answer repeats; 0 if no answer is expected.
        command_object: The value after the transaction id: a dict for connect, and None for most other commands.
        arguments: The values after the command object.
        message_stream_id: The message stream of the message.
    """

    name: str
    transaction_id: float
    command_object: Any = None
    arguments: list[Any] = field(default_factory=list)
    message_stream_id: int = 0

    def argument(self, index: int, default: Any = None) -> Any:
        """Return an argument, or *default* if the peer sent fewer."""
        return self.arguments[index] if index < len(self.arguments) else default


def amf0_body(message: RawMessage) -> bytes:
    """Return the AMF0 part of a command or data message.

    Messages of type 17 and 15 start with a zero byte, which means AMF0. Its values may switch to AMF3 with marker 0x11.
    """
    payload = message.payload
    if message.type_id in (MessageType.COMMAND_AMF3, MessageType.DATA_AMF3) and payload[:1] == b"\0":
        return payload[1:]
    return payload


def decode_command(message: RawMessage) -> Command:
    """Decode a command message as far as it is valid: some clients omit the end marker of an object, or add bytes at the end.

    Raises:
        LimitExceeded: The values nest too deep, are too many or too long.
        RemoteProtocolError: The payload does not start with a name, or the transaction id is not a number.
    """
    values = amf0.decode_all(amf0_body(message), lenient=True)
    if not values or not isinstance(values[0], str):
        found = type(values[0]).__name__ if values else "nothing"
        raise RemoteProtocolError(f"command message: expected the command's name first, found {found}")
    transaction_id = values[1] if len(values) > 1 else 0.0
    if transaction_id is None or transaction_id is UNDEFINED:
        transaction_id = 0.0
    if isinstance(transaction_id, bool) or not isinstance(transaction_id, (int, float)):
        raise RemoteProtocolError(
            f"command {values[0][:40]!r}: expected a number as the transaction id, found {type(transaction_id).__name__}"
        )
    return Command(
        name=values[0],
        transaction_id=float(transaction_id),
        command_object=values[2] if len(values) > 2 else None,
        arguments=list(values[3:]),
        message_stream_id=message.message_stream_id,
    )


def encode_command(name: str, transaction_id: float, command_object: Any = None, *arguments: Any) -> bytes:
    """Encode the payload of a command message of type 20.

    Raises:
        LocalProtocolError: AMF0 can't express a value.
    """
    return amf0.encode(name, float(transaction_id), command_object, *arguments)
