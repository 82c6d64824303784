"""Sessions of HLS: what counts as one play, who may have what, and how a session ends or goes on at another server."""

from __future__ import annotations

import contextlib
import logging
import time

import gevent
import pytest

from rtmpd.authorization import AllowAll
from rtmpd.config.loader import load_text
from rtmpd.config.secret import Secret
from rtmpd.errors import Refused
from rtmpd.live.grant import Grant
from rtmpd.protocol import status
from rtmpd.services.auth.service import Auth
from rtmpd.services.auth.signing import sign
from rtmpd.services.hls.service import Hls
from rtmpd.util.stream_key import StreamKey
from tests.unit.services.hls.stage import Rendition, Stage, uris

TOKEN = "[auth]\nauth_mode = token\nauth_tokens = live/test=s3cret\nauth_ban_exempt =\nauth_ban_failures = 3\n"
INDEX, MEDIA, SEGMENT = "/live/test/index.m3u8", "/live/test/main/media.m3u8", "/live/test/main/seg-100.m4s"
LATER_S = 60


@pytest.fixture
def stage():
    """Return a function that starts a server."""
    with contextlib.ExitStack() as stack:

        def start(ini="", **options):
            made = Stage(ini, **options)
            stack.callback(made.close)
            return made

        yield start


def playlist_of(made, query="", **headers):
    """The path of a media playlist in the index."""
    reply = made.get(f"{INDEX}?{query}", **headers)
    assert reply.status == 200, reply
    return f"/live/test/{uris(reply.text)[0]}"


def media_of(reply):
    """The paths of the media in a playlist."""
    return [f"/live/test/main/{uri}" for uri in uris(reply.text)]


class CallbackAuthorizer(AllowAll):
    """Allows whatever has the token, for a time, until it is told not to."""

    def __init__(self, expires_s=3600.0):
        self.expires_s = expires_s
        self.denies = False
        self.asked = []

    def is_open(self, request):
        return False

    def authorize(self, request):
        self.asked.append(dict(request.parameters))
        if self.denies or request.parameters.get("token") != "s3cret":
            raise Refused(status.PLAY_FAILED, "Not authorized: denied.", "denied", unproved=True)
        return Grant(StreamKey(request.key), expires_s=self.expires_s)

    def renew(self, request, grant):
        return self.authorize(request)


def test_all_requests_of_a_viewer_are_one_play(stage):
    made = stage()
    made.publish(parts=5)
    path = playlist_of(made)
    playlist = made.get(path, User_Agent="A")
    segments = [made.get(each, User_Agent="A") for each in media_of(playlist)]
    assert made.get(path, User_Agent="A").status == 200
    stream = made.hub.streams["live/test"]
    assert len(stream.players) == 1
    made.hls.sessions.sweep(time.monotonic() + 3)
    assert made.kinds == ["play_start"]
    made.hls.sessions.sweep(time.monotonic() + LATER_S)
    assert not stream.players
    start, stop = made.events
    assert start.data["protocol"] == stop.data["protocol"] == "hls"
    assert stop.data["bytes"] == len(playlist.body) * 2 + sum(len(each.body) for each in segments)
    assert stop.data["bytes"] == stream.counters.bytes_sent
    assert (stop.data["reason"], stop.data["agent"]) == ("no request for 7 s", "A")
    assert int(start.connection_id) == int(stop.connection_id) > 0
    # The player was asleep: its id is still good.
    assert made.get(path).status == 200
    assert made.kinds == ["play_start", "play_stop", "play_start"]


def test_two_viewers_are_two_plays_and_a_player_without_an_id_is_one(stage):
    made = stage()
    made.publish(parts=5)
    for path in (playlist_of(made), playlist_of(made), MEDIA, MEDIA, f"{MEDIA}?_HLS_msn=100", f"{MEDIA}?s=nonsense"):
        assert made.get(path, User_Agent="A").status == 200
    assert made.kinds == ["play_start"] * 3
    assert made.get(MEDIA, User_Agent="B").status == 200
    assert made.kinds == ["play_start"] * 4
    assert made.hub.gauges["hls_sessions"]() == 4


def test_a_session_lasts_while_a_request_is_held(stage):
    made = stage()
    rendition = made.publish(parts=4)
    asked = made.later(f"{playlist_of(made)}&_HLS_msn=101&_HLS_part=0")
    gevent.sleep(0.05)
    made.hls.sessions.sweep(time.monotonic() + LATER_S)
    rendition.add()
    assert asked.get(timeout=5).status == 200
    assert made.kinds == ["play_start"]


def test_a_session_outlives_its_publisher(stage):
    made = stage()
    rendition = made.publish(parts=5)
    path = playlist_of(made)
    assert made.get(path).status == 200
    made.unpublish()
    assert made.get(path).status == 200
    rendition.end()
    assert made.get(path).text.endswith("#EXT-X-ENDLIST\n")
    made.hub.streams["live/test"].end()
    made.hls.sessions.sweep(time.monotonic() + LATER_S)
    assert made.events[-1].data["reason"] == "the stream has ended"


def test_too_many_players_are_503(stage):
    made = stage("[limits]\nplayers_per_stream_limit = 1\n")
    made.publish(parts=5)
    first, second = playlist_of(made), playlist_of(made)
    assert made.get(first).status == 200
    reply = made.get(second)
    assert (reply.status, reply.headers["retry-after"]) == (503, "5")
    assert made.get(first).status == 200


def test_sessions_count_in_the_limits_of_connections(stage):
    made = stage("[limits]\nconnections_per_address_limit = 2\n")
    made.publish(parts=5)
    paths = [playlist_of(made) for _ in range(3)]
    assert [made.get(path).status for path in paths] == [200, 200, 503]
    made.hls.sessions.sweep(time.monotonic() + LATER_S)
    assert made.get(paths[2]).status == 200


# Authorization ----------------------------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_an_id_stands_for_it(stage, caplog):
    caplog.set_level(logging.DEBUG)
    made = stage(TOKEN)
    made.publish(parts=5)
    assert made.get(INDEX).status == 401
    path = playlist_of(made, "token=s3cret")
    playlist = made.get(path)
    assert playlist.headers["cache-control"] == "no-store"
    assert "s3cret" not in playlist.text
    identity = path.partition("?")[2]
    assert all(uri.endswith(f"?{identity}") for uri in uris(playlist.text))
    (segment,) = media_of(playlist)
    found = made.get(segment)
    assert (found.status, found.headers["cache-control"]) == (200, "private, max-age=3600, immutable")
    for wrong in (SEGMENT, f"{SEGMENT}?s={'A' * 32}", MEDIA, f"{MEDIA}?s={'A' * 32}", "/live/test/main/init-1.mp4"):
        assert made.get(wrong).status == 401
    assert made.get(INDEX, Authorization="Bearer s3cret").status == 200
    assert made.get(f"{SEGMENT}?token=s3cret").status == 200
    assert not [line for line in caplog.messages if "s3cret" in line or identity[2:] in line]


def test_a_signed_url_is_good_until_it_expires_and_its_session_goes_on(stage):
    made = stage("[auth]\nauth_sign_secrets = key\n")
    made.publish(parts=5)
    until_s = int(time.time()) + 60
    signature = sign(Secret("key"), "play", "live/test", until_s)
    path = playlist_of(made, f"expires={until_s}&sign={signature}")
    assert signature not in made.get(path).text
    assert made.get(media_of(made.get(path))[0]).status == 200
    for query in (
        f"expires={until_s + 1}&sign={signature}",
        f"expires=1&sign={sign(Secret('key'), 'play', 'live/test', 1)}",
        "",
    ):
        assert made.get(f"{INDEX}?{query}").status == 401


def test_a_player_of_a_media_playlist_shows_its_token_each_time(stage):
    made = stage(TOKEN)
    made.publish(parts=5)
    first, second = (made.get(f"{MEDIA}?token=s3cret&_HLS_msn={number}") for number in (99, 100))
    assert first.status == second.status == 200
    assert made.get(media_of(second)[0]).status == 200
    assert made.kinds.count("play_start") == 1
    # Its place is its own.
    assert made.get(MEDIA).status == 401


def test_wrong_tokens_lead_to_a_ban(stage):
    made = stage(TOKEN)
    made.publish(parts=5)
    assert [made.get(f"{INDEX}?token=wrong").status for _ in range(3)] == [401] * 3
    assert made.kinds == ["auth_failed"] * 3
    with pytest.raises((AssertionError, OSError)):
        made.get(f"{INDEX}?token=s3cret")


def test_a_play_lasts_over_a_reload_that_demands_a_token(stage):
    made = stage()
    made.publish(parts=5)
    path = playlist_of(made)
    assert made.get(path, User_Agent="A").status == 200
    made.auth.reload(Auth.select(load_text(TOKEN)))
    assert made.get(path, User_Agent="A").status == made.get(SEGMENT, User_Agent="A").status == 200
    assert made.get(SEGMENT, User_Agent="B").status == made.get(INDEX, User_Agent="A").status == 401
    made.hls.sessions.sweep(time.monotonic() + LATER_S)
    assert made.get(path, User_Agent="A").status == made.get(SEGMENT, User_Agent="A").status == 401


def test_an_address_that_may_not_play_gets_no_media(stage):
    made = stage("[auth]\nplay_deny = 127.0.0.0/8\n")
    made.publish(parts=5)
    for path in (INDEX, MEDIA, SEGMENT):
        assert made.get(path).status == 403


def test_a_grant_is_renewed_and_a_denial_ends_the_session_for_good(stage):
    made = stage()
    authorizer = made.hub.authorizer = CallbackAuthorizer(expires_s=0.1)
    made.publish(parts=5)
    path = playlist_of(made, "token=s3cret")
    playlist = made.get(path)
    with gevent.Timeout(5):
        while len(authorizer.asked) < 4:
            gevent.sleep(0.01)
        assert made.get(path).status == 200
        authorizer.denies = True
        while "play_stop" not in made.kinds:
            gevent.sleep(0.01)
    assert made.kinds == ["play_start", "auth_failed", "play_stop"]
    assert made.events[-1].data["reason"] == "no longer authorized: denied"
    assert made.get(path).status == made.get(media_of(playlist)[0]).status == 403
    assert not made.hub.streams["live/test"].players
    assert authorizer.asked[-1] == {"token": "s3cret"}


def test_what_is_held_for_an_expelled_session_is_403(stage):
    made = stage()
    authorizer = made.hub.authorizer = CallbackAuthorizer(expires_s=0.2)
    rendition = made.publish(parts=4)
    asked = made.later(f"{playlist_of(made, 'token=s3cret')}&_HLS_msn=101&_HLS_part=0")
    gevent.sleep(0.05)
    authorizer.denies = True
    with gevent.Timeout(5):
        while "play_stop" not in made.kinds:
            gevent.sleep(0.01)
    rendition.add()
    assert asked.get(timeout=5).status == 403


def test_a_session_that_was_asleep_is_asked_about_again_when_its_grant_is_old(stage):
    made = stage()
    authorizer = made.hub.authorizer = CallbackAuthorizer(expires_s=0.1)
    made.publish(parts=5)
    path = playlist_of(made, "token=s3cret")
    gevent.sleep(0.12)
    assert made.get(path).status == 200
    assert len(authorizer.asked) == 2
    made.hls.sessions.sweep(time.monotonic() + LATER_S)
    authorizer.denies = True
    gevent.sleep(0.12)
    assert made.get(path).status == 401


def test_media_is_served_to_the_holder_of_an_id_only_while_its_grant_lasts(stage):
    made = stage()
    authorizer = made.hub.authorizer = CallbackAuthorizer(expires_s=0.3)
    made.publish(parts=5)
    segment = f"{SEGMENT}?{playlist_of(made, 'token=s3cret').partition('?')[2]}"
    assert made.get(segment).status == 200
    path = f"{MEDIA}?{segment.partition('?')[2]}"
    assert made.get(path).status == 200
    with gevent.Timeout(5):
        while len(authorizer.asked) < 4:
            gevent.sleep(0.01)
    # The session renews it.
    assert made.get(segment).status == 200
    made.hls.sessions.sweep(time.monotonic() + LATER_S)
    assert made.get(segment).status == 401
    assert made.kinds[:2] == ["play_start", "play_stop"]


def test_a_callback_may_give_the_stream_another_name(stage):
    made = stage()
    authorizer = made.hub.authorizer = CallbackAuthorizer()
    authorizer.authorize = lambda request: Grant(StreamKey("live/test"))
    made.publish(parts=5)
    (uri,) = uris(made.get("/live/alias/index.m3u8").text)
    assert uri.startswith("../test/main/media.m3u8?s=")
    assert made.get(f"/live{uri[2:]}").status == 200
    assert made.get("/live/alias/main/media.m3u8").status == 404


def test_sessions_end_after_a_check_that_has_failed(stage, monkeypatch):
    monkeypatch.setattr("rtmpd.services.hls.sessions._SWEEP_S", 0.01)
    made = stage()
    made.publish(parts=5)
    assert made.get(playlist_of(made)).status == 200
    sweep, fails = made.hls.sessions.sweep, [True]

    def failing(now_s):
        if fails:
            fails.pop()
            raise ZeroDivisionError
        sweep(now_s + LATER_S)

    monkeypatch.setattr(made.hls.sessions, "sweep", failing)
    with gevent.Timeout(5):
        while "play_stop" not in made.kinds:
            gevent.sleep(0.01)
    assert made.hub.counters["internal_errors"] == 1


# Several servers --------------------------------------------------------------------------------------------------------


def test_a_server_with_the_same_secret_continues_a_session(stage):
    secret = "[hls]\nhls_secret = shared by all\n"
    first, second, stranger = stage(secret + TOKEN), stage(secret + TOKEN), stage(TOKEN)
    for made in (first, second, stranger):
        made.publish(parts=5)
    path = playlist_of(first, "token=s3cret")
    playlist = second.get(path)
    assert playlist.status == 200
    assert playlist.body == first.get(path).body
    assert first.get(media_of(playlist)[0]).status == second.get(media_of(playlist)[0]).status == 200
    assert stranger.get(path).status == stranger.get(media_of(playlist)[0]).status == 401
    # It had to show nothing there, and may not play here.
    assert first.kinds == second.kinds == ["play_start"]
    opened = stage(secret)
    opened.publish(parts=5)
    assert first.get(playlist_of(opened)).status == 401


def test_a_reload_changes_the_secret_and_keeps_sessions(stage):
    made = stage("[hls]\nhls_secret = first\n")
    made.publish(parts=5)
    path, other = playlist_of(made), playlist_of(made)
    assert made.get(path, User_Agent="A").status == 200
    made.hls.reload(Hls.select(load_text("[hls]\nhls_secret = second\n")))
    assert made.get(path, User_Agent="A").status == 200
    assert made.kinds == ["play_start"]
    assert made.hls.sessions.claim(other.partition("s=")[2], ["live/test"]) is None


def test_an_id_with_a_grant_that_expires_is_good_elsewhere_until_then(stage):
    secret = "[hls]\nhls_secret = shared by all\n"
    first, second = stage(secret), stage(secret)
    for made in (first, second):
        made.hub.authorizer = CallbackAuthorizer(expires_s=100)
        made.publish(parts=5)
    identity = playlist_of(first, "token=s3cret").partition("s=")[2]
    claim = second.hls.sessions.claim(identity, ["live/test"])
    assert claim.proved
    assert abs(claim.until_s - time.time() - 100) < 5


def test_a_play_that_another_server_continues_ends_with_its_grant(stage):
    secret = "[hls]\nhls_secret = shared by all\n"
    first, second = stage(secret), stage(secret)
    for made, expires_s in ((first, 2.0), (second, 100)):
        made.hub.authorizer = CallbackAuthorizer(expires_s=expires_s)
        made.publish(parts=5)
    path = playlist_of(first, "token=s3cret")
    assert second.get(path).status == 200
    with gevent.Timeout(5):
        while "play_stop" not in second.kinds:
            gevent.sleep(0.01)
    # It has nothing to ask the callback with.
    assert second.hub.authorizer.asked == [{}]
    assert second.get(path).status == 403


# One publish after another ----------------------------------------------------------------------------------------------


def publish_next(made, old):
    """End a publish, and begin the next one, with other tracks."""
    old.end()
    made.hls.packagers.before["live/test"] = ended = made.hls.packagers["live/test"]
    ended.ended = True
    made.unpublish()
    made.publish("live/test", Rendition(first_number=500, video=False), parts=5)
    made.hls.packagers["live/test"].renditions[0].inits = {"2": b"other"}


@pytest.mark.parametrize("has_id", [True, False])
def test_a_player_gets_the_end_of_the_publish_that_it_has_begun_with(stage, has_id):
    made = stage()
    old = made.publish(parts=5)
    path = playlist_of(made) if has_id else "/live/test/main/media.m3u8"
    assert made.get(path, User_Agent="A").status == 200
    publish_next(made, old)
    ended = made.get(path, User_Agent="A").text
    assert "#EXT-X-ENDLIST" in ended
    assert "seg-100.m4s" in ended
    # Once is enough for a player without an id: the next one with the same address may be a new one.
    assert ("#EXT-X-ENDLIST" in made.get(path, User_Agent="A").text) is has_id
    new = made.get(playlist_of(made), User_Agent="A").text
    assert "#EXT-X-ENDLIST" not in new
    assert "seg-500.m4s" in new
    for name in ("seg-100.m4s", "part-101-0.m4s", "init-1.mp4", "seg-500.m4s", "part-501-0.m4s", "init-2.mp4"):
        assert made.get(f"/live/test/main/{name}").status == 200
    # When the earlier publish is no longer kept there is the present one.
    made.hls.packagers.before.clear()
    assert "seg-500.m4s" in made.get(path, User_Agent="A").text


def test_behind_a_cache_sequence_numbers_tell_publishes_apart(stage):
    made = stage()
    old = made.publish(parts=5)
    path = "/live/test/main/media.m3u8"
    made.get(path)
    publish_next(made, old)
    for number, is_old in ((101, True), (102, True), (500, False), (102, True)):
        assert ("#EXT-X-ENDLIST" in made.get(f"{path}?_HLS_msn={number}&_HLS_part=0").text) is is_old
