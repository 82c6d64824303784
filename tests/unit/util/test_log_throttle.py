import logging

from rtmpd.util.log_throttle import LogThrottle

log = logging.getLogger("test.throttle")


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def test_the_first_line_is_logged_whatever_the_clock_says():
    clock = Clock()
    clock.now_s = -5.0
    assert LogThrottle(10, clock).due()


def test_one_line_per_interval_is_due():
    clock = Clock()
    throttle = LogThrottle(10, clock)
    due = []
    for clock.now_s in range(0, 30, 3):
        due.append(throttle.due())
    assert due == [True, False, False, False, True, False, False, False, True, False]


def test_a_line_says_how_many_were_suppressed_before_it(caplog):
    clock = Clock()
    throttle = LogThrottle(10, clock)
    for clock.now_s in (0, 1, 2, 11, 25):
        throttle.log(log, logging.WARNING, "disk %s is full", "a")
    assert [record.getMessage() for record in caplog.records] == [
        "disk a is full",
        "disk a is full (2 similar lines suppressed)",
        "disk a is full",
    ]
