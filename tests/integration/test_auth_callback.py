"""Callbacks that answer, and those that do anything else. Every secret here has "s3cret" in it."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import gevent
import pytest

from rtmpd.client import Client
from rtmpd.errors import Refused
from tests.integration import web as callbacks
from tests.integration.beside import Bystander, wait_until
from tests.integration.web import Web, breaking_off, late, named, reply
from tests.integration.wire import Wire, begin, code_of

DENIED, FAILED = "NetStream.Publish.Denied", "NetStream.Play.Failed"


@pytest.fixture
def serve(watched_server, web):
    """A function that starts a server with the callback."""

    def start(ini="", *arguments, limit_s=2.0, url=""):
        text = f"[auth]\nauth_mode = callback\nauth_callback = '{url or web.url}'\nauth_callback_timeout_s = {limit_s}\n{ini}"
        return watched_server(text, *arguments)

    return start


def refused(running, name, *, play=False):
    with Client(running.url(name), timeout_s=20) as client, pytest.raises(Refused) as raised:
        client.play() if play else client.publish()
    assert "s3cret" not in str(raised.value)
    return raised.value.code, raised.value.description


def test_the_callback_gets_the_request_of_go_rtmp(serve, web, raw, player):
    running = serve()
    wire = raw(running).publish("cam?token=s3cret-t&x=y", app="live/sub")
    assert web.questions == [
        {
            "action": "publish",
            "app": "live/sub",
            "stream_name": "cam",
            "stream_key": "live/sub/cam",
            "token": "s3cret-t",
            "remote_addr": wire.address,
            "connection_id": "1",
            "protocol": "rtmp",
            "agent": "",
            "tc_url": "rtmp://localhost/live/sub",
            "page_url": "",
            "swf_url": "",
            "parameters": {"token": "s3cret-t", "x": "y"},
        }
    ]
    assert web.headers["Content-Type"] == "application/json"
    assert web.headers["Authorization"].startswith("Basic ")
    assert web.paths == ["/auth?key=s3cret-key"]
    player(running, "other")
    assert web.questions[1]["action"] == "play"
    assert web.questions[1]["token"] == ""
    assert web.questions[1]["stream_key"] == "live/other"


def test_flags_set_the_callback(server, web, publisher):
    running = server("", "--auth-mode", "callback", "--auth-callback", web.url, "--auth-callback-timeout", "3")
    publisher(running, "cam")
    assert len(web.questions) == 1


def test_the_callback_gets_all_that_is_known_of_the_client(serve, web, opened):
    running = serve()
    properties = {
        "app": "live?a=1&b=1",
        "tcUrl": f"rtmp://ann:s3cret-p@127.0.0.1:{running.port}/live?token=s3cret-t&b=2&c=3&a=0",
        "flashVer": "FMLE/3.0 (test)",
        "pageUrl": "http://example.com/page?s3cret",
        "swfUrl": "x" * 2000,
    }
    client = opened.enter_context(Client(running.url("cam") + "?d=4&b=5", connect_properties=properties))
    client.publish()
    (question,) = web.questions
    assert question["parameters"] == {"token": "s3cret-t", "a": "1", "b": "5", "c": "3", "d": "4"}
    assert question["token"] == "s3cret-t"
    assert question["tc_url"] == f"rtmp://127.0.0.1:{running.port}/live"
    assert question["agent"] == "FMLE/3.0 (test)"
    assert question["page_url"] == "http://example.com/page?s3cret"
    assert question["swf_url"] == "x" * 1024
    assert (question["protocol"], question["connection_id"]) == ("rtmp", "1")
    running.wait_for_line("#1 .*publishes live/cam$")


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_status_of_success_allows_without_a_body(serve, web, publisher, status):
    web.answers[""] = reply(status)
    running = serve()
    publisher(running, "cam")
    running.wait_for_line("publishes live/cam$")


def test_a_stream_in_the_answer_renames_publishes_and_plays(serve, web, publisher, player):
    web.answers["s3cret-cam"] = reply(200, b'{"stream": "cam"}')
    web.answers["alias"] = reply(200, b'{"stream": "cam", "name": "other"}')
    running = serve()
    encoder = publisher(running, "s3cret-cam")
    watcher = player(running, "alias")
    begin(encoder, watcher)
    running.wait_for_line("publishes live/cam$")
    running.wait_for_line("plays live/cam$")


def test_a_name_in_the_answer_does_not_rename_a_play(serve, web, player):
    web.answers[""] = named("cam")
    running = serve()
    player(running, "alias")
    running.wait_for_line("plays live/alias$")


@pytest.mark.parametrize("status", [301, 302, 400, 401, 403, 404])
def test_anything_but_success_denies(serve, web, status):
    running = serve()
    web.answers[""] = reply(status, Location=f"http://127.0.0.1:{web.port}/elsewhere")
    assert refused(running, "cam") == (DENIED, "Not authorized: the callback said no.")
    assert refused(running, "cam", play=True) == (FAILED, "Not authorized: the callback said no.")
    assert web.paths == ["/auth?key=s3cret-key"] * 2


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (reply(500), "the server answered 500"),
        (reply(503), "the server answered 503"),
        (callbacks.endless, "the response is longer than 8192 bytes"),
        (callbacks.nonsense, "the response is not HTTP"),
        (callbacks.hang_up, "the server closed the connection without a response"),
        (breaking_off(b"HTTP/1.1 200 OK\r\n"), "the response broke off within its head"),
        (breaking_off(b"HTTP/1.1 200 OK\r\nContent-Le"), "the response broke off within its head"),
        (breaking_off(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"na'), "the response broke off"),
        (breaking_off(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"na'), "the response broke off"),
        (callbacks.dripping, "timed out after 2 s while waiting for the response"),
        (late(60), "timed out after 2 s while waiting for the response"),
        (reply(200, b'{"name": "s3cret-na'), "the response is broken JSON"),
        (reply(200, b"{" * 8000), "the response is broken JSON"),
        (reply(200, b'{"stream": "a?b"}'), "the name in the response can't be the name of a stream"),
        (named("a?b"), "the name in the response can't be the name of a stream"),
        (named(""), "the name in the response can't be the name of a stream"),
        (named("/a"), "the name in the response can't be the name of a stream"),
        (named(["a"]), "the name in the response can't be the name of a stream"),
    ],
)
def test_a_callback_that_misbehaves_denies_in_time_and_costs_no_stream_anything(serve, web, answer, why):
    running = serve()
    bystander = Bystander(running)
    try:
        web.answers["cam"] = answer
        begun = time.monotonic()
        assert refused(running, "cam") == (DENIED, "Not authorized: the authentication service failed.")
        assert time.monotonic() - begun < 4
        bystander.check()
    finally:
        bystander.close()
    running.wait_for_line(
        rf"ERROR +auth_callback http://127\.0\.0\.1:{web.port} failed, clients are refused: {why}; 1 failures so far$"
    )
    running.stop()
    running.wait_for_line(r"counted: auth_callback_errors 1, auth_failures 1, auth_successes 2, ")


@pytest.mark.parametrize(
    "body", [b"", b"ok", b"[]", b'"x"', b"<html>", b"{}", b'{"name": null}', b'\xff{"name": 7}', b'{"other": 1}']
)
def test_status_200_allows_with_any_body(serve, web, body, publisher):
    web.answers[""] = reply(200, body)
    running = serve()
    publisher(running, "cam")
    running.wait_for_line("publishes live/cam$")


def test_a_server_of_http_1_0_ends_its_answer_by_closing(serve, web, publisher):
    web.answers["cam"] = breaking_off(b'HTTP/1.0 200 OK\r\n\r\n{"name": "shown"}')
    running = serve()
    publisher(running, "cam")
    running.wait_for_line("publishes live/shown$")


def test_a_callback_that_can_not_be_reached_denies(serve, web):
    running = serve()
    web.close()
    assert refused(running, "cam")[0] == DENIED
    running.wait_for_line("ERROR +auth_callback .* failed, clients are refused: Connection refused")


def test_a_connection_that_the_callback_closes_after_each_response_is_no_failure(serve, web, publisher):
    """The response does not announce it, so that the connection is kept."""

    def act(handler, web):
        reply(200)(handler, web)
        handler.close_connection = True

    web.answers[""] = act
    running = serve()
    for name in ("a", "b", "c"):
        publisher(running, name)
    running.stop()
    counted = running.wait_for_line(r"stopped; counted: (.*)")[1]
    assert "auth_successes 3" in counted
    assert "auth_callback_errors" not in counted


@pytest.mark.peer
def test_a_self_signed_certificate_of_the_callback_denies(serve, web, peer, tmp_path):
    openssl = peer("openssl", "openssl")
    names = ("-keyout", tmp_path / "key", "-out", tmp_path / "certificate", "-subj", "/CN=localhost")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *map(str, names)]
    subprocess.run(command, check=True, capture_output=True)
    with Web(tmp_path / "certificate", tmp_path / "key") as encrypted:
        running = serve(url=encrypted.url)
        assert refused(running, "cam")[0] == DENIED
        running.wait_for_line(
            r"ERROR +auth_callback https://.*: the server's certificate can't be verified: self-signed certificate"
        )
        assert not encrypted.questions


def test_a_certificate_of_the_configured_authority_is_accepted(serve, web, publisher, authority, name):
    pair = authority.issue("127.0.0.1")
    with Web(pair.cert, pair.key) as encrypted:
        running = serve(f"[tls]\ntls_ca = {authority.path}\n", url=encrypted.url)
        publisher(running, name)
        assert len(encrypted.questions) == 1


def test_the_callback_names_the_stream(serve, web, raw):
    web.answers["s3cret-name"] = named("sub/cam")
    running = serve()
    viewer = raw(running).play("sub/cam")
    encoder = raw(running).publish("s3cret-name?token=s3cret")
    begin(encoder, viewer)
    running.wait_for_line("publishes live/sub/cam$")
    encoder.command("FCUnpublish", "s3cret-name?token=s3cret")
    running.wait_for_line("stopped publishing live/sub/cam: FCUnpublish")


def test_the_callback_can_not_rename_a_play(serve, web, player):
    web.answers["cam"] = named("other")
    running = serve()
    player(running, "cam")
    running.wait_for_line("plays live/cam$")


# Waiting ----------------------------------------------------------------------------------------------------------------


def test_messages_of_a_client_wait_for_the_answer_of_the_callback(serve, web, raw, player):
    web.answers["cam"] = late(1)
    running = serve()
    viewer = player(running, "viewed")
    web.answers["cam"] = late(1, named("viewed"))
    encoder = raw(running)
    encoder.connect()
    encoder.command("publish", "cam", "live", msid=encoder.create_stream())
    # It does not wait for Publish.Start.
    begin(encoder, viewer)
    assert code_of(encoder.wait_for(lambda command: command.name == "onStatus")) == "NetStream.Publish.Start"


def test_answers_to_earlier_commands_do_not_wait_for_the_callback(serve, web, raw):
    web.answers["cam"] = late(60)
    running = serve()
    wire = raw(running)
    wire.connect()
    tid = wire.command("createStream")
    wire.command("publish", "cam", "live", msid=1)
    begun = time.monotonic()
    wire.answer(tid)
    assert time.monotonic() - begun < 1


def test_a_client_may_disconnect_during_the_callback(serve, web):
    web.answers["cam"] = late(1)
    running = serve()
    with Wire(running) as wire:
        wire.connect()
        wire.command("publish", "cam", "live", msid=wire.create_stream())
        wait_until(lambda: web.questions, "the question")
    running.wait_for_line("closed: closed by the peer")
    assert not any("publishes" in line for line in running.log())


def test_of_two_publishers_of_one_name_the_first_allowed_one_gets_it(serve, web, raw):
    web.answers["slow"] = late(1, named("cam"))
    web.answers["quick"] = named("cam")
    running = serve()
    slow = raw(running)
    slow.connect()
    slow.command("publish", "slow", "live", msid=slow.create_stream())
    wait_until(lambda: web.questions, "the question")
    raw(running).publish("quick")
    slow.status("NetStream.Publish.BadName")


def test_waiting_for_a_callback_does_not_count_as_idle(serve, web, raw):
    web.answers["cam"] = late(4)
    running = serve(
        "[server]\nconnect_timeout_s = 1.5\nread_timeout_s = 1.5\nping_interval_s = 0.5\nping_timeout_s = 0.5\n", limit_s=8
    )
    raw(running).publish("cam")


def test_the_server_stops_during_a_callback(serve, web, raw):
    web.answers["cam"] = late(60)
    running = serve(limit_s=30)
    wire = raw(running)
    wire.connect()
    wire.command("publish", "cam", "live", msid=wire.create_stream())
    wait_until(lambda: web.questions, "the question")
    begun = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - begun < 9


def test_a_reload_applies_to_the_next_callback(serve, web, tmp_path, publisher):
    web.answers[""] = 403
    running = serve()
    assert refused(running, "cam")[0] == DENIED
    (tmp_path / "rtmpd.ini").write_text("[auth]\nauth_play = no\n")
    seen = len(running.log())
    os.kill(running.pid, signal.SIGHUP)
    wait_until(lambda: any("reloaded" in line for line in running.log()[seen:]), "the reload")
    publisher(running, "cam")
    assert len(web.questions) == 1


def test_many_clients_wait_for_a_callback_that_hangs_and_the_streams_continue(serve, web):
    """More than there are threads: each is denied when its time is over, not when its turn has come."""
    web.answers["cam"] = late(60)
    running = serve(limit_s=2)
    bystander = Bystander(running)
    begun = time.monotonic()

    def ask():
        with Client(running.url("cam"), timeout_s=20) as client, pytest.raises(Refused):
            client.play()

    try:
        waiting = [gevent.spawn(ask) for _ in range(60)]
        gevent.joinall(waiting, timeout=20, raise_error=True)
        assert all(greenlet.successful() for greenlet in waiting)
        assert time.monotonic() - begun < 8
        bystander.check()
        # The threads are free again.
        web.answers["cam"] = 200
        with Client(running.url("cam")) as client:
            client.play()
    finally:
        bystander.close()
    running.stop()
    running.wait_for_line(r"counted: auth_callback_errors 60, ")
    assert sum("auth_callback http" in line for line in running.lines) == 1
