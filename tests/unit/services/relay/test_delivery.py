from rtmpd.services.relay.delivery import DeliveryWatch

TIMEOUT_S = 10
WINDOW = 1000


class Connection:
    """A connection that is checked once a second."""

    def __init__(self):
        self.watch = DeliveryWatch(0)
        self.now_s = 0
        self.sent = self.acknowledged = self.segments = 0
        self.host_s = 0.0

    def run(self, seconds, rate=0, ack=None, window=WINDOW):
        """Let time pass; return the first reason to close the connection, with the time."""
        for _ in range(seconds):
            self.now_s += 1
            self.sent += rate
            if ack and self.sent - self.acknowledged >= ack:
                self.acknowledged = self.sent - self.sent % ack
            reason = self.watch.check(
                self.now_s,
                TIMEOUT_S,
                sent=self.sent,
                acknowledged=self.acknowledged,
                window=window,
                segments=self.segments,
                host_acknowledged_s=self.host_s,
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
    assert reason == "the destination has acknowledged nothing for 10 s, of 7500 bytes"


def test_a_destination_that_never_acknowledges_is_left_to_tcp():
    assert Connection().run(1000, rate=100_000) is None


def test_a_destination_that_acknowledges_by_larger_steps_has_two_of_these():
    peer = Connection()
    assert peer.run(1000, rate=500, ack=20 * WINDOW) is None
    assert peer.acknowledged
    left = peer.sent - peer.acknowledged
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
    peer.acknowledged += 1
    assert peer.run(9, rate=500) is None
    assert peer.run(10, rate=500) is not None


def test_a_host_that_acknowledges_no_segment_is_closed_after_the_timeout():
    peer = Connection()
    peer.segments = 3
    reason = None
    while reason is None:
        peer.host_s = peer.now_s + 1.0
        reason = peer.run(1, rate=500)
    assert reason == (1 + TIMEOUT_S, "the destination's host has acknowledged nothing for 10 s (relay_ack_timeout_s)")


def test_segments_on_their_way_after_a_silence_are_no_failure():
    peer = Connection()
    for _ in range(100):
        # Nothing was sent for long; now and then one segment is under way at a check.
        peer.host_s += 1
        peer.segments = peer.now_s % 2
        assert peer.run(1) is None


def test_a_host_that_acknowledges_between_two_checks_stays_connected():
    peer = Connection()
    peer.segments, peer.host_s = 30, 0.5
    assert peer.run(1000, rate=500) is None
