"""The file header of viewers."""

from __future__ import annotations

import pytest

from rtmpd.live.flv_framing import FlvSubscriberFraming
from rtmpd.live.framing import AUDIO, DATA, VIDEO, Headers


@pytest.mark.parametrize(
    ("tracks", "types", "flags"),
    [
        ((False, False), (), 0),
        ((True, False), (), 4),
        ((False, True), (AUDIO,), 5),
        ((False, False), (DATA, VIDEO), 1),
    ],
)
def test_the_flags_are_those_of_headers_and_of_what_the_source_has_sent(tracks, types, flags):
    framing = FlvSubscriberFraming(lambda: tracks)
    headers = Headers(tuple((type_id, b"\x17\0\0\0\0") for type_id in types))
    data = framing.headers(headers, 40)
    assert data[:5] == b"FLV\1" + bytes((flags,))
    # Only once.
    assert framing.headers(Headers(), 80) == b""
