"""Relays to servers that do as they should, and to all kinds that do not."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import threading
import time
from contextlib import contextmanager

import gevent
import pytest

from rtmpd.client import Client
from rtmpd.protocol import amf0
from rtmpd.protocol.command import encode_command
from tests.conftest import Server
from tests.integration.beside import Bystander, wait_until
from tests.integration.target import Target
from tests.integration.wire import (
    AAC_HEADER,
    AUDIO,
    AVC_HEADER,
    AVC_HEADER_2,
    DATA,
    VIDEO,
    Item,
    begin,
    gop,
    gops,
    inter,
    key,
    metadata,
    played,
    send,
    send_headers,
)

QUICK = "relay_retry_s = 0.1\nrelay_retry_limit_s = 0.3\n"
SET = amf0.encode("@setDataFrame")
HEADERS = [Item(DATA, 0, SET + metadata()), Item(VIDEO, 0, AVC_HEADER), Item(AUDIO, 0, AAC_HEADER)]


@pytest.fixture
def target(opened):
    """Return a function that makes a target."""

    def make(**options) -> Target:
        made = Target(**options)
        opened.callback(made.close)
        return made

    return make


@pytest.fixture
def relaying(server):
    """Return a function that starts a server which relays to these URLs."""

    def start(*urls: str, options: str = "", more: str = "") -> Server:
        listed = ", ".join(f'"{url}"' for url in urls)
        ini = f"[metrics]\nmetrics_listen = 127.0.0.1:0\n[relay]\nrelay_to = {listed}\n{QUICK}{options}\n{more}"
        return server(ini)

    return start


@pytest.fixture
def beside(opened):
    """Return a function that starts a publisher and its player on a server: they must notice nothing of its relays."""

    def start(server: Server) -> Bystander:
        made = Bystander(server)
        opened.callback(made.close)
        return made

    return start


def metrics(server: Server) -> dict[str, float]:
    port = int(server.wait_for_line(r"metrics on http://127\.0\.0\.1:(\d+)/")[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[:1] != "#"}


def ends_with(peer, item) -> bool:
    return bool(peer.media) and peer.media[-1] == item


# As it should be --------------------------------------------------------------------------------------------------------


def test_a_relay_forwards_a_whole_stream_and_unpublishes(relaying, target, publisher):
    there = target()
    running = relaying(there.url())
    sender = publisher(running, "cam")
    running.wait_for_line(r"live/cam: relay to rtmp://127\.0\.0\.1:\d+/far/\{name\} is up \(127")
    begin(sender)
    peer = there.publishing()
    send(sender, gops(1, 3))
    sender.unpublish()
    there.wait(peer.over.is_set, "the end")
    assert peer.media == HEADERS + gops(0, 3)
    assert peer.commands == [
        "connect",
        "releaseStream",
        "FCPublish",
        "createStream",
        "publish",
        "FCUnpublish",
        "deleteStream",
    ]
    assert peer.connect["app"] == "far"
    assert peer.published == "cam"
    # Notices for players are not for servers.
    assert not [one for one in peer.controls if one.type_id == 4]
    found = running.wait_for_line(r"relay to \S+ ended: FCUnpublish; live .* (\d+) bytes, 0 reconnects, 0 failures, 0 skips")
    assert int(found[1]) > sum(len(item.payload) for item in peer.media)
    figures = metrics(running)
    assert figures["rtmp_relay_messages_sent_total"] == len(gops(0, 3))
    assert figures["rtmp_relay_bytes_sent_total"] == int(found[1])


def test_a_late_relay_starts_at_the_newest_keyframe(relaying, target, publisher, tmp_path):
    there = target()
    running = relaying()
    sender = publisher(running, "cam")
    begin(sender)
    send(sender, gop(1))
    (tmp_path / "rtmpd.ini").write_text(f"[relay]\nrelay_to = {there.url()}\n")
    running.process.send_signal(signal.SIGHUP)
    peer = there.publishing()
    send(sender, gop(2))
    there.wait(lambda: ends_with(peer, gop(2)[-1]), "the newest")
    stamp = gop(1)[0].timestamp
    assert peer.media == [HEADERS[0], Item(VIDEO, stamp, AVC_HEADER), Item(AUDIO, stamp, AAC_HEADER), *gop(1), *gop(2)]
    # And one that is taken out ends in order.
    (tmp_path / "rtmpd.ini").write_text("")
    running.process.send_signal(signal.SIGHUP)
    there.wait(peer.over.is_set, "the end")
    assert peer.commands[-2:] == ["FCUnpublish", "deleteStream"]
    running.wait_for_line(r"live/cam: relay to \S+ ended: reload;")


def test_a_relay_gets_headers_at_once_before_the_first_frame(relaying, target, publisher, tmp_path):
    early, late = target(), target()
    running = relaying(early.url())
    sender = publisher(running, "cam")
    running.wait_for_line("is up")
    send_headers(sender)
    first = early.peer()
    early.wait(lambda: first.media == HEADERS, "the headers")
    # And one that comes up between the headers and the first frame.
    (tmp_path / "rtmpd.ini").write_text(f"[relay]\nrelay_to = {early.url()}, {late.url()}\n")
    running.process.send_signal(signal.SIGHUP)
    second = late.peer()
    late.wait(lambda: second.media == HEADERS, "the headers")
    # They are not sent again.
    send(sender, gop(0))
    for there, peer in ((early, first), (late, second)):
        there.wait(lambda peer=peer: ends_with(peer, gop(0)[-1]), "the last frame")
        assert peer.media == HEADERS + gop(0)


HEVC_HEADER = b"\x90hvc1" + bytes.fromhex("01016000000090000000000078f000fcfdf8f800000f00")


def test_a_codec_that_the_destination_does_not_declare_is_a_warning(relaying, target, publisher):
    places = [target(), target(declares={"fourCcList": ["av01"]}), target(declares={"fourCcList": ["hvc1"]})]
    running = relaying(*(place.url() for place in places))
    sender = publisher(running, "cam")
    for place in places:
        running.wait_for_line(rf"{place.port}/\S+ is up")
    send(sender, [Item(VIDEO, 0, HEVC_HEADER), Item(VIDEO, 0, b"\x91hvc1\0\0\0key")])
    text = r"the video is hvc1 \(Enhanced RTMP\), not declared by the destination: it may arrive as audio only"
    for place in places[:2]:
        running.wait_for_line(rf"WARNING live/cam: relay to rtmp://127\.0\.0\.1:{place.port}/\S+: {text}")
    sender.unpublish()
    for place in places:
        running.wait_for_line(rf"{place.port}/\S+ ended")
    assert len([line for line in running.log() if "Enhanced RTMP" in line]) == 2


def test_each_application_has_its_own_destinations(relaying, target, publisher):
    everywhere, studio = target(), target()
    more = f'[applications]\n[[live]]\n[[studio]]\nrelay_to = {studio.url("{app}-x/y_{name}")}\n[[quiet]]\nrelay_to = ""\n'
    running = relaying(everywhere.url(), more=more)
    for app in ("live", "studio", "quiet"):
        begin(publisher(running, "cam", app))
    assert studio.publishing().published == "y_cam"
    assert studio.peer().connect["app"] == "studio-x"
    assert everywhere.publishing().published == "cam"
    assert (len(everywhere.peers), len(studio.peers)) == (1, 1)


def test_a_destination_with_another_message_stream_id_gets_messages_with_that_id(relaying, target, publisher):
    there = target(message_stream_id=7)
    running = relaying(there.url())
    sender = publisher(running, "cam")
    running.wait_for_line("is up")
    begin(sender)
    peer = there.publishing()
    send(sender, gop(1))
    sender.unpublish()
    there.wait(peer.over.is_set, "the end")
    assert peer.media == HEADERS + gops(0, 1)


def test_the_flag_accepts_several_urls(server, target, publisher):
    one, other = target(), target()
    running = server("", "--relay-to", one.url(), "--relay-to", other.url())
    begin(publisher(running, "cam"))
    assert one.publishing().published == other.publishing().published == "cam"


def test_the_flag_accepts_urls_that_are_separated_by_a_comma(server, target, publisher):
    one, other = target(), target()
    running = server("", "--relay-to", f"{one.url()},{other.url()}")
    begin(publisher(running, "cam"))
    assert one.publishing().published == other.publishing().published == "cam"


def test_a_key_at_the_destination_may_contain_slashes(relaying, target, publisher):
    there = target()
    running = relaying(there.url().replace("/{name}", "//k3y/of/{name}"))
    begin(publisher(running, "cam"))
    peer = there.publishing()
    assert (peer.connect["app"], peer.published) == ("far", "k3y/of/cam")
    running.wait_for_line(r"relay to rtmp://127\.0\.0\.1:\d+/far/\*+ is up")
    assert not [line for line in running.log() if "k3y" in line]


def test_a_user_and_a_password_log_in(opened, relaying, publisher, tmp_path):
    (tmp_path / "far").mkdir()
    far = Server("[auth]\nauth_users = ann=pass-w0rd\n", directory=tmp_path / "far")
    opened.callback(far.stop)
    running = relaying(f"rtmp://ann:pass-w0rd@127.0.0.1:{far.port}/far/{{name}}")
    begin(publisher(running, "cam"))
    running.wait_for_line(r"live/cam: relay to rtmp://127\.0\.0\.1:\d+/far/\{name\} is up")
    far.wait_for_line(r"publishes far/cam")
    assert not [line for line in running.log() if "w0rd" in line]


def test_a_publish_that_ends_at_once_leaves_nothing_behind(relaying, target, raw):
    there = target()
    running = relaying(there.url())
    for number in range(20):
        wire = raw(running)
        wire.connect("live")
        msid = wire.create_stream()
        # In one piece: the publish is over before its relay has begun.
        begun = wire.frame(20, 0, encode_command("publish", 9, None, f"cam{number}", "live"), 3, msid)
        wire.write(begun + wire.frame(20, 0, encode_command("deleteStream", 10, None, msid), 3))
        wire.close()
    begin(raw(running).publish("last"))
    there.publishing("last")
    wait_until(lambda: len([name for name in metrics(running) if "relay_destination_up{" in name]) == 1, "one relay is left")


def test_pings_are_answered_between_media(relaying, target, beside):
    there = target(on_publish=lambda peer: peer.ping(77))
    running = relaying(there.url())
    beside(running).check()
    peer = there.publishing()
    there.wait(lambda: [one for one in peer.controls if one.payload == b"\0\7\0\0\0\x4d"], "the answer")


def test_changed_metadata_is_relayed_in_set_data_frame(relaying, target, publisher):
    there = target()
    running = relaying(there.url())
    sender = publisher(running, "cam")
    running.wait_for_line("is up")
    begin(sender)
    peer = there.publishing()
    other = metadata({"width": 1280.0})
    sender.send(DATA, 200, SET + other)
    there.wait(lambda: ends_with(peer, Item(DATA, 0, SET + other)), "the new metadata")


def test_a_publish_right_behind_another_waits_for_its_end(relaying, target, publisher):
    there = target()
    running = relaying(there.url())
    sender = publisher(running, "cam")
    begin(sender)
    there.publishing()
    # On the same connection: the server handles one right after the other.
    sender.unpublish()
    sender.publish()
    begin(sender)
    second = there.publishing(number=1)
    assert there.peers[0].over.is_set()
    assert second.media[0] == HEADERS[0]
    assert not [line for line in running.log() if "WARNING live/" in line]


def test_a_stop_of_the_server_ends_relays_in_order(relaying, target, publisher):
    there = target()
    running = relaying(there.url())
    begin(publisher(running, "cam"))
    peer = there.publishing()
    there.wait(lambda: ends_with(peer, gop(0)[-1]), "the last frame")
    assert running.stop() == 0
    there.wait(peer.over.is_set, "the end")
    assert peer.commands[-2:] == ["FCUnpublish", "deleteStream"]


def test_each_relay_has_events_and_metrics(relaying, target, publisher):
    there = target()
    running = relaying(there.url())
    sender = publisher(running, "cam")
    begin(sender)
    there.publishing()
    labels = f'{{destination="rtmp://127.0.0.1:{there.port}/far/{{name}}",stream="live/cam"}}'
    swapped = f'{{stream="live/cam",destination="rtmp://127.0.0.1:{there.port}/far/{{name}}"}}'

    def figure(name: str) -> float:
        found = metrics(running)
        return found.get(name + labels, found.get(name + swapped, -1))

    wait_until(lambda: figure("rtmp_relay_destination_up") == 1, "it is up")
    wait_until(lambda: figure("rtmp_relay_destination_messages_sent_total") == len(gop(0)), "messages are counted")
    assert figure("rtmp_relay_destination_bytes_sent_total") > sum(len(item.payload) for item in gop(0))
    assert figure("rtmp_relay_destination_lag_seconds") == 0
    assert figure("rtmp_relay_destination_reconnects_total") == 0
    # A relay is no player.
    found = metrics(running)
    assert (found["rtmp_subscribers_active"], found["rtmp_subscribers_total"]) == (0, 0)


# Publishers that are lost ------------------------------------------------------------------------------------------------


@contextmanager
def publishing_until_lost(server, number, avc=AVC_HEADER):
    """Publish a group of pictures, and at the end close the connection without an unpublish."""
    lost = len([line for line in server.log() if "stopped publishing live/cam" in line])
    with Client(server.url("cam")) as client:
        client.publish()
        send(client, [HEADERS[0], Item(VIDEO, 0, avc), HEADERS[2], *gop(number)])
        yield
    wait_until(lambda: len([line for line in server.log() if "stopped publishing live/cam" in line]) > lost, "the loss")


def is_up_with(there, last, number=0):
    """Wait until a destination has got the last message of a group of pictures; return the connection."""
    peer = there.publishing(number=number)
    there.wait(lambda: gop(last)[-1].payload in [item.payload for item in peer.media], f"group {last}")
    return peer


def frames(peer):
    """Return the video that a destination has got; no time may go back."""
    times = [item.timestamp for item in peer.media if item.type_id == VIDEO]
    assert times == sorted(times)
    return peer.videos()


def sent(*numbers, avc=AVC_HEADER):
    return [avc, *(item.payload for number in numbers for item in gop(number) if item.type_id == VIDEO)]


def test_a_relay_stays_while_its_publisher_is_lost_and_returns(relaying, target, publisher):
    there = target()
    running = relaying(there.url())
    for number in range(3):
        with publishing_until_lost(running, number):
            peer = is_up_with(there, number)
    sender = publisher(running, "cam")
    send(sender, [*HEADERS, *gop(3)])
    is_up_with(there, 3)
    assert "FCUnpublish" not in peer.commands
    sender.unpublish()
    there.wait(peer.over.is_set, "the end")
    assert frames(peer) == sent(0, 1, 2, 3)
    assert len(there.peers) == 1
    assert peer.commands[-2:] == ["FCUnpublish", "deleteStream"]
    running.wait_for_line(r"relay to \S+ ended: FCUnpublish; .*, 0 reconnects, 0 failures, 0 skips")


def test_a_relay_ends_when_its_publisher_does_not_return_within_the_grace(relaying, target):
    there = target()
    running = relaying(there.url(), more="[publish]\npublisher_grace_s = 1\n")
    with publishing_until_lost(running, 0):
        peer = is_up_with(there, 0)
    assert not peer.over.is_set()
    there.wait(peer.over.is_set, "the end of the grace")
    assert peer.commands[-2:] == ["FCUnpublish", "deleteStream"]
    running.wait_for_line(r"relay to \S+ ended: connection closed; ")


def test_changed_headers_are_relayed_within_the_publish(relaying, target):
    there = target()
    running = relaying(there.url())
    with publishing_until_lost(running, 0):
        is_up_with(there, 0)
    with publishing_until_lost(running, 1, AVC_HEADER_2):
        peer = is_up_with(there, 1)
    assert frames(peer) == sent(0) + sent(1, avc=AVC_HEADER_2)
    assert len(there.peers) == 1


def test_a_relay_publishes_anew_when_headers_change_if_the_options_say_so(relaying, target):
    there, other = target(), target(message_stream_id=7)
    running = relaying(there.url(), other.url(), options="relay_on_header_change = reconnect")
    with publishing_until_lost(running, 0):
        for place in (there, other):
            is_up_with(place, 0)
    # The same headers: nothing happens.
    with publishing_until_lost(running, 1):
        for place in (there, other):
            is_up_with(place, 1)
    with publishing_until_lost(running, 2, AVC_HEADER_2):
        for place in (there, other):
            second = is_up_with(place, 2, 1)
            first = place.peers[0]
            place.wait(first.over.is_set, "the end of the first")
            assert frames(first) == sent(0, 1)
            assert first.commands[-2:] == ["FCUnpublish", "deleteStream"]
            assert frames(second) == sent(2, avc=AVC_HEADER_2)
            assert len(place.peers) == 2
    name = rf"live/cam: relay to rtmp://127\.0\.0\.1:{there.port}/\S+"
    running.wait_for_line(rf"INFO +{name} publishes anew: the codecs or their parameters .* \(relay_on_header_change\)")
    running.wait_for_line(rf"INFO +{name} is up again, after \d\.\d s")
    found = metrics(running)
    assert found["rtmpd_relay_reconnects_total"] == 2
    assert found.get('rtmpd_failures_total{reason="relay_failures"}', 0) == 0


def test_a_stream_that_ends_while_its_relay_unpublishes_to_publish_anew_ends_the_relay(relaying, target, publisher):
    there = target()
    running = relaying(there.url(), options="relay_on_header_change = reconnect")
    with publishing_until_lost(running, 0):
        first = is_up_with(there, 0)
    sender = publisher(running, "cam")
    send(sender, [HEADERS[0], Item(VIDEO, 0, AVC_HEADER_2), HEADERS[2], *gop(1)])
    sender.unpublish()
    there.wait(first.over.is_set, "the end of the first")
    assert first.commands[-2:] == ["FCUnpublish", "deleteStream"]
    assert frames(first) == sent(0)
    running.wait_for_line(r"relay to \S+ ended: FCUnpublish; .*, 0 failures, 0 skips")


def test_a_destination_that_breaks_at_the_moment_of_a_change_gets_the_new_stream(relaying, target):
    there = target()
    running = relaying(there.url(), options="relay_on_header_change = reconnect")
    with publishing_until_lost(running, 0):
        first = is_up_with(there, 0)
    first.sock.shutdown(socket.SHUT_RDWR)
    with publishing_until_lost(running, 1, AVC_HEADER_2):
        second = is_up_with(there, 1, 1)
        assert frames(second) == sent(1, avc=AVC_HEADER_2)


# Destinations that misbehave --------------------------------------------------------------------------------------------


def test_a_destination_that_refuses_the_connection_is_tried_again(relaying, target, beside, opened):
    closed = opened.enter_context(socket.socket())
    closed.bind(("127.0.0.1", 0))
    there = target()
    port = closed.getsockname()[1]
    running = relaying(f"rtmp://127.0.0.1:{port}/far/s3cret", there.url())
    player = beside(running)
    running.wait_for_line(
        rf"WARNING live/bystander: relay to rtmp://127\.0\.0\.1:{port}/far/\*+ does not come up: can't connect to \S+: "
        r"Connection refused; the next attempt follows in 0\.\d s"
    )
    running.wait_for_line(r"DEBUG +live/bystander: relay to .* does not come up")
    there.publishing()
    player.check()
    wait_until(lambda: metrics(running)['rtmpd_failures_total{reason="relay_failures"}'] >= 3, "failures are counted")
    # Now a server listens.
    closed.listen()
    closed.settimeout(10)
    closed.accept()[0].close()
    assert len([line for line in running.log() if "WARNING live/" in line and "Connection refused" in line]) == 1
    assert not [line for line in running.log() if "s3cret" in line]


def test_a_silent_destination_is_disconnected_after_the_timeout(relaying, target, beside):
    there = target(raw=lambda fake, _: fake.over.wait(30))
    running = relaying(there.url(), options="relay_connect_timeout_s = 0.5")
    player = beside(running)
    running.wait_for_line(r"WARNING .* does not come up: connecting took longer than 0\.5 s")
    there.peer(2)
    player.check()


def test_a_destination_that_answers_bad_name_is_tried_again_and_its_key_is_hidden(relaying, target, beside):
    there = target(refusal=("NetStream.Publish.BadName", "far/s3cret is taken\x1b[31m\n2026 forged"))
    running = relaying(there.url("far/s3cret"))
    player = beside(running)
    running.wait_for_line(
        r"WARNING .* does not come up: refused: NetStream\.Publish\.BadName: far/\*+ is taken\\x1b\[31m\\n2026 forged; the next"
    )
    there.peer(3)
    player.check()
    assert len([line for line in running.log() if "WARNING live/" in line]) == 1
    assert not [line for line in running.log() if "s3cret" in line]
    # Once it is free, the stream goes there.
    there.refusal = None
    there.publishing()
    running.wait_for_line(r"live/bystander: relay to \S+ is up, attempt \d+")


def test_a_key_is_hidden_wherever_a_server_puts_it(relaying, target, beside):
    there = target(refusal=("NetStream.Publish.Denied", "x" * 150 + " s3cret-key" * 100))
    running = relaying(there.url("far/s3cret-key"))
    player = beside(running)
    running.wait_for_line(r"WARNING .* does not come up: refused: NetStream\.Publish\.Denied: x{150} \*")
    player.check()
    assert not [line for line in running.log() if "s3c" in line]


def test_a_destination_without_rtmp_disturbs_no_client(relaying, target, beside):
    def babble(fake, sock):
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200)
        fake.over.wait(10)

    there = target(raw=babble)
    running = relaying(there.url())
    player = beside(running)
    running.wait_for_line(r"WARNING .* does not come up: ")
    there.peer(1)
    player.check()


def test_a_destination_that_sends_garbage_while_up_is_connected_again(relaying, target, beside):
    there = target(on_publish=lambda peer: peer.sock.sendall(bytes.fromhex("c0ffee" * 50)))
    running = relaying(there.url())
    player = beside(running)
    running.wait_for_line(r"WARNING .* is down: ")
    there.peer(1)
    player.check()


def test_a_destination_that_never_reads_is_disconnected_and_disturbs_no_client(relaying, target, raw, beside):
    stuck = target(on_publish=lambda peer: peer._target.over.wait(30), receive_buffer=4096)
    well = target()
    running = relaying(
        stuck.url(), well.url(), options="relay_write_timeout_s = 1", more="[server]\nunsent_limit_bytes = 1024\n"
    )
    player = beside(running)
    sender = raw(running).publish("big")
    watcher = raw(running).play("big")
    begun = time.monotonic()
    number = 0
    while not re.search(r"big: relay to \S+ is down: it took nothing for 1 s", "\n".join(running.log())):
        assert time.monotonic() - begun < 20
        sender.send(VIDEO, number * 40, inter(number, 40_000) if number % 25 else key(number, 40_000))
        watcher.available()
        number += 1
        gevent.sleep(0.01)
    player.check()
    there = well.publishing("big")
    sender.send(VIDEO, number * 40, key(999))
    well.wait(lambda: ends_with(there, Item(VIDEO, number * 40, key(999))), "all that the other should have")
    assert len(there.videos()) == number + 1
    assert played(watcher, key(999))
    assert metrics(running)['rtmpd_failures_total{reason="relay_failures"}'] >= 1


def test_a_destination_that_reads_but_stops_acknowledging_is_disconnected(relaying, target, raw):
    there = target(acknowledges=False, on_publish=lambda peer: peer.acknowledge(4000))
    running = relaying(there.url(), options="relay_ack_timeout_s = 1")
    sender = raw(running).publish("cam")
    peer = there.peer()
    begun, number = time.monotonic(), 0
    while not peer.over.is_set():
        assert time.monotonic() - begun < 20
        sender.send(VIDEO, number * 10, inter(number, 20_000) if number % 25 else key(number, 20_000))
        number += 1
        gevent.sleep(0.01)
    running.wait_for_line(
        r"is down: the destination has acknowledged nothing for 1 s, of \d{6,} bytes \(relay_ack_timeout_s\); the next attempt"
    )
    assert len(peer.videos()) * 20_000 > 500_000


@pytest.mark.parametrize("habit", ["correct", "since the last", "wraps at 2^31", "message bodies only"])
def test_row_72_a_destination_is_kept_however_it_counts_what_it_acknowledges(relaying, target, raw, habit):
    last = 0

    def count(peer):
        nonlocal last
        received = peer._endpoint.bytes_received
        if received - last >= 100_000:
            match habit:
                case "correct":
                    number = received
                case "since the last":
                    number = received - last
                case "wraps at 2^31":
                    number = (2**31 - 250_000 + received) % 2**31
                case "message bodies only":
                    number = sum(len(one.payload) for one in peer.media)
            last = received
            peer.acknowledge(number)

    there = target(acknowledges=False, on_media=count)
    running = relaying(there.url(), options="relay_ack_timeout_s = 0.5")
    sender = raw(running).publish("cam")
    begun, number = time.monotonic(), 0
    while time.monotonic() - begun < 2:
        sender.send(VIDEO, number * 10, inter(number, 20_000) if number % 25 else key(number, 20_000))
        number += 1
        gevent.sleep(0.01)
    sender.send(VIDEO, number * 10, key(999))
    peer = there.publishing()
    there.wait(lambda: ends_with(peer, Item(VIDEO, number * 10, key(999))), "the last frame")
    assert last > 1_000_000
    assert len(there.peers) == 1


def send_until(server, sender, pattern, size):
    """Send frames of this size until a line of the log matches."""
    begun, number = time.monotonic(), 0
    while not re.search(pattern, "\n".join(server.log())):
        assert time.monotonic() - begun < 20
        sender.send(VIDEO, number * 10, inter(number, size) if number % 25 else key(number, size))
        number += 1
        gevent.sleep(0.01)


def test_a_destination_whose_tcp_makes_no_progress_is_disconnected_though_its_socket_accepts_data(relaying, target, raw):
    stuck = target(on_publish=lambda peer: peer._target.over.wait(30), receive_buffer=4096)
    running = relaying(stuck.url(), options="relay_ack_timeout_s = 1\nrelay_write_timeout_s = 1000")
    sender = raw(running).publish("cam")
    send_until(running, sender, r"is down: TCP made no progress for 1 s, \d{4,} bytes wait \(relay_ack_timeout_s\)", 300)


def test_a_destination_that_is_stopped_is_disconnected_and_gets_the_stream_again(relaying, server, raw, opened):
    there = server()
    # An attempt that begins while the destination is stopped goes on when it continues.
    running = relaying(there.url("{name}"), options="relay_ack_timeout_s = 1\nrelay_connect_timeout_s = 20")
    sender = raw(running).publish("cam")
    sender.send(VIDEO, 0, key(0))
    running.wait_for_line(r"live/cam: relay to \S+ is up")
    os.kill(there.pid, signal.SIGSTOP)
    opened.callback(os.kill, there.pid, signal.SIGCONT)
    # Large frames: the kernel accepts some megabytes for a stopped program before TCP makes no progress.
    send_until(running, sender, r"is down: (TCP made no progress|the destination has acknowledged nothing) for 1 s, ", 400_000)
    os.kill(there.pid, signal.SIGCONT)
    send_until(running, sender, r"is up again", 300)


def test_a_destination_that_reads_and_never_acknowledges_is_kept(relaying, target, raw):
    there = target(acknowledges=False)
    running = relaying(there.url(), options="relay_ack_timeout_s = 0.5\nrelay_write_timeout_s = 0.5")
    sender = raw(running).publish("cam")
    begun, number = time.monotonic(), 0
    while time.monotonic() - begun < 2:
        sender.send(VIDEO, number * 10, inter(number, 20_000) if number % 25 else key(number, 20_000))
        number += 1
        gevent.sleep(0.01)
    sender.send(VIDEO, number * 10, key(999))
    peer = there.publishing()
    there.wait(lambda: ends_with(peer, Item(VIDEO, number * 10, key(999))), "the last frame")
    assert len(peer.videos()) * 20_000 > 1_000_000
    assert len(there.peers) == 1


def test_a_destination_that_was_killed_gets_the_stream_again_from_a_keyframe(relaying, target, publisher):
    def die(peer):
        if len(there.peers) == 1 and len(peer.videos()) == 6:
            peer.sock.shutdown(socket.SHUT_RDWR)

    there, other = target(on_media=die), target()
    running = relaying(there.url(), other.url())
    sender = publisher(running, "cam")
    running.wait_for_line("is up")
    begin(sender)
    peer = other.publishing()
    there.publishing()
    send(sender, gops(1, 2))
    running.wait_for_line(r"WARNING live/cam: relay to \S+ is down: .*; the next attempt follows in 0\.1 s")
    running.wait_for_line(r"live/cam: relay to \S+ is up again, after \d\.\d s")
    send(sender, gop(3))
    second = there.publishing(number=1)
    there.wait(lambda: ends_with(second, gop(3)[-1]), "the newest")
    begun = second.media[3]
    assert [one.payload for one in second.media[:3]] == [one.payload for one in HEADERS]
    assert begun.payload[0] == 0x17
    assert second.media[3:] == [item for item in gops(0, 3) if item.timestamp >= begun.timestamp]
    # The other destination has noticed nothing.
    other.wait(lambda: ends_with(peer, gop(3)[-1]), "the newest")
    assert peer.media == HEADERS + gops(0, 3)
    assert len(other.peers) == 1
    assert metrics(running)["rtmpd_relay_reconnects_total"] == 1


def test_a_destination_that_refuses_later_is_disconnected(relaying, target, beside):
    there = target(on_publish=lambda peer: peer.status("NetStream.Publish.Denied", "no more"))
    running = relaying(there.url())
    player = beside(running)
    running.wait_for_line(r"WARNING .* is down: refused: NetStream\.Publish\.Denied: no more")
    player.check()


def test_a_name_that_no_resolver_knows_is_tried_again(relaying, beside):
    running = relaying("rtmp://no-such-host.invalid/far/{name}")
    player = beside(running)
    running.wait_for_line(r"WARNING .* does not come up: (can't connect to|connecting took)", 30)
    player.check()


class NameServer:
    """A name server for IPv4 that knows ``there.example`` until it falls silent, and answers nothing else."""

    def __init__(self) -> None:
        self.silent = False
        self.asked: list[bytes] = []
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # A port of the resolver's own choice is not possible: resolv.conf names addresses only.
        self.sock.bind(("127.85.3.9", 53))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            query, peer = self.sock.recvfrom(512)
            if not query:
                return
            self.asked.append(query)
            if b"\x05there\x07example\0" not in query or self.silent:
                continue
            ipv4 = b"\x07example\0\0\x01\0\x01" in query
            question = query[12 : query.index(b"\x07example\0") + 13]
            answer = b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04\x7f\0\0\x01" if ipv4 else b""
            head = query[:2] + b"\x85\x80\0\x01" + (b"\0\x01" if ipv4 else b"\0\0") + bytes(4)
            self.sock.sendto(head + question + answer, peer)

    def close(self) -> None:
        self.sock.sendto(b"", self.sock.getsockname())
        self._thread.join(5)
        self.sock.close()

    def names(self) -> set[bytes]:
        """The first labels of all names that were asked for."""
        return {query[13:].partition(b"\x07example")[0] for query in self.asked}


@pytest.fixture
def name_server(opened):
    made = NameServer()
    opened.callback(made.close)
    return made


@pytest.fixture
def with_names(server, tmp_path):
    """Return a function that starts a relaying server which asks the name server of the test."""

    def start(*urls: str, options: str = "") -> Server:
        (tmp_path / "resolv.conf").write_text("nameserver 127.85.3.9\noptions timeout:30 attempts:5\n")
        (tmp_path / "nsswitch.conf").write_text("hosts: dns\n")
        script = 'for each in resolv.conf nsswitch.conf; do mount --bind "$0/$each" "/etc/$each" || exit 1; done; exec "$@"'
        ini = f"[relay]\nrelay_to = {', '.join(urls)}\n{QUICK}{options}\n"
        return server(ini, prefix=("unshare", "-m", "sh", "-c", script, str(tmp_path)))

    return start


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


@needs_root
def test_names_that_hang_delay_no_relay_to_another_name_and_no_stop(with_names, name_server, target, publisher):
    there = target()
    hanging = [f"rtmp://hang{number}.example/far/{{name}}" for number in range(12)]
    running = with_names(*hanging, f"rtmp://there.example:{there.port}/far/{{name}}", options="relay_connect_timeout_s = 2\n")
    first = publisher(running, "first")
    wait_until(lambda: len(name_server.names()) == 13, "all names are looked up")
    begun = time.monotonic()
    begin(publisher(running, "cam"))
    there.publishing("cam")
    # The look-ups of the others hang for minutes.
    assert time.monotonic() - begun < 5
    running.wait_for_line(
        r"WARNING live/cam: relay to rtmp://hang1\.example\S+ does not come up: looking up hang1\.example took "
    )
    # One look-up of a name for all its relays and attempts.
    asked = [query[12:] for query in name_server.asked if b"\x05hang1" in query]
    assert len(asked) == len(set(asked)) == 2, asked
    first.unpublish()


@needs_root
def test_a_name_that_can_not_be_looked_up_any_longer_keeps_its_address(with_names, name_server, target, publisher):
    there = target()
    running = with_names(f"rtmp://there.example:{there.port}/far/{{name}}", options="relay_connect_timeout_s = 2\n")
    sender = publisher(running, "cam")
    begin(sender)
    there.publishing()
    name_server.silent = True
    there.peers[0].sock.shutdown(socket.SHUT_RDWR)
    text = r"INFO +there\.example can't be looked up: no answer within 1 s; its last addresses are used meanwhile: 127\.0\.0\.1"
    running.wait_for_line(text)
    there.publishing(number=1)


def test_relays_above_the_limit_are_not_started(relaying, target, publisher):
    one, other = target(), target()
    running = relaying(one.url(), other.url(), more="[limits]\nrelay_limit = 1\n")
    begin(publisher(running, "cam"))
    one.publishing()
    running.wait_for_line(r"WARNING live/cam: not relayed: relay_limit is 1 \(1 relays refused so far\)")
    assert not other.peers
    assert metrics(running)['rtmpd_failures_total{reason="relays_refused"}'] == 1


def test_a_server_forwards_the_origin_of_a_stream(relaying, target, raw):
    there = target()
    running = relaying(there.url())
    wire = raw(running)
    wire.connect("live", rtmpdVia="0123456789abcdef")
    wire.command("publish", "cam", "live", msid=wire.create_stream())
    wire.status("NetStream.Publish.Start")
    begin(wire)
    there.publishing()
    first, second = there.peer().connect["rtmpdVia"].split(",")
    assert first == "0123456789abcdef"
    assert re.fullmatch(r"[0-9a-f]{16}", second)


def test_a_relay_follows_a_stopping_destination_to_the_server_that_it_names(server, relaying, publisher, player):
    """Three servers: the first relays to the second, which sends its clients on to the third when it stops."""
    third = server()
    second = server(f"[server]\ndrain_timeout_s = 30\ndrain_reconnect_url = rtmp://127.0.0.1:{third.port}/live\n")
    first = relaying(second.url("{name}"))
    encoder, watcher = publisher(first, "cam"), player(third, "cam")
    begin(encoder)
    second.wait_for_line(r"publishes live/cam")
    # A relay follows at once only after 2 s up, so that a destination that always asks does not cause a tight loop.
    gevent.sleep(2.1)
    second.process.send_signal(signal.SIGTERM)
    first.wait_for_line(r"INFO .*: relay to rtmp://.*: the destination asks to connect again elsewhere$")
    third.wait_for_line(r"publishes live/cam", 5)
    # At once: the stop does not wait for clients that ignore the request.
    second.wait_for_line(r"stopped; counted: ", 5)
    send(encoder, gop(1))
    assert played(watcher, gop(1)[-1])[-len(gop(1)) :] == gop(1)
    assert metrics(first)["rtmpd_relay_moves_total"] == 1


def test_a_destination_that_asks_to_reconnect_at_once_counts_as_failed(relaying, target, publisher):
    there = target()
    running = relaying(there.url())
    encoder = publisher(running, "cam")
    begin(encoder)
    peer = there.publishing()
    peer.status("NetConnection.Connect.ReconnectRequest")
    running.wait_for_line(
        r"WARNING live/cam: relay to .* is down: the destination asks to connect again; the next attempt follows in"
    )
    there.peer(1)
    assert peer.connect["capsEx"] == 15
    assert peer.connect["fourCcList"] == ["*"]
