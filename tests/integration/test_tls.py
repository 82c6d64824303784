"""RTMPS: accepted and refused clients and their log lines, certificates that change, slow players."""

from __future__ import annotations

import itertools
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from contextlib import ExitStack

import gevent
import pytest

from rtmpd.client import Client
from rtmpd.errors import TlsError, TransportClosed
from tests.certificates import Authority
from tests.conftest import Server
from tests.integration.beside import Bystander, wait_until
from tests.integration.test_backpressure import GROUP, Flood, read_all
from tests.integration.tls_wire import LISTEN, TlsWire, certificate_of, der, tls_port
from tests.integration.wire import VIDEO, Wire, begin, gop, gops, played, send
from tests.ports import free_port

FAILURE = r"WARNING #\d+ 127[\d.:]+ TLS handshake: "


@pytest.fixture(scope="module")
def pair(authority):
    return authority.issue("localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def rtmps(tmp_path_factory, pair):
    """A server for the module."""
    ini = f"[server]\nunsent_limit_bytes = 16384\n[backpressure]\nlag_limit_bytes = 400000\n{LISTEN}{pair.ini}"
    made = Server(ini, directory=tmp_path_factory.mktemp("rtmps"))
    yield made
    code = made.stop()
    internal = [line for line in made.lines if "internal error" in line or "Traceback" in line or " CRITICAL" in line]
    assert (code, internal) == (0, []), "\n".join(made.lines[-60:])


@pytest.fixture
def secure(opened, authority):
    """Return a function that connects with TLS."""

    def connect(server, context=None, **options) -> TlsWire:
        return opened.enter_context(TlsWire(server, context or authority.client_context(), **options))

    return connect


@pytest.fixture
def client(opened, authority):
    """Return a function that makes a client of the library for a name on a server."""

    def make(server, name, **options) -> Client:
        url = f"rtmps://127.0.0.1:{tls_port(server)}/live/{name}"
        return opened.enter_context(Client(url, **{"tls": str(authority.path), **options}))

    return make


def reload(server, ini: str, directory, result: str = "configuration reloaded") -> None:
    before = len([line for line in server.log() if result in line])
    (directory / "rtmpd.ini").write_text(ini)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len([line for line in server.log() if result in line]) > before, result)


def s_client(peer, port: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [peer("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{port}", *map(str, arguments)]
    return subprocess.run(command, input="", capture_output=True, text=True, timeout=20, check=False)


# Media ------------------------------------------------------------------------------------------------------------------


def test_players_with_and_without_tls_get_the_same(rtmps, secure, raw, name):
    players = [secure(rtmps).play(name), raw(rtmps).play(name), secure(rtmps).play(name)]
    publisher = secure(rtmps).publish(name)
    begin(publisher, *players)
    send(publisher, gops(1, 5))
    for player in players:
        assert played(player, gop(5)[-1]) == gops(1, 5)


def test_messages_of_all_sizes_arrive(rtmps, secure, raw, name):
    player, publisher = secure(rtmps).play(name), raw(rtmps).publish(name)
    begin(publisher, player)
    sizes = [1, 100, 8000, 16384, 16385, 33000, 70_000]
    items = [item for n, size in enumerate(sizes, 1) for item in gop(n, frames=1, size=size, start_ms=160 + n * 40)]
    send(publisher, items)
    assert played(player, items[-1]) == items


def test_the_client_library_publishes_and_plays(rtmps, client, name):
    player, publisher = client(rtmps, name), client(rtmps, name)
    player.play()
    publisher.publish()
    begin(publisher, player)
    assert publisher.transport.description.startswith("TLSv1.3, ")
    assert publisher.url.tc_url == f"rtmps://127.0.0.1:{tls_port(rtmps)}/live"


def test_a_slow_player_skips_to_a_keyframe_and_gets_no_half_message(rtmps, secure, raw, name):
    flood = Flood(rtmps, raw, name)
    slow = secure(rtmps, receive_buffer=4096).play(name)
    flood.send(120)
    got = read_all(slow, flood.sent[-1])
    flood.check()
    frames = [one for one in got if one.type_id == VIDEO][1:]
    assert set(frames) <= set(flood.sent)
    numbers = [one.timestamp // 40 for one in frames]
    assert numbers == sorted(set(numbers))
    jumps = [b for a, b in itertools.pairwise(numbers) if b != a + 1]
    assert jumps
    assert all(number % GROUP == 0 for number in jumps), numbers
    slow.close()
    rtmps.wait_for_line(rf"stopped playing live/{name}: .* [1-9]\d* skips")


def test_a_player_that_reads_nothing_is_disconnected(server, secure, raw, name, pair):
    running = server(f"[server]\nunsent_limit_bytes = 16384\nwrite_timeout_s = 1\n{LISTEN}{pair.ini}")
    flood = Flood(running, raw, name)
    slow = secure(running, receive_buffer=4096).play(name)
    flood.send(40)
    running.wait_for_line(rf"{slow.address} closed: it took nothing for 1 s")
    flood.send(5)
    flood.check()


def test_a_player_that_reads_slowly_is_not_cut_off(server, secure, raw, name, pair):
    running = server(f"[server]\nunsent_limit_bytes = 16384\nwrite_timeout_s = 2\n{LISTEN}{pair.ini}")
    flood = Flood(running, raw, name)
    slow = secure(running, receive_buffer=4096).play(name)
    # 20 kB/s for longer than the timeout and two sweeps: a record of 16 KiB takes most of a second.
    for _ in range(80):
        flood.send(3)
        slow.read_exactly(1000)
        gevent.sleep(0.05)
    assert not [line for line in running.log() if slow.address in line and "closed" in line]
    flood.check()


def test_a_client_can_not_begin_anew_in_the_middle(server, peer, pair):
    running = server(f"{LISTEN}{pair.ini}")
    command = [peer("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{tls_port(running)}", "-tls1_2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        running.wait_for_line(r"TLS handshake done: TLSv1\.2")
        process.stdin.write(b"R\n")
        process.stdin.flush()
        assert b"no renegotiation" in process.stderr.read()
    running.wait_for_line("closed: ")
    running.stop()
    assert "tls_handshakes 1" in running.lines[-1]


def test_several_plays_on_one_connection(rtmps, secure, raw, name):
    both = secure(rtmps)
    both.connect()
    ids = {}
    for part in ("a", "b"):
        number = int(both.call("createStream").argument(0))
        ids[number] = part
        both.command("play", f"{name}_{part}", -2000, msid=number)
        both.status("NetStream.Play.Start")
    for number, part in ids.items():
        publisher = raw(rtmps).publish(f"{name}_{part}")
        send(publisher, gop(0, size=40_000))
        last = gop(0, size=40_000)[-1]
        both.seen.clear()
        both.until(lambda one, number=number, last=last: one.message_stream_id == number and one.payload == last.payload)


def test_a_refusal_is_read_before_the_end(rtmps, secure, name):
    secure(rtmps).publish(name)
    second = secure(rtmps)
    second.connect()
    second.command("publish", name, "live", msid=second.create_stream())
    assert second.status().argument(0)["code"] == "NetStream.Publish.BadName"
    # And then a close_notify: the interpreter's sockets take an end without one for an error.
    assert second.sock.recv(1) == b""


def test_an_end_of_the_server_is_orderly(server, secure, raw, pair, name):
    running = server(f"{LISTEN}{pair.ini}")
    player = secure(running).play(name)
    publisher = raw(running).publish(name)
    begin(publisher, player)
    running.stop()
    player.rest()
    assert player.sock.recv(1) == b""


# Handshakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "version"),
    [(("-tls1_1", "-cipher", "ALL@SECLEVEL=0"), ""), (("-tls1_2",), "TLSv1.2"), (("-tls1_3",), "TLSv1.3"), ((), "TLSv1.3")],
)
def test_tls_version_sets_the_oldest_version(rtmps, peer, authority, arguments, version):
    done = s_client(peer, tls_port(rtmps), "-CAfile", authority.path, "-verify_return_error", "-brief", *arguments)
    if version:
        assert f"Protocol version: {version}" in done.stderr
        assert "Verification: OK" in done.stderr
        assert done.returncode == 0
    else:
        assert "alert protocol version" in done.stderr
        rtmps.wait_for_line(FAILURE + r"no TLS version in common with the client \(ours: TLS 1\.2 and newer\)")


def test_a_server_may_ask_for_the_newest_version(server, pair, peer):
    running = server(f"{LISTEN}{pair.ini}tls_version = 1.3\n")
    assert "alert protocol version" in s_client(peer, tls_port(running), "-tls1_2").stderr
    assert "TLSv1.3" in s_client(peer, tls_port(running), "-brief").stderr


def test_the_certificate_is_that_of_the_name_that_is_asked_for(server, authority, peer):
    pairs = {name: authority.issue(name) for name in ("a.example", "b.example", "*.c.example")}
    both = ", ".join(str(pair.both) for pair in pairs.values())
    running = server(f"{LISTEN}tls_cert = {both}\n")
    port = tls_port(running)
    for asked, name in (("b.example", "b.example"), ("x.c.example", "*.c.example"), ("d.example", "a.example")):
        done = s_client(peer, port, "-servername", asked)
        assert ssl.PEM_cert_to_DER_cert(re.search(r"-----BEGIN.*?END CERTIFICATE-----", done.stdout, re.DOTALL)[0]) == der(
            pairs[name].cert
        )
        running.wait_for_line(rf"TLS handshake done: TLSv1\.3, \w+, name '{asked}'")


def test_plain_rtmp_on_a_tls_port_is_named_in_the_log(rtmps):
    wire = Wire(tls_port(rtmps))
    wire.write(b"\x03" + bytes(1536))
    assert wire.read_bytes() == b""
    rtmps.wait_for_line(rf"WARNING #\d+ {wire.address} TLS handshake: the client speaks plain RTMP; this port is for rtmps://")


def test_tls_on_a_plain_port_is_named_in_the_log(rtmps, authority):
    with pytest.raises(ssl.SSLError):
        TlsWire(rtmps.port, authority.client_context())
    rtmps.wait_for_line(r"WARNING .* handshake: C0 is 22, expected 3: this is not RTMP; the client speaks TLS: rtmps:// has")


def test_the_log_says_that_a_client_does_not_trust_the_certificate(rtmps):
    with pytest.raises(ssl.SSLCertVerificationError):
        TlsWire(rtmps, ssl.create_default_context())
    rtmps.wait_for_line(FAILURE + "the client does not trust our certificate: it does not know the issuer")


def test_a_port_scan_is_not_counted_as_a_failure(rtmps):
    wire = Wire(tls_port(rtmps))
    wire.close()
    line = rtmps.wait_for_line(rf" {wire.address} closed: (.*?);")[1]
    assert line in ("closed by the peer", "closed by the peer in the TLS handshake")
    assert not [line for line in rtmps.log() if wire.address in line and "WARNING" in line]


def test_a_slow_handshake_has_a_deadline_and_failures_are_counted(server, pair):
    running = server(f"{LISTEN}{pair.ini}tls_handshake_timeout_s = 0.3\n")
    drip = Wire(tls_port(running))
    for byte in b"\x16\x03\x01\x02\x00\x01":
        drip.write(bytes([byte]))
    running.wait_for_line(FAILURE + r"the TLS handshake took longer than 0\.3 s")
    assert drip.read_bytes() == b""
    running.stop()
    assert "tls_failures 1" in running.lines[-1]


def test_a_client_above_the_connection_limit_gets_no_handshake(server, pair, authority):
    running = server(f"{LISTEN}{pair.ini}[limits]\nconnections_per_address_limit = 1\n")
    first = TlsWire(running, authority.client_context(), source="127.9.9.9")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        TlsWire(running, authority.client_context(), source="127.9.9.9")
    running.wait_for_line(r"connection from 127\.9\.9\.9:\d+ refused: connections_per_address_limit is 1")
    first.close()
    running.stop()
    assert "tls_handshakes 1" in running.lines[-1]
    assert "tls_failures" not in running.lines[-1]


def test_a_flood_of_handshakes_does_not_disturb_streams(rtmps, authority, opened):
    beside = Bystander(rtmps)
    opened.callback(beside.close)
    over = threading.Event()
    done = []

    def storm():
        context = authority.client_context()
        while not over.is_set():
            try:
                TlsWire(rtmps, context, timeout_s=20).close()
                done.append(1)
            except OSError:
                continue

    def nonsense():
        while not over.is_set():
            with Wire(tls_port(rtmps), timeout_s=20) as wire:
                wire.write(b"\x16\x03\x01\x00\x05hello")
                wire.read_bytes()

    threads = [threading.Thread(target=target) for target in (storm, storm, storm, nonsense)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            beside.check()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert done


def test_a_peer_that_wants_other_keys_gets_them(server, peer, pair):
    running = server(f"{LISTEN}{pair.ini}")
    command = [peer("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{tls_port(running)}", "-tls1_3", "-msg"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for _ in range(5):
            # New keys of its own, and a request for ones of ours.
            process.stdin.write(b"K\n")
            process.stdin.flush()
            while b"KEYUPDATE" not in process.stderr.readline():
                pass
        process.stdin.write(b"\x03" + bytes(1536) + bytes(1536))
        process.stdin.flush()
        running.wait_for_line("= handshake done: plain")
        process.stdin.close()
        shown = process.stdout.read()
    assert re.search(rb"<<< TLS 1\.3, Handshake \[length 0005\], KeyUpdate", shown)
    running.wait_for_line(r"closed: closed by the peer;")


# Certificates of clients ------------------------------------------------------------------------------------------------


@pytest.fixture
def asking(server, pair, authority):
    """Return a function that starts a server which asks for certificates."""

    def start(kind: str) -> Server:
        return server(f"{LISTEN}{pair.ini}tls_client_auth = {kind}\ntls_client_ca = {authority.path}\n")

    return start


def refused(server, context) -> None:
    """Connect in vain. With TLS 1.3 a client hears of it only when it reads."""
    with ExitStack() as stack, pytest.raises((ssl.SSLError, ConnectionError)):  # noqa: PT012
        wire = stack.enter_context(TlsWire(server, context))
        if not wire.sock.recv(1):
            raise ConnectionError


@pytest.mark.parametrize("kind", ["optional", "required"])
def test_clients_with_a_certificate_are_accepted_and_logged_by_name(asking, secure, authority, kind, name):
    running = asking(kind)
    known = authority.client_context(authority.issue("client.example", common_name="studio one"))
    secure(running, known).publish(name)
    running.wait_for_line(r"client certificate: .*commonName='studio one'$")


def test_clients_without_a_certificate_are_accepted_only_if_it_is_optional(asking, secure, authority, name):
    secure(asking("optional")).publish(name)
    strict = asking("required")
    refused(strict, authority.client_context())
    strict.wait_for_line(FAILURE + "the client sent no certificate, but tls_client_auth is required")


@pytest.mark.parametrize("kind", ["optional", "required"])
def test_clients_with_a_wrong_certificate_are_refused(asking, authority, tmp_path, kind):
    running = asking(kind)
    stranger = authority.client_context()
    stranger.load_cert_chain(Authority(tmp_path / "stranger").issue("x.example").both)
    refused(running, stranger)
    running.wait_for_line(FAILURE + "the client's certificate can't be verified: (unable to get local issuer|self.signed)")
    refused(running, authority.client_context(authority.expired("x.example")))
    running.wait_for_line(FAILURE + "the client's certificate can't be verified: certificate has expired")


# Start and reload -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r"\[tls\] tls_cert: not set"),
        ("tls_cert = /none.pem", r"\[tls\] tls_cert: /none\.pem: No such file or directory"),
        ("tls_cert = {pair.cert}", r"\[tls\] tls_key: {pair.cert}: contains no private key"),
    ],
)
def test_a_server_with_incomplete_tls_options_does_not_start(tmp_path, pair, text, problem):
    with pytest.raises(AssertionError, match=problem.format(pair=pair)):
        Server(f"{LISTEN}{text.format(pair=pair)}\n", directory=tmp_path)


def test_a_server_with_an_expired_certificate_starts_and_warns(server, authority):
    pair = authority.expired("localhost")
    running = server(f"{LISTEN}{pair.ini}")
    running.wait_for_line(rf"WARNING {pair.cert}: the certificate expired on 2021-01-01 00:00:00 UTC")
    context = authority.client_context()
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        TlsWire(running, context)
    running.wait_for_line(FAILURE + "the client reports that our certificate has expired")


def test_a_new_certificate_applies_to_new_connections_and_players_continue(server, secure, raw, authority, tmp_path, name):
    old, new = authority.issue("localhost"), authority.issue("localhost")
    live = tmp_path / "live.pem"
    live.write_bytes(old.both.read_bytes())
    running = server(f"{LISTEN}tls_cert = {live}\n")
    player, publisher = secure(running).play(name), raw(running).publish(name)
    begin(publisher, player)
    assert certificate_of(tls_port(running), authority) == der(old.cert)
    live.write_bytes(new.both.read_bytes())
    send(publisher, gop(1))
    reload(running, (tmp_path / "rtmpd.ini").read_text(), tmp_path)
    send(publisher, gop(2))
    assert certificate_of(tls_port(running), authority) == der(new.cert)
    send(publisher, gop(3))
    assert played(player, gop(3)[-1]) == gops(1, 3)
    assert player.sock.getpeercert(binary_form=True) == der(old.cert)


def test_a_wrong_certificate_changes_nothing(server, authority, tmp_path, raw):
    pair, other = authority.issue("localhost"), authority.issue("localhost")
    running = server(f"{LISTEN}{pair.ini}")
    port = tls_port(running)
    wrong = f"[server]\nlisten = 127.0.0.1:0, 127.0.0.1:0\n{LISTEN}tls_cert = {pair.cert}\ntls_key = {other.key}\n"
    reload(running, wrong, tmp_path, "reload failed")
    running.wait_for_line(rf"ERROR +reload failed: \[tls\] tls_key: {other.key}: the key does not belong to the certificate in")
    assert certificate_of(port, authority) == der(pair.cert)
    assert len([line for line in running.log() if " listening on " in line]) == 2


def test_a_reload_switches_rtmps_on_and_off(server, secure, raw, authority, tmp_path, name, pair):
    running = server("[server]\nread_timeout_s = 30\n")
    publisher = raw(running).publish(name)
    reload(running, f"{LISTEN}{pair.ini}", tmp_path)
    player = secure(running).play(name)
    begin(publisher, player)
    port = tls_port(running)
    reload(running, "", tmp_path)
    running.wait_for_line(rf"no longer listening on 127\.0\.0\.1:{port}")
    with pytest.raises(ConnectionRefusedError):
        Wire(port)
    send(publisher, gop(1))
    assert played(player, gop(1)[-1]) == gop(1)
    # And comes back, asking for more.
    reload(running, f"[tls]\ntls_listen = 127.0.0.1:{port}\n{pair.ini}tls_version = 1.3\n", tmp_path)
    old = authority.client_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        TlsWire(port, old)
    assert certificate_of(port, authority) == der(pair.cert)


def test_a_server_may_listen_for_rtmps_only(tmp_path, pair, authority):
    path = tmp_path / "rtmpd.ini"
    path.write_text(f'[server]\nlisten = ""\n{LISTEN}{pair.ini}')
    with subprocess.Popen([sys.executable, "-m", "rtmpd", "-c", path], stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            port = next(found[1] for line in lines if (found := re.search(r"listening on .*:(\d+)", line)))
            assert certificate_of(int(port), authority) == der(pair.cert)
        finally:
            process.terminate()
        assert "listening" not in process.stderr.read()


def test_an_address_can_not_be_for_both(tmp_path, pair):
    port = free_port()
    with pytest.raises(
        AssertionError, match=rf"can't listen on 127.0.0.1:{port}: it overlaps with :{port} of \[server\] listen"
    ):
        Server("", "--listen", f":{port}", "--tls-listen", f"127.0.0.1:{port}", "--tls-cert", str(pair.both))


def test_an_address_may_change_sides(server, authority, tmp_path, pair):
    first, second = (f"127.0.0.1:{free_port()}" for _ in range(2))
    running = server(f"[tls]\ntls_listen = {first}\n{pair.ini}", "--listen", second)
    port = tls_port(running)
    assert certificate_of(port, authority) == der(pair.cert)
    # The flag stays what it is; only the file changes.
    reload(running, f"[tls]\ntls_listen = 127.0.0.1:0\n{pair.ini}", tmp_path)
    running.wait_for_line(rf"no longer listening on {first}")
    assert certificate_of(tls_port(running, 1), authority) == der(pair.cert)


def test_the_dump_of_the_state_has_the_number_of_tls_connections(rtmps, secure, name):
    secure(rtmps).publish(name)
    rtmps.process.send_signal(signal.SIGUSR2)
    rtmps.wait_for_line(r"state: \d+ streams, \d+ connections, [1-9]\d* of them RTMPS")


# Behind a balancer ------------------------------------------------------------------------------------------------------


def test_the_proxy_header_comes_before_tls(server, pair, authority, opened, name):
    running = server(f"[server]\nproxy_protocol_from = 127.0.0.0/8\n{LISTEN}{pair.ini}")
    header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + socket.inet_aton("192.0.2.7") + socket.inet_aton("192.0.2.1")
    header += struct.pack(">HH", 4711, 443)
    plain = opened.enter_context(Wire(tls_port(running)))
    # In one piece with the beginning of TLS, as balancers do.
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = authority.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    plain.write(header + outgoing.read())
    while True:
        incoming.write(plain.read_bytes())
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            continue
    plain.write(outgoing.read())
    running.wait_for_line(r"#\d+ 192\.0\.2\.7:4711 = TLS handshake done")


# The client library and relays ------------------------------------------------------------------------------------------


def test_a_client_explains_an_invalid_server_certificate(rtmps, client, opened, authority, tmp_path, name):
    with pytest.raises(TlsError, match="the server's certificate can't be verified: unable to get local issuer certificate"):
        client(rtmps, name, tls=True).connect()
    with pytest.raises(TransportClosed, match="closed by the peer in the TLS handshake"):
        opened.enter_context(Client(f"rtmps://127.0.0.1:{rtmps.port}/live/x", tls=False)).connect()
    client(rtmps, name, tls=False).publish()


def test_a_client_accepts_an_ssl_context(rtmps, client, authority, name):
    client(rtmps, name, tls=authority.client_context()).publish()


RELAY = "[relay]\nrelay_to = rtmps://{host}:{port}/live/there\nrelay_retry_s = 0.1\nrelay_retry_limit_s = 0.3\n"


def test_a_relay_verifies_the_certificate_of_its_destination(server, raw, authority, tmp_path, opened, name):
    away = tmp_path / "away"
    away.mkdir()
    pair = authority.issue("localhost")
    destination = Server(f"{LISTEN}{pair.ini}", directory=away)
    opened.callback(destination.stop)
    port = tls_port(destination)
    running = server(f"[tls]\ntls_ca = {authority.path}\n{RELAY.format(host='localhost', port=port)}")
    watching = raw(destination).play("there")
    publisher = raw(running).publish(name)
    running.wait_for_line(rf"live/{name}: relay to rtmps://localhost:{port}/live/\S+ is up")
    begin(publisher)
    assert played(watching, gop(0)[-1])
    running.wait_for_line("relay .* is up")


def test_a_relay_with_another_name_in_the_certificate_waits_until_tls_verify_is_off(
    server, raw, authority, tmp_path, opened, name
):
    away = tmp_path / "away"
    away.mkdir()
    destination = Server(f"{LISTEN}{authority.issue('other.example').ini}", directory=away)
    opened.callback(destination.stop)
    relay = RELAY.format(host="localhost", port=tls_port(destination))
    running = server(f"[tls]\ntls_ca = {authority.path}\n{relay}")
    publisher = raw(running).publish(name)
    running.wait_for_line("does not come up: the server's certificate can't be verified: Hostname mismatch, .* 'localhost'")
    wait_until(lambda: len([line for line in running.log() if "Hostname mismatch" in line]) >= 3, "tries")
    # The same again is no news.
    assert len([line for line in running.log() if "Hostname mismatch" in line and "WARNING" in line]) == 1
    destination.wait_for_line(FAILURE + r"the client rejects our certificate: .* \(the client asked for 'localhost'\)")
    reload(running, f"[tls]\ntls_verify = no\n{relay}", tmp_path)
    running.wait_for_line(r"relay to rtmps://\S+ is up")
    publisher.close()
    running.stop()
    assert re.search(r"relay_failures [1-9]", running.lines[-1])


def test_a_relay_to_this_very_server_is_a_loop(server, raw, authority, tmp_path, name, pair):
    running = server(f"{LISTEN}{pair.ini}")
    relay = RELAY.format(host="localhost", port=tls_port(running))
    reload(running, f"[tls]\ntls_listen = 127.0.0.1:0\n{pair.ini}tls_ca = {authority.path}\n{relay}", tmp_path)
    raw(running).publish(name)
    running.wait_for_line("does not come up: the destination is this very server: a loop")


def test_an_unreadable_ca_file_is_an_error_at_start_and_at_a_reload(server, tmp_path):
    with pytest.raises(AssertionError, match=r"\[tls\] tls_ca: /none: No such file"):
        Server("[tls]\ntls_ca = /none\n", directory=tmp_path)
    running = server("[tls]\n")
    reload(running, "[tls]\ntls_ca = /none\n", tmp_path, "reload failed")
    running.wait_for_line(r"reload failed: \[tls\] tls_ca: /none: No such file")
