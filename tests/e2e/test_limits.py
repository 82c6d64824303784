"""What real clients make of it when a limit is hit."""

from __future__ import annotations

from tests.e2e.media import wait_for_plays

CLIP = "h264_aac"


def loud(programs, url):
    """Publish without an end, in real time, with more than the tests allow."""
    source = ("-re", "-stream_loop", "-1", "-i", programs.clips[CLIP])
    return programs.start("loud", programs.ffmpeg, "-v", "error", "-nostdin", *source, "-c", "copy", "-f", "flv", url)


def test_ffmpeg_above_the_bitrate_limit_prints_why_it_was_disconnected(server, programs):
    running = server("[limits]\npublish_bitrate_limit = 16k\npublish_bitrate_grace_s = 1\n")
    publisher = loud(programs, running.url())
    assert publisher.wait() != 0
    assert "The bitrate is too high: " in publisher.errors
    assert "and 16 kbit/s are allowed." in publisher.errors
    running.wait_for_line(
        r"WARNING .* live/test: the publisher sends \d+ kbit/s, and has sent more than 16 kbit/s for 1 s .*: it is disconnected"
    )


def test_ffmpeg_prints_that_a_limit_of_streams_or_players_is_reached(server, programs):
    running = server("[limits]\nstream_limit = 1\nplayers_per_stream_limit = 1\n")
    publisher = loud(programs, running.url())
    running.wait_for_line("publishes live/test")
    second = loud(programs, running.url("second"))
    assert second.wait() != 0
    assert "The server has too many streams." in second.errors
    first = programs.play(running.url())
    wait_for_plays(running, "live/test")
    player = programs.play(running.url())
    assert player.wait() != 0
    assert "live/test has too many players." in player.errors
    assert publisher.running
    assert first.running
