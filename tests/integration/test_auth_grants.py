"""What a callback grants: relays, recordings, limits and an end, in JSON and in nginx-rtmp's form.

Every secret here has "s3cret" in it.
"""

from __future__ import annotations

import itertools
import re
import signal

import gevent
import pytest

from rtmpd.client import Client
from rtmpd.errors import Refused
from tests.conftest import Server
from tests.integration.beside import Bystander, wait_until
from tests.integration.target import Target
from tests.integration.test_hooks import Events
from tests.integration.test_metrics import fetch, metrics_port
from tests.integration.web import first, granting, hang_up, named, reply
from tests.integration.wire import VIDEO, Wire, begin, gop, gops, key, played, send, send_headers, status

PUBLISH_REJECTED, PLAY_FAILED = "NetStream.Publish.Rejected", "NetStream.Play.Failed"


@pytest.fixture
def serve(watched_server, web):
    """A function that starts a server with the callback."""

    def start(auth="", more="", **options):
        ini = f"[auth]\nauth_mode = callback\nauth_callback = '{web.url}'\n{auth}\n{more}"
        return watched_server(ini, **options)

    return start


@pytest.fixture
def target(opened):
    made = Target()
    opened.callback(made.close)
    return made


# Relays -----------------------------------------------------------------------------------------------------------------


def test_relays_of_an_answer_begin_and_end_with_the_publish_and_survive_reloads(serve, web, target, publisher):
    web.answers["cam"] = granting(relay_to=[target.url("far/s3cret-key"), target.url("other/{name}")])
    running = serve()
    sender = publisher(running, "cam")
    running.wait_for_line(
        rf"live/cam: this publish is granted: relay_to rtmp://127.0.0.1:{target.port}/far/\*+, "
        rf"relay_to rtmp://127.0.0.1:{target.port}/other/\{{name\}}$"
    )
    begin(sender)
    secret, other = target.publishing("s3cret-key"), target.publishing("cam")
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_line("configuration reloaded")
    send(sender, gops(1, 2))
    last = gops(1, 2)[-1]
    target.wait(lambda: secret.media[-1] == last and other.media[-1] == last, "the media after the reload")
    assert len(target.peers) == 2
    # Another publish, of another name, has no relays.
    begin(publisher(running, "plain"))
    sender.unpublish()
    target.wait(lambda: secret.over.is_set() and other.over.is_set(), "the end of both")
    assert len(target.peers) == 2
    running.wait_for_line(r"relay to rtmp://\S+/far/\*+ ended: FCUnpublish")


def test_secrets_of_relays_of_an_answer_are_in_no_log_event_dump_or_metric(serve, web, target, publisher, tmp_path):
    events = Events(tmp_path / "events")
    url = f"rtmp://ann:s3cret-pass@127.0.0.1:{target.port}/far/s3cret-key?token=s3cret"
    web.answers["cam"] = granting(relay_to=url)
    running = serve(more="[hooks]\nhook_stdio_format = json\n[metrics]\nmetrics_listen = 127.0.0.1:0\n", stdout=events.file)
    sender = publisher(running, "cam")
    begin(sender)
    target.publishing("s3cret-key")
    (up,) = events.wait("relay_up")
    assert up["data"]["destination"] == f"rtmp://127.0.0.1:{target.port}/far/********?********"
    shown = [fetch(metrics_port(running), path)[1].decode() for path in ("/metrics", "/debug/vars")]
    running.process.send_signal(signal.SIGUSR2)
    running.wait_for_line("live/cam.*relay to")
    target.refusal = ("NetStream.Publish.Denied", "s3cret-key is not allowed")
    target.peers[0].status("NetStream.Publish.Denied", "s3cret-key is not allowed")
    events.wait("relay_down")
    sender.unpublish()
    running.wait_for_line(r"relay to \S+ ended")
    assert not [text for text in (*shown, events.path.read_text(), *running.log()) if "s3cret" in text]


def test_relays_of_an_answer_add_to_those_of_the_options_without_doubles(serve, web, target, publisher):
    web.answers["cam"] = granting(relay_to=[target.url("far/cam"), target.url("far/more")])
    running = serve(more=f"[relay]\nrelay_to = {target.url('far/{name}')}\n")
    sender = publisher(running, "cam")
    begin(sender)
    target.publishing("cam")
    target.publishing("more")
    assert sorted(peer.published for peer in target.peers) == ["cam", "more"]


# Recording --------------------------------------------------------------------------------------------------------------


def files(directory) -> list[str]:
    return sorted(path.name for path in directory.rglob("*.flv*") if path.is_file()) if directory.exists() else []


@pytest.mark.parametrize("record_all", ["yes", "no"])
def test_an_answer_decides_whether_a_publish_is_recorded(serve, web, publisher, tmp_path, record_all):
    directory = tmp_path / "recordings"
    web.answers |= {"on": granting(record=True), "off": granting(record=False)}
    options = f"record_directory = {directory}\nrecord_file_name = {{name}}\nrecord_all = {record_all}\n"
    running = serve(more=f"[record]\n{options}")
    senders = [publisher(running, name) for name in ("off", "on", "open")]
    for sender in senders:
        begin(sender)
    wanted = ["on.flv.part", "open.flv.part"] if record_all == "yes" else ["on.flv.part"]
    wait_until(lambda: files(directory) == wanted, "the recordings")
    # A reload, after which no stream is recorded, changes what no answer has decided.
    path = tmp_path / "rtmpd.ini"
    path.write_text(path.read_text().replace("record_all = yes", "record_all = no"))
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_line("configuration reloaded")
    if record_all == "yes":
        running.wait_for_line("live/open: recorded ")
    for sender in senders:
        sender.unpublish()
    running.wait_for_line("live/on: recorded ")
    assert files(directory) == [name.removesuffix(".part") for name in wanted]


def test_a_recording_that_only_an_answer_demands_is_repaired_after_a_crash(serve, web, publisher, tmp_path):
    directory = tmp_path / "recordings"
    web.answers[""] = granting(record=True)
    more = f"[record]\nrecord_directory = {directory}\nrecord_file_name = {{name}}\n"
    ini = f"[auth]\nauth_mode = callback\nauth_callback = '{web.url}'\n{more}"
    killed = Server(ini, directory=tmp_path)
    sender = publisher(killed, "cam")
    begin(sender)
    send(sender, gops(1, 3))
    wait_until(lambda: any(path.stat().st_size > 500 for path in directory.glob("cam.flv.part")), "the part")
    killed.process.kill()
    killed.process.wait()
    running = serve(more=more)
    begin(publisher(running, "other"))
    running.wait_for_line("repaired .*cam.flv")
    assert "cam.flv" in files(directory)


# Limits -----------------------------------------------------------------------------------------------------------------


def test_an_answer_limits_the_players_of_a_stream(serve, web, publisher, player):
    web.answers["cam"] = granting(limits={"players_per_stream_limit": 1})
    running = serve(more="[limits]\nplayers_per_stream_limit = 5\n")
    begin(publisher(running, "cam"), player(running, "cam"))
    begin(publisher(running, "open"), player(running, "open"), player(running, "open"))
    with Client(running.url("cam")) as client, pytest.raises(Refused) as raised:
        client.play()
    assert raised.value.description == "live/cam has too many players."
    running.wait_for_line("players_per_stream_limit is 1")


def test_an_answer_limits_the_bitrate_of_a_publisher(serve, web, raw):
    limits = {"publish_bitrate_limit": "8k", "publish_bitrate_grace_s": 1, "publish_bitrate_action": "disconnect"}
    web.answers["cam"] = granting(limits=limits)
    running = serve(more="[limits]\npublish_bitrate_action = warn\n")
    wires = [raw(running).publish(name) for name in ("cam", "open")]
    running.wait_for_line(
        "this publish is granted: publish_bitrate_limit 8000, publish_bitrate_grace_s 1, publish_bitrate_action disconnect$"
    )
    for wire in wires:
        send_headers(wire)

    for number in itertools.count():
        for wire in wires:
            wire.send(VIDEO, number * 40, key(number, 20_000))
        if any("publish_bitrate_limit): it is disconnected" in line for line in running.log()):
            break
        gevent.sleep(0.02)
        assert number < 1000
    status(wires[0], PUBLISH_REJECTED)
    assert not [line for line in running.log() if "live/open: the publisher sends" in line]
    running.wait_for_line(r"live/cam: publish_bitrate_limit; |stopped publishing live/cam: publish_bitrate_limit")


# Wrong answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["publish", "play"])
@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"record": "s3cret"}, "record in the response is not true or false"),
        ({"relay_to": "file:/etc/s3cret"}, "relay_to in the response is not a URL that begins with rtmp:// or rtmps://"),
        ({"limits": {"bitrate": 1}}, 'limits in the response has "bitrate"; possible are players_per_stream_limit, '),
        ({"expires_s": 0}, "expires_s in the response is not a number above 0"),
    ],
)
def test_a_wrong_member_refuses_the_client_and_is_named_once(serve, web, action, members, why):
    web.answers["cam"] = granting(**members)
    running = serve()
    with Client(running.url("cam")) as client, pytest.raises(Refused, match="the authentication service failed"):
        getattr(client, action)()
    line = running.wait_for_line(r"ERROR +auth_callback \S+ failed, clients are refused: (.*)")[1]
    assert line.startswith(why)
    running.stop()
    running.wait_for_line(r"counted: auth_callback_errors 1, auth_failures 1, ")


# Re-checks --------------------------------------------------------------------------------------------------------------


def test_a_publish_is_asked_about_again_and_ends_when_it_is_denied(serve, web, raw, player, tmp_path):
    events = Events(tmp_path / "events")
    running = serve(more="[hooks]\nhook_stdio_format = json\n", stdout=events.file)
    web.answers["s3cret-cam"] = first(granting(stream="cam", expires_s=1), 403)
    bystander = Bystander(running)
    try:
        encoder = raw(running).publish("s3cret-cam?token=s3cret&x=y")
        viewer = player(running, "cam")
        begin(encoder, viewer)
        got = status(encoder, PUBLISH_REJECTED)
        assert got[-1].argument(0)["description"] == "No longer authorized: the callback said no."
        bystander.check()
    finally:
        bystander.close()
    asked, again = (each for each in web.questions if each["stream_name"] == "s3cret-cam")
    assert "recheck" not in asked
    assert again == {**asked, "recheck": True, "running_s": again["running_s"]}
    assert 0.8 <= again["running_s"] < 10
    running.wait_for_line(
        rf"WARNING .*{re.escape(encoder.address)} live/cam: the publish is no longer authorized, and ends: "
        r"the callback said no \(re-check, expires_s\)"
    )
    running.wait_for_line("stopped publishing live/cam: no longer authorized: the callback said no; ")
    (failed,) = events.wait("auth_failed")
    assert (failed["data"]["action"], failed["data"]["reason"]) == ("publish", "the callback said no")
    running.wait_for_line(rf"{re.escape(encoder.address)} closed: no longer authorized: the callback said no; ")
    running.stop()
    counted = running.wait_for_line(r"stopped; counted: (.*)")[1]
    assert "auth_rechecks 1" in counted
    assert "auth_revocations 1" in counted
    assert "auth_failures" not in counted
    assert "s3cret" not in events.path.read_text()


def test_a_play_is_asked_about_again_and_ends_when_it_is_denied(serve, web, raw, publisher, player):
    running = serve()
    encoder = publisher(running, "cam")
    web.answers["cam"] = first(granting(expires_s=1), 403)
    viewer = raw(running).play("cam")
    web.answers["cam"] = 200
    other = player(running, "cam")
    web.answers["cam"] = 403
    begin(encoder, viewer, other)
    got = status(viewer, PLAY_FAILED)
    assert got[-1].argument(0)["description"] == "No longer authorized: the callback said no."
    assert viewer.read() is None
    running.wait_for_line(r"live/cam: the play is no longer authorized, and ends: the callback said no \(re-check, expires_s\)")
    running.wait_for_line("stopped playing live/cam: no longer authorized: the callback said no; ")
    send(encoder, gop(1))
    assert played(other, gop(1)[-1])


def test_a_play_that_is_denied_while_it_waits_for_a_publisher_ends(serve, web, raw):
    running = serve()
    web.answers["cam"] = first(granting(expires_s=1), 403)
    viewer = raw(running).play("cam")
    assert status(viewer, PLAY_FAILED)
    assert viewer.read() is None


@pytest.mark.parametrize("answer", [reply(204), granting(expires_s=1, record=True, stream="other")])
def test_a_re_check_that_allows_repeats_and_changes_nothing_else(serve, web, publisher, tmp_path, answer):
    running = serve(more=f"[record]\nrecord_directory = {tmp_path}/recordings\n")
    web.answers["cam"] = first(granting(expires_s=1), answer)
    sender = publisher(running, "cam")
    begin(sender)
    wait_until(lambda: len(web.questions) >= 4, "three re-checks", 20)
    send(sender, gop(1))
    sender.unpublish()
    running.wait_for_line("stopped publishing live/cam: FCUnpublish")
    assert not (tmp_path / "recordings").exists()
    asked = len(web.questions)
    running.stop()
    # None comes after the end.
    assert len(web.questions) == asked


def test_a_callback_that_fails_at_a_re_check_ends_nothing_if_it_comes_back(serve, web, publisher):
    running = serve("auth_recheck_grace_s = 1m")
    web.answers["cam"] = first(granting(expires_s=1), reply(503))
    sender = publisher(running, "cam")
    begin(sender)
    running.wait_for_line(
        r"ERROR +auth_callback http://127.0.0.1:\d+ failed at a re-check, repeated for auth_recheck_grace_s: "
        r"the server answered 503; 1 failures so far$"
    )
    web.answers["cam"] = reply(200)
    asked = len(web.questions)
    wait_until(lambda: len(web.questions) >= asked + 2, "the next answers", 20)
    send(sender, gop(1))
    sender.unpublish()
    running.wait_for_line("stopped publishing live/cam: FCUnpublish")


@pytest.mark.parametrize("grace", ["0", "1"])
def test_a_callback_that_fails_at_a_re_check_for_too_long_ends_the_publish(serve, web, raw, grace):
    running = serve(f"auth_recheck_grace_s = {grace}")
    web.answers["cam"] = first(granting(expires_s=1), hang_up)
    encoder = raw(running).publish("cam")
    got = status(encoder, PUBLISH_REJECTED, 20)
    assert got[-1].argument(0)["description"] == "No longer authorized: the authentication service failed."
    running.wait_for_line("stopped publishing live/cam: no longer authorized: the authentication service failed; ")


def test_the_option_sets_the_time_of_answers_that_set_none(serve, web, raw):
    running = serve("auth_recheck_s = 1")
    web.answers["cam"] = first(200, 403)
    assert status(raw(running).publish("cam"), PUBLISH_REJECTED)


def test_a_client_that_leaves_during_a_re_check_costs_nothing(serve, web):
    running = serve("auth_callback_timeout_s = 30")
    web.answers["cam"] = first(granting(expires_s=1), lambda handler, web: web.over.wait(60))
    with Wire(running) as encoder:
        encoder.publish("cam")
        wait_until(lambda: len(web.questions) == 2, "the re-check")
    running.wait_for_line("stopped publishing live/cam: connection closed")


# nginx-rtmp -------------------------------------------------------------------------------------------------------------

NGINX = "auth_callback_format = nginx\n"


def test_a_publish_and_a_play_are_asked_for_as_nginx_rtmp_does(serve, web, raw):
    running = serve(NGINX)
    encoder, viewer = raw(running), raw(running)
    encoder.connect("live?a=1", flashVer="FMLE/3.0", swfUrl="swf", pageUrl="http://page/?x&y")
    encoder.command("publish", "cam?token=s3cret&call=play", "record", msid=encoder.create_stream())
    encoder.status("NetStream.Publish.Start")
    viewer.play("cam")
    begin(encoder, viewer)
    connection = {
        "app": "live",
        "flashver": "FMLE/3.0",
        "swfurl": "swf",
        "tcurl": "rtmp://localhost/live",
        "pageurl": "http://page/?x&y",
        "addr": encoder.address.partition(":")[0],
        "clientid": "1",
    }
    publish, play = web.questions
    assert publish == {**connection, "call": "publish", "name": "cam", "type": "record", "a": "1", "token": "s3cret"}
    assert web.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert {name: play[name] for name in ("call", "name", "start", "duration", "reset", "clientid")} == {
        "call": "play",
        "name": "cam",
        "start": "4294965296",
        "duration": "0",
        "reset": "1",
        "clientid": "2",
    }


def test_a_location_renames_publishes_and_plays_and_is_not_followed(serve, web, publisher, player):
    web.answers |= {"s3cret-cam": reply(302, Location="cam"), "alias": reply(301, b"body", Location="cam")}
    running = serve(NGINX)
    encoder, viewer = publisher(running, "s3cret-cam"), player(running, "alias")
    begin(encoder, viewer)
    running.wait_for_line("publishes live/cam$")
    assert web.paths == ["/auth?key=s3cret-key"] * 2


def test_a_location_of_another_server_relays_a_publish(serve, web, publisher, target):
    web.answers["cam"] = reply(302, Location=target.url("far/s3cret-key"))
    running = serve(NGINX)
    sender = publisher(running, "cam")
    running.wait_for_line(r"publishes live/cam$")
    begin(sender)
    peer = target.publishing("s3cret-key")
    sender.unpublish()
    target.wait(peer.over.is_set, "the end")


@pytest.mark.parametrize("status_code", [400, 403, 404, 500])
def test_errors_refuse_as_with_nginx_rtmp(serve, web, status_code):
    web.answers[""] = reply(status_code, Location="cam")
    running = serve(NGINX)
    for action in ("publish", "play"):
        with Client(running.url("cam")) as client, pytest.raises(Refused):
            getattr(client, action)()


def test_a_play_that_is_redirected_to_another_server_is_refused(serve, web):
    web.answers[""] = reply(302, Location="rtmp://192.0.2.1/far/s3cret")
    running = serve(NGINX)
    with Client(running.url("cam")) as client, pytest.raises(Refused):
        client.play()
    running.wait_for_line("clients are refused: the Location of a play is another server, and rtmpd can't pull; 1 failures")


def test_a_body_has_no_meaning_as_with_nginx_rtmp(serve, web, publisher):
    web.answers[""] = named("other")
    running = serve(NGINX)
    publisher(running, "cam")
    running.wait_for_line("publishes live/cam$")


def test_a_re_check_is_an_update_of_nginx_rtmp(serve, web, raw):
    running = serve(f"{NGINX}auth_recheck_s = 1")
    web.answers["cam"] = first(200, 404)
    encoder = raw(running).publish("cam?token=s3cret")
    status(encoder, PUBLISH_REJECTED)
    update = web.questions[-1]
    assert update["call"] == "update_publish"
    assert (update["name"], update["token"]) == ("cam", "s3cret")
    assert int(update["time"]) < 10
