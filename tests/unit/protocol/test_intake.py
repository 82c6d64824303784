"""The intake of a connection: what goes to the sources at once, and what is left for the connection."""

from __future__ import annotations

import pytest

from rtmpd.errors import RemoteProtocolError
from rtmpd.protocol.chunk import frame_message
from rtmpd.protocol.endpoint import Endpoint
from rtmpd.protocol.intake import FrameIntake
from rtmpd.util.speed import PURE

VIDEO, COMMAND = 9, 20


@pytest.fixture(params=["in use", "pure"])
def form(request):
    return FrameIntake if request.param == "in use" else PURE["FrameIntake"]


class Connection:
    """Takes note of what it is given."""

    def __init__(self, form, sources=None):
        self.endpoint = Endpoint()
        self.given = []
        self.intake = form(self.endpoint, {} if sources is None else sources, self.take_data, self.take_messages)

    def take_data(self, data):
        self.given.append(bytes(data))
        return []

    def take_messages(self, messages):
        self.given.append([message.payload for message in messages])
        return messages or None


def message(payload, type_id=VIDEO):
    return frame_message(6, type_id, 1, 0, payload, 128)


def test_until_it_is_direct_all_goes_to_the_connection_unread(form):
    connection = Connection(form)
    assert connection.intake(memoryview(b"some bytes")) == []
    assert connection.given == [b"some bytes"]
    assert (connection.endpoint.bytes_received, connection.endpoint.messages_received) == (0, 0)


def test_what_no_source_takes_is_left_in_order(form):
    connection = Connection(form)
    connection.intake.direct = True
    data = message(b"\x27\x01\0\0\0one") + message(b"two", COMMAND)
    assert connection.intake(data[:5]) is None
    assert [one.payload for one in connection.intake(data[5:])] == [b"\x27\x01\0\0\0one", b"two"]
    assert connection.given == [[b"\x27\x01\0\0\0one", b"two"]]
    assert (connection.endpoint.bytes_received, connection.endpoint.messages_received) == (len(data), 2)


def test_an_acknowledgement_that_is_due_is_for_the_connection(form):
    connection = Connection(form)
    connection.intake.direct = True
    connection.endpoint.ack_at = 100
    assert connection.intake(message(bytes(120))[:110]) is None
    assert connection.given == [[]]
    assert connection.endpoint.outgoing
    assert connection.endpoint.ack_at > 1_000_000


def test_a_read_of_very_many_chunks_is_left_unread(form):
    connection = Connection(form)
    connection.intake.direct = True
    connection.intake(message(b"x", COMMAND) * 100)
    assert len(connection.given[0]) == 64
    assert connection.endpoint.reader.unread


def test_bytes_that_are_no_chunks_raise(form):
    connection = Connection(form)
    connection.intake.direct = True
    with pytest.raises(RemoteProtocolError, match="expected a type 0 header"):
        connection.intake(b"\xc3" * 20)
