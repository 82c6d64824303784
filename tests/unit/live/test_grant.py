from __future__ import annotations

from rtmpd.config.loader import load_text
from rtmpd.config.relay_url import RelayUrl
from rtmpd.live.grant import NOTHING_GRANTED, Grant
from rtmpd.util.stream_key import StreamKey
from tests.unit.live.fakes import new_source, new_stream

KEY = StreamKey("live/cam")


def test_without_a_grant_the_options_hold():
    config = load_text("[relay]\nrelay_to = rtmp://a/x\n")
    assert NOTHING_GRANTED.limited(config.limits) is config.limits
    assert NOTHING_GRANTED.destinations(config.relay, KEY) == config.relay.relay_to


def test_a_grant_replaces_some_limits():
    limits = load_text("[limits]\npublish_bitrate_limit = 1M\nplayers_per_stream_limit = 9\n").limits
    found = Grant(KEY, limits={"players_per_stream_limit": 3}).limited(limits)
    assert (found.players_per_stream_limit, found.publish_bitrate_limit) == (3, 1_000_000)


def test_each_destination_is_there_once_those_of_the_options_first():
    config = load_text("[relay]\nrelay_to = rtmp://a/x/{name}, rtmp://b/x\n")
    added = [RelayUrl.parse(text) for text in ("rtmp://c/x", "rtmp://a/x/cam", "rtmp://a/x/other")]
    found = Grant(KEY, tuple(added)).destinations(config.relay, KEY)
    assert found == (*config.relay.relay_to, added[0], added[2])


def test_the_limits_of_a_publish_hold_until_its_stream_ends():
    stream = new_stream("live/cam")
    source = new_source()
    source.grant = Grant(KEY, limits={"players_per_stream_limit": 3})
    stream.begin(source)
    assert stream.limits.players_per_stream_limit == 3
    # Players are kept for the publisher to come back.
    stream.wait_for_source()
    assert stream.limits.players_per_stream_limit == 3
    stream.end()
    assert stream.limits is stream.options.limits
    stream.begin(new_source())
    assert stream.limits is stream.options.limits
    stream.end()
    stream.close()
