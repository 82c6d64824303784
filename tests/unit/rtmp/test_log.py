from __future__ import annotations

import logging

from rtmpd.rtmp.log import ConnectionLog


def test_each_record_has_the_number_the_peer_and_the_stream(caplog):
    caplog.set_level(logging.INFO, "rtmpd")
    log = ConnectionLog(logging.getLogger("rtmpd.test"), 7, "[fe80::1%eth0]:50512")
    log.info("closed: %s", "100%")
    log.stream = "live/a"
    log.info("closed")
    log.info("stopped", extra={"stream": "live/b"})
    found = [(each.getMessage(), each.connection, each.peer, each.stream) for each in caplog.records]
    assert found == [
        ("closed: 100%", 7, "[fe80::1%eth0]:50512", ""),
        ("closed", 7, "[fe80::1%eth0]:50512", "live/a"),
        ("stopped", 7, "[fe80::1%eth0]:50512", "live/b"),
    ]
