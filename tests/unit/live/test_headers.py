from __future__ import annotations

import pytest

from rtmpd.live.framing import AUDIO, DATA, NO_HEADERS, VIDEO
from rtmpd.live.headers import MAX_HEADER_BYTES, MAX_HEADERS, HeaderCache
from tests.unit.live.fakes import AAC_HEADER, AVC_HEADER

METADATA = b"\x02\x00\x0aonMetaData\x08\x00\x00\x00\x00\x00\x00\x09"
SEQUENCE_START = 0
COLOR_INFO = b"\x84hvc1colorInfo"  # a metadata packet: frame type 0, packet type 4


def multitrack(tracks: dict[int, bytes], packet: int = SEQUENCE_START, four_cc: bytes = b"avc1") -> bytes:
    """An Enhanced RTMP video message of many tracks with one codec."""
    body = b"".join(bytes((track,)) + len(data).to_bytes(3, "big") + data for track, data in tracks.items())
    return bytes((0x96, 0x10 | packet)) + four_cc + body


def one_track(track: int, data: bytes = b"config", four_cc: bytes = b"avc1") -> bytes:
    return bytes((0x96, SEQUENCE_START)) + four_cc + bytes((track,)) + data


def audio_multitrack(tracks: dict[int, bytes], four_cc: bytes = b"Opus") -> bytes:
    body = b"".join(bytes((track,)) + len(data).to_bytes(3, "big") + data for track, data in tracks.items())
    return bytes((0x95, 0x10)) + four_cc + body


def payloads(cache: HeaderCache) -> list[bytes]:
    return [payload for _, payload in cache.current.items]


# What is cached -------------------------------------------------------------------------------------------------------


def test_a_new_cache_is_empty():
    cache = HeaderCache()
    assert cache.current is NO_HEADERS
    assert cache.current.items == ()
    assert cache.codecs == {}


def test_metadata_comes_first_and_headers_in_the_order_in_which_they_came():
    cache = HeaderCache()
    cache.add_audio(AAC_HEADER)
    cache.add_video(AVC_HEADER)
    cache.set_metadata(METADATA)
    assert cache.current.items == (
        (DATA, METADATA),
        (AUDIO, AAC_HEADER),
        (VIDEO, AVC_HEADER),
    )


def test_a_replaced_header_is_sent_once_and_last():
    cache = HeaderCache()
    cache.add_video(AVC_HEADER)
    cache.add_audio(AAC_HEADER)
    cache.add_video(AVC_HEADER + b"new")
    assert payloads(cache) == [AAC_HEADER, AVC_HEADER + b"new"]


def test_metadata_is_replaced_and_forgotten():
    cache = HeaderCache()
    cache.set_metadata(METADATA)
    cache.add_video(AVC_HEADER)
    cache.set_metadata(METADATA + b"new")
    assert payloads(cache) == [METADATA + b"new", AVC_HEADER]
    cache.set_metadata(None)
    assert payloads(cache) == [AVC_HEADER]


def test_video_metadata_is_kept_beside_the_sequence_header_of_its_track():
    cache = HeaderCache()
    header = b"\x90hvc1config"
    cache.add_video(header)
    assert not cache.add_video(COLOR_INFO)
    cache.add_video(COLOR_INFO + b"new")
    assert payloads(cache) == [header, COLOR_INFO + b"new"]
    assert cache.codecs == {"video 0": "hevc"}


def test_the_channel_layout_is_kept_beside_the_audio_header():
    cache = HeaderCache()
    header, channels = b"\x90OpusHead", b"\x94Opus\x01\x02"
    assert cache.add_audio(header)
    assert not cache.add_audio(channels)
    assert payloads(cache) == [header, channels]
    assert cache.codecs == {"audio 0": "opus"}


# Tracks -----------------------------------------------------------------------------------------------------------------


def test_each_track_has_its_own_header():
    cache = HeaderCache()
    cache.add_video(AVC_HEADER)
    cache.add_video(one_track(1))
    cache.add_video(one_track(2, four_cc=b"av01"))
    cache.add_video(one_track(1, b"config two"))
    assert payloads(cache) == [AVC_HEADER, one_track(2, four_cc=b"av01"), one_track(1, b"config two")]
    assert cache.codecs == {"video 0": "h264", "video 1": "h264", "video 2": "av1"}


def test_a_message_that_covers_several_tracks_is_sent_once():
    cache = HeaderCache()
    message = multitrack({0: b"a", 1: b"b", 2: b"c"})
    cache.add_video(message)
    assert payloads(cache) == [message]
    assert cache.codecs == dict.fromkeys(["video 0", "video 1", "video 2"], "h264")


def test_a_message_that_is_partly_replaced_comes_before_what_replaced_it():
    cache = HeaderCache()
    both, second = multitrack({0: b"a", 1: b"b"}), one_track(0, b"new")
    cache.add_video(both)
    cache.add_video(second)
    assert payloads(cache) == [both, second]


def test_a_message_all_of_whose_tracks_were_replaced_is_dropped():
    cache = HeaderCache()
    cache.add_video(multitrack({0: b"a", 1: b"b"}))
    cache.add_video(one_track(0))
    cache.add_video(one_track(1))
    assert payloads(cache) == [one_track(0), one_track(1)]
    cache.add_video(multitrack({1: b"x", 0: b"y"}))
    assert payloads(cache) == [multitrack({1: b"x", 0: b"y"})]


def test_messages_that_overlap_come_in_the_order_that_ends_with_the_newest():
    cache = HeaderCache()
    first, second = multitrack({0: b"a", 1: b"b"}), multitrack({1: b"c", 2: b"d"})
    cache.add_video(first)
    cache.add_video(second)
    assert payloads(cache) == [first, second]
    cache.add_video(first)
    assert payloads(cache) == [second, first]


def test_audio_tracks_are_not_video_tracks():
    cache = HeaderCache()
    cache.add_audio(audio_multitrack({0: b"a", 1: b"b"}))
    cache.add_video(multitrack({0: b"a", 1: b"b"}))
    assert len(payloads(cache)) == 2
    assert cache.codecs == {"audio 0": "opus", "audio 1": "opus", "video 0": "h264", "video 1": "h264"}


# Changes --------------------------------------------------------------------------------------------------------------


def test_only_a_changed_codec_is_reported():
    cache = HeaderCache()
    assert cache.add_video(AVC_HEADER)
    assert not cache.add_video(AVC_HEADER)
    assert not cache.add_video(AVC_HEADER + b"another configuration")
    assert cache.add_video(b"\x90hvc1config")
    assert cache.add_audio(AAC_HEADER)
    assert not cache.add_audio(AAC_HEADER)


def test_each_change_makes_another_object_and_nothing_else_does():
    cache = HeaderCache()
    made = [cache.current]
    for change in (
        lambda: cache.set_metadata(METADATA),
        lambda: cache.add_video(AVC_HEADER),
        lambda: cache.add_audio(AAC_HEADER),
        lambda: cache.add_video(AVC_HEADER + b"new"),
        lambda: cache.set_metadata(None),
    ):
        change()
        made.append(cache.current)
    assert len({id(headers) for headers in made}) == 6
    current = cache.current
    cache.set_metadata(None)
    assert cache.current is current


def test_headers_with_the_same_items_differ():
    """A player that was sent the one gets the other all the same: each source makes its own."""
    first, second = HeaderCache(), HeaderCache()
    for cache in (first, second):
        cache.add_video(AVC_HEADER)
    assert first.current.items == second.current.items
    assert first.current != second.current


@pytest.mark.parametrize(
    "again",
    [
        lambda cache: cache.set_metadata(METADATA),
        lambda cache: cache.add_video(AVC_HEADER),
        lambda cache: cache.add_audio(AAC_HEADER),
        lambda cache: cache.add_video(multitrack({1: b"a", 2: b"b"})),
    ],
)
def test_a_repeated_header_changes_nothing(again):
    cache = HeaderCache()
    cache.set_metadata(METADATA)
    cache.add_video(AVC_HEADER)
    cache.add_audio(AAC_HEADER)
    cache.add_video(multitrack({1: b"a", 2: b"b"}))
    current = cache.current
    again(cache)
    assert cache.current is current


def test_headers_handed_out_before_stay_as_they_were():
    cache = HeaderCache()
    cache.add_video(AVC_HEADER)
    before = cache.current
    cache.add_video(AVC_HEADER + b"new")
    cache.add_audio(AAC_HEADER)
    assert [payload for _, payload in before.items] == [AVC_HEADER]


# Limits -----------------------------------------------------------------------------------------------------------------


def test_a_header_as_long_as_allowed_is_kept_and_a_longer_one_refused():
    cache = HeaderCache()
    longest = AVC_HEADER.ljust(MAX_HEADER_BYTES, b"x")
    cache.add_video(longest)
    assert (payloads(cache), cache.refused) == ([longest], 0)
    cache.add_audio(AAC_HEADER + bytes(MAX_HEADER_BYTES))
    assert (payloads(cache), cache.refused) == ([longest], 1)


def test_metadata_that_is_too_long_is_refused_and_the_old_one_kept():
    cache = HeaderCache()
    cache.set_metadata(METADATA)
    cache.set_metadata(bytes(MAX_HEADER_BYTES + 1))
    assert (payloads(cache), cache.refused) == ([METADATA], 1)


def test_more_tracks_than_allowed_are_refused_and_known_ones_still_replaced():
    cache = HeaderCache()
    for track in range(MAX_HEADERS + 10):
        cache.add_video(one_track(track))
    assert (len(payloads(cache)), cache.refused) == (MAX_HEADERS, 10)
    cache.add_video(one_track(3, b"new"))
    assert (len(payloads(cache)), cache.refused) == (MAX_HEADERS, 10)
    assert payloads(cache)[-1] == one_track(3, b"new")
    assert len(cache.codecs) == MAX_HEADERS


def test_a_message_with_more_tracks_than_allowed_is_refused_whole():
    cache = HeaderCache()
    cache.add_video(multitrack(dict.fromkeys(range(MAX_HEADERS + 1), b"")))
    assert (payloads(cache), cache.refused) == ([], 1)
    assert len(cache.codecs) <= MAX_HEADERS


def test_the_memory_of_the_cache_is_bounded():
    cache = HeaderCache()
    for track in range(200):
        cache.add_video(one_track(track, bytes(MAX_HEADER_BYTES)))
        cache.add_video(one_track(track, bytes(MAX_HEADER_BYTES - 100)))
    assert sum(map(len, payloads(cache))) <= MAX_HEADERS * MAX_HEADER_BYTES
