"""Authentication: tokens, files, signed URLs, publish keys, users, networks and bans. Every secret here has "s3cret" in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from rtmpd.client import Client
from rtmpd.config.secret import Secret
from rtmpd.errors import Refused, TransportClosed
from rtmpd.protocol.adobe_auth import query_parameters, response
from rtmpd.services.auth.signing import sign
from tests.conftest import ROOT
from tests.integration.beside import Bystander, wait_until
from tests.integration.wire import Wire, begin, code_of

DENIED, FAILED = "NetStream.Publish.Denied", "NetStream.Play.Failed"
REJECTED = "NetConnection.Connect.Rejected"


@pytest.fixture
def serve(server):
    """A function that starts a server; the test fails if a secret has got into its log."""
    started = []

    def start(ini, *arguments, **options):
        started.append(server(ini, *arguments, **options))
        return started[-1]

    yield start
    for made in started:
        made.stop()
        told = [line for line in made.lines if "s3cret" in line]
        assert not told, told


def reload(server, pattern="configuration reloaded"):
    seen = len(server.log())
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: any(pattern in line for line in server.log()[seen:]), pattern)


def refused(server, name, *, play=False, app="live", user=""):
    """The status code, and the description, that a client is refused with."""
    with Client(f"rtmp://{user}127.0.0.1:{server.port}/{app}/{name}") as client, pytest.raises(Refused) as raised:
        client.play() if play else client.publish()
    assert "s3cret" not in str(raised.value)
    return raised.value.code, raised.value.description


def published(server, name, app="live", user=""):
    with Client(f"rtmp://{user}127.0.0.1:{server.port}/{app}/{name}") as client:
        client.publish()
        client.unpublish()


def played(server, name, app="live", user=""):
    with Client(f"rtmp://{user}127.0.0.1:{server.port}/{app}/{name}") as client:
        client.play()


# Tokens -----------------------------------------------------------------------------------------------------------------

TOKENS = "[auth]\nauth_mode = token\nauth_tokens = live/cam=s3cret-1, live/other=s3cret-2\n"


def test_a_client_with_a_token_is_allowed_and_one_without_is_not(serve):
    running = serve(TOKENS)
    published(running, "cam?token=s3cret-1")
    played(running, "cam?token=s3cret-1")
    assert refused(running, "cam?token=s3cret-2") == (DENIED, "Not authorized: wrong token.")
    assert refused(running, "cam") == (DENIED, "Not authorized: no token.")
    assert refused(running, "cam?token=s3cret-2", play=True) == (FAILED, "Not authorized: wrong token.")
    assert refused(running, "nobody?token=s3cret-1", play=True) == (FAILED, "Not authorized: wrong token.")
    running.wait_for_line(r"WARNING #\d+ 127\.0\.0\.1:\d+ publish refused: NetStream\.Publish\.Denied: wrong token$")
    running.wait_for_line(r"closed: refused: NetStream\.Play\.Failed: wrong token; ")
    running.stop()
    running.wait_for_line(r"counted: auth_failures 4, auth_successes 2, ")


def test_a_refusal_is_sent_before_other_answers_and_then_the_connection_ends(serve, raw):
    running = serve(TOKENS)
    wire = raw(running)
    wire.connect()
    wire.command("publish", "cam?token=s3cret-x", "live", msid=wire.create_stream())
    wire.send(9, 0, b"\x17\x00")  # an encoder that does not wait
    codes = [code_of(wire.wait_for(lambda command: True))]
    assert codes == [DENIED]
    wire.rest()


def test_a_token_may_be_in_the_application(serve, raw):
    running = serve(TOKENS)
    raw(running).publish("cam", app="live?token=s3cret-1")


def test_flags_set_tokens(serve):
    running = serve("", "--auth-mode", "token", "--auth-token", "live/cam=s3cret-1", "--auth-token", "live/b=s3cret-2")
    published(running, "b?token=s3cret-2")
    assert refused(running, "b?token=s3cret-1")[0] == DENIED


def test_applications_differ(serve):
    running = serve(
        TOKENS + "auth_play = no\n[applications]\n[[live]]\n[[open]]\nauth_mode = none\n[[closed]]\nauth_play = yes\n"
    )
    played(running, "cam")
    assert refused(running, "cam")[0] == DENIED
    published(running, "any", app="open")
    assert refused(running, "any", play=True, app="closed")[0] == FAILED


def test_a_reload_acts_at_once_and_ends_nothing(serve, tmp_path, publisher, player):
    running = serve(TOKENS)
    source, viewer = publisher(running, "cam?token=s3cret-1"), player(running, "cam?token=s3cret-1")
    (tmp_path / "rtmpd.ini").write_text(TOKENS.replace("s3cret-1", "s3cret-new"))
    reload(running)
    assert refused(running, "cam?token=s3cret-1", play=True)[0] == FAILED
    played(running, "cam?token=s3cret-new")
    begin(source, viewer)


# Files ------------------------------------------------------------------------------------------------------------------


def test_a_changed_auth_file_is_read_and_a_half_written_one_changes_nothing(serve, tmp_path):
    path = tmp_path / "tokens.json"
    path.write_text('{"live/stream": "s3cret-1"}')
    running = serve("", "--auth-mode", "file", "--auth-file", str(path))
    published(running, "stream?token=s3cret-1")
    path.write_text('{"live/stream": "s3cret-2", "live/more": "s3cret-3"}')
    reload(running, f"auth_file {path} was read")
    assert refused(running, "stream?token=s3cret-1")[0] == DENIED
    published(running, "stream?token=s3cret-2")
    path.write_text('{"live/stream": "s3cret-4", "live/mo')
    reload(running, "the old configuration stays in force")
    running.wait_for_line(
        r"ERROR .*reload failed: auth_file .*tokens\.json: line 1 column 29: Unterminated string starting at; the old "
    )
    assert refused(running, "stream?token=s3cret-4")[0] == DENIED
    published(running, "more?token=s3cret-3")
    path.unlink()
    reload(running, "can't be read: No such file or directory; the old configuration stays in force")
    published(running, "more?token=s3cret-3")
    path.write_text("{}")
    reload(running, f"auth_file {path} was read")
    assert refused(running, "more?token=s3cret-3")[0] == DENIED
    running.stop()
    running.wait_for_line(r"counted: .*auth_file_errors 2")


def test_a_server_does_not_start_with_a_file_that_is_wrong(tmp_path):
    path = tmp_path / "tokens.json"
    path.write_text('{"live/stream": "s3cret-1"')
    command = [sys.executable, "-m", "rtmpd", "--listen", "127.0.0.1:0", "--auth-mode", "file", "--auth-file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert done.returncode == 1
    assert f"auth_file {path}: line 1 column 27: Expecting ',' delimiter" in done.stderr
    assert "s3cret" not in done.stderr


def test_a_file_with_publish_keys_users_and_tokens_by_action(serve, tmp_path):
    path = tmp_path / "tokens.json"
    entry = {"publish_key": "s3cret-key", "publish_token": "s3cret-in", "play_token": "s3cret-out"}
    path.write_text(json.dumps({"live/cam": entry, "users": {"ann": "s3cret-pw"}}))
    running = serve(f"[auth]\nauth_mode = file\nauth_file = {path}\n")
    # A client that logs in needs no token, but it still needs a publish key.
    published(running, "s3cret-key", user="ann:s3cret-pw@")
    assert refused(running, "cam", user="ann:s3cret-pw@") == (DENIED, "Not authorized: unknown publish key.")
    assert refused(running, "s3cret-key", user="ann:s3cret-in@")[0] == REJECTED
    # A token in the application says that there will be no login.
    with Wire(running) as wire:
        wire.publish("s3cret-key", app="live?token=s3cret-in")
    with Wire(running) as wire:
        wire.play("cam", app="live?token=s3cret-out")


# Signed URLs ------------------------------------------------------------------------------------------------------------


def test_a_signed_url_from_the_command_line_allows(serve, tmp_path):
    running = serve("[auth]\nauth_sign_secrets = s3cret-new, s3cret-old\n")

    def signed(*arguments):
        command = [sys.executable, "-m", "rtmpd", "-c", str(tmp_path / "rtmpd.ini"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30, check=True)
        return done.stdout.strip()

    url = signed("--sign-publish", running.url("cam"), "--sign-for", "60")
    assert url.startswith(running.url("cam") + "?expires=")
    with Client(url) as client:
        client.publish()
    assert refused(running, url.rpartition("/")[2], play=True) == (FAILED, "Not authorized: wrong signature.")
    with Client(signed("--sign-play", running.url("cam"))) as client:
        client.play()
    expires = int(time.time()) - 1
    old = sign(Secret("s3cret-old"), "play", "live/cam", expires)
    assert refused(running, f"cam?expires={expires}&sign={old}", play=True) == (
        FAILED,
        "Not authorized: the signed URL has expired.",
    )
    assert refused(running, "cam") == (DENIED, "Not authorized: no signature.")


# Publish keys -----------------------------------------------------------------------------------------------------------


def test_a_publish_key_is_visible_to_no_other_client(serve, raw):
    running = serve("[auth]\nauth_publish_keys = live/cam=s3cret-key\n")
    viewer = raw(running).play("cam")
    encoder = raw(running)
    encoder.connect()
    encoder.command("publish", "s3cret-key?a=b", "live", msid=encoder.create_stream())
    info = encoder.status("NetStream.Publish.Start").argument(0)
    assert info["details"] == "live/cam"
    assert "s3cret" not in str(info)
    begin(encoder, viewer)
    encoder.command("publish", "s3cret-key?a=b", "live", msid=encoder.msid)
    assert encoder.status("NetStream.Publish.Start").argument(0)["details"] == "live/cam"
    encoder.command("FCUnpublish", "s3cret-key?a=b")
    running.wait_for_line(r"stopped publishing live/cam: FCUnpublish")
    assert b"s3cret" not in b"".join(message.payload for message in viewer.seen)
    encoder.close()
    assert refused(running, "cam") == (DENIED, "Not authorized: unknown publish key.")
    assert refused(running, "s3cret-wrong") == (DENIED, "Not authorized: unknown publish key.")


def test_playing_does_not_tell_which_names_are_publish_keys_and_guesses_lead_to_a_ban(serve):
    running = serve("[auth]\nauth_publish_keys = live/cam=s3cret-key\nauth_ban_failures = 5\nauth_ban_exempt = ''\n")
    answer = (FAILED, "Not authorized: there is no such stream.")
    assert refused(running, "s3cret-key", play=True) == answer
    for number in range(4):
        assert refused(running, f"guess-{number}", play=True) == answer
    running.wait_for_line(r"is banned for .* after 5 failures")


def test_two_publish_keys_of_a_stream_are_one_name(serve, publisher):
    running = serve("[auth]\nauth_publish_keys = live/cam=s3cret-a, live/cam=s3cret-b\n")
    publisher(running, "s3cret-a")
    assert refused(running, "s3cret-b") == ("NetStream.Publish.BadName", "live/cam is already being published.")


# Users ------------------------------------------------------------------------------------------------------------------

USERS = "[auth]\nauth_users = ann=s3cret-pw, bob@host=s3cret p@w/é?\nauth_play = no\n"


def ask_to_connect(running, app="live", **properties):
    """Connect as an encoder does; return the description of the refusal, or nothing."""
    with Wire(running) as wire:
        answer = wire.connect(app, **({"type": "nonprivate"} | properties))
        if answer.name == "_result":
            return ""
        assert code_of(answer) == REJECTED
        wire.rest()
        return answer.argument(0)["description"]


def test_row_16_an_encoder_logs_in_with_three_connects(serve):
    running = serve(USERS)
    first = ask_to_connect(running)
    assert first == "[ AccessManager.Reject ] : [ code=403 need auth; authmod=adobe ] : "
    second = ask_to_connect(running, "live?authmod=adobe&user=ann")
    assert second.startswith("[ AccessManager.Reject ] : [ authmod=adobe ] : ?reason=needauth&user=ann&salt=")
    given = query_parameters(second.partition("?")[2])
    # As OBS does: base64 that is not escaped, opaque at the end, the same query behind application and tcUrl.
    proof = response("ann", "s3cret-pw", given["salt"], given["opaque"], "xK+/wg==")
    query = f"?authmod=adobe&user=ann&challenge=xK+/wg==&response={proof}&opaque={given['opaque']}"
    assert ask_to_connect(running, f"live{query}", tcUrl=f"rtmp://localhost/live{query}") == ""
    running.wait_for_line(r"connected to live as ann by")
    # It is good once.
    assert "?reason=authfailed" in ask_to_connect(running, f"live{query}")
    running.wait_for_line(r"connect refused: .*: the login took too long, or its challenge was used before")


@pytest.mark.parametrize(
    "query",
    [
        "authmod=adobe&user=ann&challenge=1&response=s3cret&opaque={opaque}",
        "authmod=adobe&user=ann&response=&opaque={opaque}",
        "authmod=adobe&user=ann&response=x",
        "authmod=adobe&user=eve&challenge=1&response=s3cret&opaque={opaque}",
        "authmod=adobe&user=&response=x",
        "authmod=adobe&user=a%00b",
        "authmod=adobe",
    ],
)
def test_row_16_wrong_answers_are_refused(serve, query):
    running = serve(USERS)
    user = "eve" if "eve" in query else "ann"
    given = query_parameters(ask_to_connect(running, f"live?authmod=adobe&user={user}").partition("?")[2])
    answer = ask_to_connect(running, f"live?{query.format(opaque=given['opaque'])}")
    assert answer == "[ AccessManager.Reject ] : [ authmod=adobe ] : ?reason=authfailed&opaque=-"
    running.stop()
    running.wait_for_line(r"counted: auth_failures 1, ")


def test_row_16_the_way_of_limelight_is_refused_clearly(serve):
    running = serve(USERS)
    answer = ask_to_connect(running, "live?authmod=llnw&user=ann&nonce=1&cnonce=2&nc=3&response=4")
    assert "needauth" not in answer
    assert "code=403" not in answer
    running.wait_for_line(r"WARNING .*connect refused: .*: authmod=llnw is not supported, only adobe")


def test_row_16_a_query_of_the_url_and_a_login_go_together(serve):
    """FFmpeg and OBS put the second query behind the first, with another question mark."""
    running = serve(USERS)
    assert "needauth" in ask_to_connect(running, "live?vhost=a?authmod=adobe&user=ann")


def test_row_16_players_are_asked_only_if_they_have_to_log_in(serve):
    running = serve(USERS)
    played(running, "cam")
    assert ask_to_connect(running, type=None, flashVer="LNX 9,0,124,2") == ""
    assert "need auth" in ask_to_connect(running, type=None, flashVer="FMLE/3.0 (compatible; FMSc/1.0)")
    # An encoder that does not say so is refused later.
    with Wire(running) as wire:
        wire.connect()
        wire.command("publish", "cam", "live", msid=wire.create_stream())
        assert wire.status(DENIED).argument(0)["description"] == "Not authorized: no login."


def test_the_client_logs_in(serve):
    running = serve(USERS.replace("auth_play = no", "auth_play = yes"))
    published(running, "cam", user="ann:s3cret-pw@")
    played(running, "cam", user="bob%40host:s3cret%20p%40w%2F%C3%A9%3F@")
    assert refused(running, "cam", user="ann:s3cret-wrong@")[0] == REJECTED
    assert refused(running, "cam", user="eve:s3cret-pw@")[0] == REJECTED
    assert refused(running, "cam", user="ann@")[0] == REJECTED
    assert refused(running, "cam", play=True)[0] == REJECTED
    running.wait_for_line(r"connected to live as bob@host by")


def test_a_user_of_an_application_has_no_rights_in_an_application_below_it(serve, raw):
    above, below = ("auth_users = ann=s3cret-1, bob=s3cret-3\n", "auth_users = ann=s3cret-2, bob=s3cret-3\n")
    running = serve(f"[applications]\n[[live]]\n{above}[[live/sub]]\n{below}")
    for user, password, right in (("ann", "s3cret-1", False), ("bob", "s3cret-3", True)):
        with Client(f"rtmp://{user}:{password}@127.0.0.1:{running.port}/live/x") as client:
            client.connect()
            if right:
                client.publish("sub/cam")
                continue
            with pytest.raises(Refused) as raised:
                client.publish("sub/cam")
            assert raised.value.description == "Not authorized: no login."
    published(running, "cam", app="live/sub", user="ann:s3cret-2@")
    assert refused(running, "cam", app="live/sub", user="ann:s3cret-1@")[0] == REJECTED


def test_a_relay_logs_in(serve, server, publisher, player):
    there = serve(USERS)
    here = server(f"[relay]\nrelay_to = rtmp://ann:s3cret-pw@127.0.0.1:{there.port}/live/copy\n")
    source = publisher(here, "cam")
    there.wait_for_line(r"connected to live as ann by")
    begin(source, player(there, "copy"))
    assert not any("s3cret" in line for line in here.log())


def test_a_client_that_sends_a_login_to_a_server_without_users_is_allowed(serve):
    running = serve("")
    assert ask_to_connect(running, "live?authmod=adobe&user=ann") == ""
    published(running, "cam", user="ann:s3cret-pw@")


# Networks and bans ------------------------------------------------------------------------------------------------------


def test_networks(serve, raw):
    running = serve("[auth]\npublish_allow = 127.77.0.0/16\npublish_deny = 127.77.9.9\nplay_deny = 127.77.8.0/24\n")
    raw(running, source="127.77.1.1").publish("cam")
    for source in ("127.78.0.1", "127.77.9.9"):
        wire = raw(running, source=source)
        wire.connect()
        wire.command("publish", "other", "live", msid=wire.create_stream())
        assert wire.status(DENIED).argument(0)["description"] == "Not authorized: address not allowed."
    raw(running, source="127.77.9.9").play("cam")
    wire = raw(running, source="127.77.8.1")
    wire.connect()
    wire.command("play", "cam", -2000, msid=wire.create_stream())
    wire.status(FAILED)


BANS = TOKENS + "auth_ban_exempt = ''\nauth_ban_failures = 3\nauth_ban_s = 1.5\n"


def guess(running, source, token="s3cret-x"):
    """Try a token; return the status code, or nothing if the server closed the connection at once."""
    with Wire(running, source=source) as wire:
        try:
            wire.connect()
            wire.command("play", f"cam?token={token}", -2000, msid=wire.create_stream())
            return code_of(wire.wait_for(lambda command: command.name == "onStatus" and "Reset" not in code_of(command)))
        except (AssertionError, OSError):
            return ""


def test_an_address_with_many_failures_is_banned_for_a_while(serve):
    running = serve(BANS)
    assert [guess(running, "127.77.200.1") for _ in range(5)] == [FAILED, FAILED, FAILED, "", ""]
    running.wait_for_line(
        r"WARNING 127\.77\.200\.1 is banned for 1\.5 s \(auth_ban_s\) after 3 failures \(auth_ban_failures\)$"
    )
    # Its right token does not help it now, and others notice nothing.
    assert guess(running, "127.77.200.1", "s3cret-1") == ""
    assert guess(running, "127.77.200.2", "s3cret-1") == "NetStream.Play.Start"
    wait_until(lambda: guess(running, "127.77.200.1", "s3cret-1") == "NetStream.Play.Start", "the end of the ban")
    running.wait_for_line(r"INFO +127\.77\.200\.1 is no longer banned, \d+ connections? refused$")
    running.stop()
    assert sum("is banned" in line for line in running.lines) == 1
    running.wait_for_line(r"counted: auth_banned_connections \d+, auth_bans 1, auth_failures 3, ")


def test_no_address_is_banned_for_missing_tokens(serve):
    running = serve(BANS)
    assert [guess(running, "127.77.200.3", "") for _ in range(6)] == [FAILED] * 6


def test_loopback_is_never_banned_by_default(serve):
    running = serve(TOKENS + "auth_ban_failures = 1\n")
    assert [guess(running, "127.77.200.4") for _ in range(4)] == [FAILED] * 4


def test_a_flood_of_wrong_passwords_disturbs_no_stream(serve):
    running = serve(BANS + "[applications]\n[[live]]\nauth_mode = none\n[[x]]\n".replace("1.5", "60"))
    bystander = Bystander(running)
    try:
        begun = time.monotonic()
        for number in range(400):
            with Wire(running, source=f"127.77.201.{number % 5}") as wire:
                try:
                    wire.connect("x")
                    wire.command("publish", f"cam?token=s3cret-{number}", "live", msid=1)
                    wire.rest()
                except (AssertionError, OSError):
                    continue
        assert time.monotonic() - begun < 30
        bystander.check()
    finally:
        bystander.close()
    running.stop()
    running.wait_for_line(r"counted: auth_banned_connections [1-9]\d*, auth_bans \d+, ")


def test_a_connection_of_a_banned_address_gets_no_byte(serve, raw):
    running = serve(BANS.replace("1.5", "60"))
    for _ in range(3):
        guess(running, "127.77.202.1")
    wire = raw(running, source="127.77.202.1")
    assert wire.read_bytes() == b""


def test_the_error_of_the_client_for_a_wrong_url_has_no_password(serve):
    for url in ("rtmpx://ann:s3cret@host/live/a?token=s3cret", "ann:s3cret@host/x", "http://ann:s3cret@host"):
        with pytest.raises(ValueError, match=r"expected rtmp\[s\]://") as raised:
            Client(url)
        assert "s3cret" not in str(raised.value)
    client = Client("rtmp://ann:s3cret@127.0.0.1:1/live/a")
    assert "s3cret" not in repr(client.url) + client.url.tc_url
    with pytest.raises(TransportClosed) as closed:
        client.publish()
    assert "s3cret" not in str(closed.value)
