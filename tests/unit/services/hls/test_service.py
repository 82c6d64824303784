"""The routes of HLS: playlists, media, holds, sessions and authorization, over a socket; packagers are the test's."""

from __future__ import annotations

import contextlib
import gzip
import time

import gevent
import pytest

from rtmpd.events import EventType
from rtmpd.media.hls.targets import Targets
from rtmpd.services.hls import service as module
from tests.hls_rules import Client, check_multivariant
from tests.unit.services.hls.stage import PART, FakePackager, Rendition, Stage, uris

TOKEN = "[auth]\nauth_mode = token\nauth_tokens = live/test=s3cret\n"
MEDIA = "/live/test/main/media.m3u8"


@pytest.fixture
def stage():
    """Return a function that starts a server."""
    with contextlib.ExitStack() as stack:

        def start(ini="", **options):
            made = Stage(ini, **options)
            stack.callback(made.close)
            return made

        yield start


def wait_until(condition, limit_s=5):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        gevent.sleep(0.01)


# Multivariant playlists -------------------------------------------------------------------------------------------------


def test_the_index_describes_the_stream_and_begins_no_play(stage):
    made = stage()
    made.publish(parts=1)
    reply = made.get("/live/test/index.m3u8?token=s3cret")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/vnd.apple.mpegurl")
    assert reply.headers["cache-control"] == "no-store"
    assert check_multivariant(reply.text) == []
    (uri,) = uris(reply.text)
    assert uri.startswith("main/media.m3u8?s=")
    assert "s3cret" not in reply.text
    assert made.events == []
    head = made.get("/live/test/index.m3u8", "HEAD")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(reply.body)), b"")


def test_the_index_waits_for_the_first_part(stage):
    made = stage()
    rendition = made.publish()
    asked = made.later("/live/test/index.m3u8")
    gevent.sleep(0.05)
    assert not asked.ready()
    rendition.add()
    assert asked.get(timeout=5).status == 200


def test_a_stream_that_sends_nothing_is_503_after_a_while(stage, monkeypatch):
    monkeypatch.setattr(module, "READY_S", 0.05)
    made = stage()
    made.publish()
    reply = made.get("/live/test/index.m3u8")
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    made.hls.packagers["live/test"].renditions = ()
    assert made.get(MEDIA).status == 503


def test_renditions_are_those_of_the_stream_and_of_other_names(stage):
    made = stage("[hls]\nhls_renditions = _720p, _480p, _240p\n")
    made.publish(parts=4)
    low = made.publish("live/test_480p", parts=4)
    low.width, low.height = 854, 480
    made.publish("live/test_240p")
    made.hls.packagers["live/test_240p"] = FakePackager("live/test_240p")
    made.hls.packagers["live/test_240p"].problem = "no codec"
    text = made.get("/live/test/index.m3u8").text
    assert check_multivariant(text) == []
    first, second = uris(text)
    assert "RESOLUTION=854x480" in text
    assert second == f"../test_480p/{first}"
    # One play, whichever is watched.
    assert made.get(f"/live/test_480p/{first}").status == 200
    assert made.get(f"/live/test/{first}").status == 200
    assert made.kinds == ["play_start"]
    reports = [made.get(f"/live/{name}/{first}").text for name in ("test", "test_480p")]
    assert '#EXT-X-RENDITION-REPORT:URI="../../test_480p/main/media.m3u8",LAST-MSN=100,LAST-PART=3' in reports[0]
    assert '#EXT-X-RENDITION-REPORT:URI="../../test/main/media.m3u8",LAST-MSN=100,LAST-PART=3' in reports[1]
    # Its id is not for other streams.
    made.publish("live/other", parts=4)
    assert made.get(f"/live/other/{first}").status == 200
    assert made.kinds == ["play_start"] * 2


def test_a_rendition_that_sends_nothing_is_not_waited_for_long(stage, monkeypatch):
    monkeypatch.setattr(module, "OTHERS_S", 0.05)
    made = stage("[hls]\nhls_renditions = _720p, _480p\n")
    made.publish(parts=4)
    made.publish("live/test_720p")
    made.publish("live/test_480p")
    made.hls.packagers["live/test_480p"].renditions = ()
    began_s = time.monotonic()
    assert len(uris(made.get("/live/test/index.m3u8").text)) == 1
    assert time.monotonic() - began_s < 5


def test_what_is_not_served_is_in_the_access_log(stage):
    made = stage()
    made.publish(parts=4)
    closed = []
    made.hub.bus.subscribe((EventType.CONNECTION_CLOSE,), closed.append)
    for path in ("/live/x/index.m3u8", "/live/x/main/media.m3u8", "/live/test/index.m3u8", MEDIA, "/live/test/main/seg-9.m4s"):
        made.get(path)
    wait_until(lambda: len(closed) == 5)
    assert [each.data["served"] for each in closed] == [False, False, True, True, False]
    assert [each.data.get("wanted_stream") for each in closed][:4] == ["live/x", "live/x", "live/test", "live/test"]


def test_a_rendition_that_has_ended_is_left_out_unless_all_have(stage):
    made = stage("[hls]\nhls_renditions = _720p\n")
    made.publish(parts=4).end()
    made.publish("live/test_720p", parts=4)
    made.hls.packagers["live/test"].ended = True
    assert [uri.partition("?")[0] for uri in uris(made.get("/live/test/index.m3u8").text)] == ["../test_720p/main/media.m3u8"]
    made.hls.packagers["live/test_720p"].ended = True
    assert len(uris(made.get("/live/test/index.m3u8").text)) == 2


def test_renditions_can_be_all_that_there_is(stage):
    made = stage("[hls]\nhls_renditions = _720p\n")
    made.publish("live/test_720p", parts=1)
    (uri,) = uris(made.get("/live/test/index.m3u8").text)
    assert uri.startswith("../test_720p/main/media.m3u8?s=")
    assert made.get(f"/live/test_720p/{uri[13:]}&_HLS_msn=100&_HLS_part=0").status == 200


def test_further_audio_tracks_are_a_group(stage):
    made = stage()
    main, sound, video = Rendition(), Rendition("audio2", video=False), Rendition("video2")
    main.language, sound.language, sound.channels = "en", "de", 6
    made.publish("live/test", main, sound, video, parts=4)
    text = made.get("/live/test/index.m3u8").text
    assert check_multivariant(text) == []
    assert 'NAME="en 1",DEFAULT=YES,AUTOSELECT=YES,LANGUAGE="en"' in text
    assert 'LANGUAGE="de",CHANNELS="6",URI="audio2/media.m3u8?s=' in text
    assert len(uris(text)) == text.count('AUDIO="audio1"') == 2
    playlist = made.get(MEDIA).text
    assert '#EXT-X-RENDITION-REPORT:URI="../audio2/media.m3u8",LAST-MSN=100,LAST-PART=3' in playlist
    assert made.get("/live/test/audio2/seg-100.m4s").headers["content-type"] == "audio/mp4"


@pytest.mark.parametrize("path", ["index.m3u8", "main/media.m3u8", "main/seg-100.m4s"])
def test_what_mp4_cannot_carry_is_415(stage, path):
    made = stage()
    made.publish()
    made.hls.packagers["live/test"].renditions = ()
    made.hls.packagers["live/test"].problem = "MP4 has no Sorenson Spark"
    reply = made.get(f"/live/test/{path}", Accept="text/plain")
    assert (reply.status, reply.text) == (415, "HLS can't carry live/test: MP4 has no Sorenson Spark\n")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/vnd.apple.mpegurl"),
        ("text/html", "text/html; charset=utf-8"),
        ("application/json", "application/json"),
    ],
)
def test_an_unknown_stream_is_404_as_the_client_likes_it(stage, accept, kind):
    made = stage()
    for path in ("/live/x/index.m3u8", "/live/x/main/media.m3u8"):
        reply = made.get(path, Accept=accept)
        assert reply.status == 404
        assert reply.headers["content-type"].startswith(kind)
        assert reply.headers["cache-control"] == "no-store"
        assert "live/x is not being published" in reply.text


def test_hls_that_is_off_is_404(stage):
    made = stage()
    made.publish()
    del made.hls.packagers["live/test"]
    assert "it is off" in made.get("/live/test/index.m3u8").text


# Media playlists --------------------------------------------------------------------------------------------------------


def test_a_playlist_keeps_the_rules_while_the_stream_goes_on(stage):
    made = stage()
    rendition = made.publish(parts=4)
    client, delta = Client(has_keyframes=False), Client(has_keyframes=False)
    uri = uris(made.get("/live/test/index.m3u8").text)[0]
    with contextlib.closing(made.connect()) as sock:
        for _ in range(60):
            number, part = rendition.window.next_part
            rendition.add()
            path = f"/live/test/{uri}&_HLS_msn={number}&_HLS_part={part}"
            assert client.load(made.get(path, sock=sock).text) == []
            assert delta.load(made.get(f"{path}&_HLS_skip=YES", sock=sock).text, skip=delta.before is not None) == []
    assert delta.before.skipped > 5
    assert made.kinds == ["play_start"]


def test_a_playlist_without_directives_waits_for_the_first_segment(stage):
    made = stage()
    rendition = made.publish(parts=1)
    asked = made.later(MEDIA)
    gevent.sleep(0.05)
    assert not asked.ready()
    rendition.add(3)
    assert "seg-100.m4s" in asked.get(timeout=5).text


def test_head_tells_whether_a_playlist_is_there_and_begins_no_play(stage):
    made = stage(TOKEN)
    made.publish(parts=1)
    reply = made.get(f"{MEDIA}?token=s3cret&_HLS_msn=101", "HEAD")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/vnd.apple.mpegurl")
    assert "content-length" not in reply.headers
    assert made.get(MEDIA, "HEAD").status == 401
    assert made.get("/live/test/video9/media.m3u8?token=s3cret", "HEAD").status == 404
    assert "play_start" not in made.kinds


def test_requests_for_what_comes_next_are_held_in_any_number(stage):
    made = stage()
    rendition = made.publish(parts=4)
    asked = [made.later(f"{MEDIA}?_HLS_msn=101&_HLS_part=0", User_Agent=f"a{number}") for number in range(100)]
    part = made.later("/live/test/main/part-101-0.m4s")
    wait_until(lambda: made.hub.counters["plays"] == 100)
    # Others are served meanwhile: nothing is taken that there is only some of.
    assert made.get(MEDIA, User_Agent="a0").status == 200
    assert not any(each.ready() for each in [*asked, part])
    rendition.add()
    assert {each.get(timeout=5).body for each in asked} == {asked[0].get().body}
    assert 'part-101-0.m4s",INDEPENDENT=YES' in asked[0].get().text
    assert part.get(timeout=5).body == PART + b"\4"


@pytest.mark.parametrize("option", ["connection_limit = 40", "connections_per_address_limit = 10"])
def test_held_requests_are_limited(stage, option):
    made = stage(f"[limits]\n{option}\n")
    made.hub.connection_limits.refusal = lambda *arguments: ""
    rendition = made.publish(parts=4)
    made.hub.give_way = lambda group: ""
    path = "/live/test/main/part-101-0.m4s"
    asked = []
    for _ in range(40):
        # Few may send a request at once.
        asked.append(made.later(path))
        gevent.sleep(0.004)
    assert made.get(path).status == 503
    rendition.add()
    assert {each.get(timeout=5).status for each in asked} == {200}
    # There is room again.
    packager = made.hls.packagers["live/test"]
    before = packager.touched
    again = made.later("/live/test/main/part-101-1.m4s")
    wait_until(lambda: packager.touched == before + 2)
    rendition.add()
    assert again.get(timeout=5).status == 200


def test_the_far_future_is_400_and_a_long_hold_503(stage):
    made = stage()
    rendition = Rendition(targets=Targets(100, 40, 1))
    made.publish("live/test", rendition, parts=4)
    rendition.window.targets = Targets(100, 40, 0)
    for query in ("_HLS_msn=103", "_HLS_msn=101&_HLS_part=99", "_HLS_part=1", "_HLS_msn=x", "_HLS_msn=1&_HLS_msn=1"):
        reply = made.get(f"{MEDIA}?{query}")
        assert (reply.status, reply.headers["cache-control"]) == (400, "no-store"), query
    reply = made.get(f"{MEDIA}?_HLS_msn=101&_HLS_part=0")
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert made.get("/live/test/main/part-101-0.m4s").status == 503
    assert made.hub.counters["hls_holds_expired"] == 2


def test_caches_may_keep_what_blocks(stage):
    made = stage()
    made.publish(parts=5)
    assert made.get(MEDIA).headers["cache-control"] == "max-age=1"
    assert made.get(f"{MEDIA}?_HLS_msn=100").headers["cache-control"] == "max-age=12"
    assert made.get(f"{MEDIA}?s=x&_HLS_msn=100").body == made.get(f"{MEDIA}?_HLS_msn=100").body


def test_a_long_playlist_is_compressed(stage):
    made = stage()
    made.publish(parts=40)
    plain = made.get(MEDIA)
    packed = made.get(MEDIA, Accept_Encoding="gzip")
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert gzip.decompress(packed.body) == plain.body


def test_a_rendition_that_does_not_exist_is_404(stage):
    made = stage()
    made.publish(parts=4)
    assert made.get("/live/test/video9/media.m3u8").status == 404
    assert made.get("/live/test/video9/seg-100.m4s").status == 404


# Media ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("seg-100.m4s", b"".join(PART + bytes([number]) for number in range(4))),
        ("part-101-0.m4s", PART + b"\4"),
        ("init-1.mp4", b"ftypmoov"),
    ],
)
def test_media_can_be_kept_and_read_in_ranges(stage, name, body):
    made = stage("[http]\nhttp_allow_origin = *\n")
    made.publish(parts=5)
    path = f"/live/test/main/{name}"
    whole = made.get(path, Origin="https://example.com")
    assert (whole.status, whole.body) == (200, body)
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["cache-control"] == "public, max-age=3600, immutable"
    assert whole.headers["access-control-allow-origin"] == "*"
    part = made.get(path, Range="bytes=2-5")
    assert (part.status, part.body, part.headers["content-range"]) == (206, body[2:6], f"bytes 2-5/{len(body)}")
    assert made.get(path, Range="bytes=99999-").status == 416
    head = made.get(path, "HEAD")
    assert (head.status, head.headers["content-length"]) == (200, str(len(body)))
    assert made.get(path, If_None_Match=whole.headers["etag"]).status == 304


@pytest.mark.parametrize(
    "name",
    ["seg-99.m4s", "seg-101.m4s", "seg-0100.m4s", "seg-x.m4s", "part-101-2.m4s", "part-100-4.m4s", "init-2.mp4", "init-.mp4"],
)
def test_media_that_does_not_exist_is_404(stage, name):
    made = stage()
    made.publish(parts=5)
    assert made.get(f"/live/test/main/{name}").status == 404


def test_the_end_of_a_stream_answers_what_waits(stage):
    made = stage()
    rendition = made.publish(parts=4)
    asked, part = made.later(f"{MEDIA}?_HLS_msn=101&_HLS_part=0"), made.later("/live/test/main/part-101-0.m4s")
    gevent.sleep(0.05)
    rendition.end()
    assert asked.get(timeout=5).text.endswith("#EXT-X-ENDLIST\n")
    assert part.get(timeout=5).status == 404
