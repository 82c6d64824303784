import pytest

from rtmpd.protocol import message as wire
from rtmpd.protocol.endpoint import Endpoint
from rtmpd.services.relay.delivery import DeliveryWatch

TIMEOUT_S = 10
WINDOW = 1000


class Connection:
    """A connection that is checked once a second."""

    def __init__(self):
        self.watch = DeliveryWatch()
        self.now_s = 0
        self.delivered = self.acknowledged = self.acknowledgements = self.outstanding = 0

    def run(self, seconds, rate=0, ack=None, window=WINDOW):
        """Let time pass; return the first reason to close the connection, with the time."""
        for _ in range(seconds):
            self.now_s += 1
            self.delivered += rate
            if ack and self.delivered - self.acknowledged >= ack:
                self.acknowledged = self.delivered
                self.acknowledgements += 1
            reason = self.watch.check(
                self.now_s,
                TIMEOUT_S,
                delivered=self.delivered,
                outstanding=self.outstanding,
                acknowledgements=self.acknowledgements,
                window=window,
            )
            if reason:
                return self.now_s, reason
        return None


def test_a_destination_that_acknowledges_by_the_window_stays_connected():
    assert Connection().run(1000, rate=500, ack=WINDOW) is None


def test_a_destination_that_stops_acknowledging_is_closed_after_two_windows_and_the_timeout():
    peer = Connection()
    assert peer.run(100, rate=500, ack=WINDOW) is None
    at_s, reason = peer.run(100, rate=500)
    # 50,000 are acknowledged; after 5 s more than 2000 are out.
    assert at_s == 100 + 5 + TIMEOUT_S
    assert reason == "the destination has acknowledged nothing for 10 s, of 7500 bytes (relay_ack_timeout_s)"


def test_a_destination_that_never_acknowledges_is_left_to_tcp():
    assert Connection().run(1000, rate=100_000) is None


def test_a_destination_that_acknowledges_by_larger_steps_has_two_of_these():
    peer = Connection()
    assert peer.run(1000, rate=500, ack=20 * WINDOW) is None
    assert peer.acknowledged
    left = peer.delivered - peer.acknowledged
    at_s, _ = peer.run(1000, rate=500)
    assert at_s == 1000 + (40 * WINDOW - left) // 500 + 1 + TIMEOUT_S


def test_without_data_no_acknowledgement_is_due():
    peer = Connection()
    assert peer.run(100, rate=500, ack=WINDOW) is None
    assert peer.run(1000) is None


def test_an_acknowledgement_in_time_starts_the_timeout_again():
    peer = Connection()
    assert peer.run(100, rate=500, ack=WINDOW) is None
    assert peer.run(13, rate=500) is None
    peer.acknowledgements += 1
    # It came 7000 bytes behind the one before, so the next one is due at twice as many.
    assert peer.run(28 + TIMEOUT_S, rate=500) is None
    assert peer.run(2, rate=500) is not None


# What the number may be -------------------------------------------------------------------------------------------------


class Acknowledging:
    """A destination that acknowledges with numbers of its own, as its connection's endpoint reads them.

    Args:
        count: Returns the number, from the bytes received, those at the last Acknowledgement, and those of message bodies.
    """

    def __init__(self, count):
        self.count = count
        self.endpoint = Endpoint()
        self.received = self.bodies = self.last = 0

    def receive(self, size, body_size):
        self.received += size
        self.bodies += body_size
        if self.received - self.last >= 250_000:
            number = self.count(self.received, self.last, self.bodies) & 0xFFFFFFFF
            self.last = self.received
            for message in self.endpoint.receive(wire.acknowledgement(number)):
                self.endpoint.control(message)


HABITS = {
    "correct": lambda received, last, bodies: received,
    "since the last": lambda received, last, bodies: received - last,
    "wraps at 2^31": lambda received, last, bodies: received & 0x7FFFFFFF,
    "message bodies only": lambda received, last, bodies: bodies,
    "always zero": lambda received, last, bodies: 0,
}


def deliver(count, total, rate):
    """Deliver so many bytes, with a tenth of overhead; return why the connection is to be closed."""
    peer, watch = Acknowledging(count), DeliveryWatch()
    for second in range(total // rate):
        peer.receive(rate, rate * 9 // 10)
        reason = watch.check(
            second,
            TIMEOUT_S,
            delivered=peer.received,
            outstanding=rate,
            acknowledgements=peer.endpoint.acknowledgements,
            window=250_000,
        )
        if reason:
            return peer.received, reason
    return peer.received, ""


@pytest.mark.parametrize("habit", HABITS)
def test_a_destination_stays_connected_for_3_gib_however_it_counts(habit):
    received, reason = deliver(HABITS[habit], 3 << 30, 400_000)
    assert reason == ""
    assert received > (3 << 30) - 400_000


@pytest.mark.parametrize("habit", HABITS)
def test_a_destination_of_64_kbit_s_stays_connected_for_a_day_however_it_counts(habit):
    assert deliver(HABITS[habit], 86400 * 8000, 8000)[1] == ""


# TCP --------------------------------------------------------------------------------------------------------------------


def test_a_connection_on_which_tcp_makes_no_progress_is_closed_after_the_timeout():
    peer = Connection()
    assert peer.run(100, rate=500) is None
    peer.outstanding = 3000
    # Until the last bytes have arrived, and then the timeout.
    assert peer.run(1, rate=500) is None
    assert peer.run(100) == (102 + TIMEOUT_S, "TCP made no progress for 10 s, 3000 bytes wait (relay_ack_timeout_s)")


def test_bytes_that_are_on_their_way_at_each_check_are_no_failure():
    peer = Connection()
    peer.outstanding = 3000
    assert peer.run(1000, rate=1) is None


def test_a_connection_without_outstanding_bytes_may_stand_still():
    peer = Connection()
    assert peer.run(10, rate=500) is None
    assert peer.run(1000) is None
    # Now and then something is under way at a check.
    for _ in range(100):
        peer.outstanding = 100
        assert peer.run(TIMEOUT_S) is None
        peer.outstanding = 0
        assert peer.run(1) is None
