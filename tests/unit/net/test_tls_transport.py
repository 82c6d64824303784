from __future__ import annotations

import functools
import gc
import ssl
import struct
import time
import weakref

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from rtmpd.config.loader import load_text
from rtmpd.errors import DeadlineExceeded, TlsError, TransportClosed
from rtmpd.net.tls import ServerTls, Tls
from rtmpd.net.tls_transport import KEPT_LIMIT_BYTES, HandshakeTurns, RecordCounter, TlsTransport
from rtmpd.net.transport import RECEIVE_BYTES
from rtmpd.phases import CloseKind, CloseReason
from tests.unit.net.tls_peer import Peer

LIMIT_S = 10
SMALL = 4096


@pytest.fixture(scope="module")
def contexts(authority):
    pair = authority.issue("localhost", "127.0.0.1")
    return authority.server_context(pair), authority.client_context()


@pytest.fixture
def make(make_transport):
    """Make a transport and the peer's socket, before their TLS handshake."""
    return functools.partial(make_transport, TlsTransport)


@pytest.fixture
def pair(make, contexts):
    """Make a server's transport and a client, after their handshake."""

    def connect(send_buffer=None, *, tcp=False, server_context=None, **options):
        transport, sock = make(send_buffer, tcp=tcp)
        peer = Peer(sock, contexts[1])
        shaking = gevent.spawn(peer.handshake)
        transport.secure(server_context or contexts[0], LIMIT_S, **options)
        shaking.get(timeout=LIMIT_S)
        return transport, peer

    return connect


def fill(transport, piece=65536):
    """Send until nothing fits; return what was taken."""
    taken = bytearray()
    number = 0
    while True:
        data = bytes([number & 255]) * piece
        number += 1
        try:
            taken += data[: transport.try_send(data)]
        except BlockingIOError:
            return bytes(taken)


def ending(transport):
    """Read up to the end; return what was read, and what the end was."""
    data = b""
    with gevent.Timeout(LIMIT_S):
        while True:
            try:
                data += transport.recv()
            except TransportClosed as error:
                return data, error


# Both ways --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("tcp", [False, True])
def test_what_goes_in_comes_out(pair, contexts, authority, version, tcp):
    context = authority.server_context(authority.issue("localhost"))
    context.maximum_version = version
    transport, peer = pair(tcp=tcp, server_context=context)
    assert peer.tls.version() == version.name.replace("_", ".")
    assert transport.description.startswith(f"{peer.tls.version()}, ")
    transport.interactive = tcp
    for size in (1, 100, 16384, 16385, 70_000):
        data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        reading = gevent.spawn(peer.read, size)
        transport.send_all(data, LIMIT_S)
        assert reading.get(timeout=LIMIT_S) == data
        sending = gevent.spawn(peer.send, data)
        got = b""
        while len(got) < size:
            piece = transport.recv()
            assert len(piece) <= RECEIVE_BYTES
            got += piece
        assert got == data
        sending.get(timeout=LIMIT_S)
    assert transport.bytes_sent == 1 + 100 + 16384 + 16385 + 70_000


def test_a_client_speaks_to_a_server_of_the_same_kind(make, contexts):
    transport, sock = make()
    server = TlsTransport(sock, "server")
    securing = gevent.spawn(server.secure, contexts[0], LIMIT_S)
    transport.secure(contexts[1], LIMIT_S, host="localhost")
    securing.get(timeout=LIMIT_S)
    transport.send_all(b"question", LIMIT_S)
    assert server.recv() == b"question"
    server.send_all(b"answer", LIMIT_S)
    assert transport.recv() == b"answer"
    assert transport.server_name == "localhost"
    server._flush_watcher.close()


def test_bytes_read_before_the_handshake_are_passed_to_tls(make, contexts):
    transport, sock = make()
    peer = Peer(sock, contexts[1])
    sock.sendall(b"PROXY ...\r\n")
    shaking = gevent.spawn(peer.handshake)
    gevent.sleep(0.01)
    data = transport.recv()
    head, _, rest = data.partition(b"\r\n")
    assert head == b"PROXY ..."
    assert rest
    transport.secure(contexts[0], LIMIT_S, first=rest)
    shaking.get(timeout=LIMIT_S)
    peer.send(b"hello")
    assert transport.recv() == b"hello"


def test_data_with_the_end_of_the_handshake_is_returned_at_once(make, contexts):
    transport, sock = make()
    peer = Peer(sock, contexts[1])

    def shake_and_speak():
        while True:
            try:
                peer.tls.do_handshake()
            except ssl.SSLWantReadError:
                sock.sendall(peer._out.read())
                peer._fill()
            else:
                peer.tls.write(b"hello")
                sock.sendall(peer._out.read())
                return

    shaking = gevent.spawn(shake_and_speak)
    transport.secure(contexts[0], LIMIT_S)
    shaking.get(timeout=LIMIT_S)
    with gevent.Timeout(LIMIT_S):
        assert transport.recv() == b"hello"


def test_a_record_in_two_pieces_is_decrypted(pair):
    transport, peer = pair()
    for split in range(1, 5 + 5 + 1 + 16):
        peer.send(b"hello", [split])
        assert transport.recv() == b"hello"


def test_a_record_byte_by_byte_is_decrypted(pair):
    transport, peer = pair()
    records = peer.encrypt(b"hello")
    reading = gevent.spawn(transport.recv)
    for byte in records[:-1]:
        peer.sock.sendall(bytes([byte]))
        gevent.sleep(0)
        assert not reading.ready()
    peer.sock.sendall(records[-1:])
    assert reading.get(timeout=LIMIT_S) == b"hello"


def test_records_of_one_read_are_returned_without_waiting(pair):
    transport, peer = pair()
    data = b"".join(peer.encrypt(bytes([n]) * 100) for n in range(100))
    peer.sock.sendall(data)
    got = b""
    with gevent.Timeout(LIMIT_S):
        while len(got) < 10_000:
            got += transport.recv()
    assert got == b"".join(bytes([n]) * 100 for n in range(100))


def test_a_peer_that_always_has_more_does_not_hold_the_event_loop(pair):
    transport, peer = pair(tcp=True)
    ticks = []

    def tick():
        while True:
            ticks.append(1)
            gevent.sleep(0.001)

    def flood():
        while True:
            peer.send(bytes(65536))

    greenlets = [gevent.spawn(tick), gevent.spawn(flood)]
    got = 0
    while got < 20 << 20:
        got += len(transport.recv())
    assert len(ticks) > 10
    gevent.killall(greenlets)


# Sending without waiting ------------------------------------------------------------------------------------------------


def test_a_full_socket_takes_one_record_more_and_then_nothing(pair):
    transport, peer = pair(SMALL)
    sent = fill(transport)
    assert 0 < len(transport._rest) <= KEPT_LIMIT_BYTES
    before = len(transport._rest)
    with pytest.raises(BlockingIOError):
        transport.try_send(b"more")
    assert len(transport._rest) == before
    assert peer.read(len(sent)) == sent


@pytest.mark.parametrize("piece", [1, 200, 16384, 16385, 100_000])
def test_taken_bytes_arrive_in_order(pair, piece):
    transport, peer = pair(SMALL)
    total = b""
    for _ in range(5):
        sent = fill(transport, piece)
        assert len(transport._rest) <= KEPT_LIMIT_BYTES
        assert peer.read(len(sent)) == sent
        total += sent
        with gevent.Timeout(LIMIT_S):
            while transport._rest:
                gevent.sleep(0)
    assert total


def test_kept_bytes_are_sent_when_the_socket_takes_them(pair):
    transport, peer = pair(SMALL)
    sent = fill(transport)
    # The event loop sends it without a call.
    assert peer.read(len(sent)) == sent
    gevent.sleep(0.01)
    assert not transport._rest
    assert not transport._watching


def test_watch_writable_calls_back_only_when_nothing_is_kept(pair):
    transport, peer = pair(SMALL)
    sent = fill(transport)
    called = Event()
    kept = []

    def writable():
        kept.append(len(transport._rest))
        transport.unwatch_writable()
        called.set()

    transport.watch_writable(writable)
    gevent.sleep(0.01)
    assert not called.is_set()
    assert peer.read(len(sent)) == sent
    assert called.wait(LIMIT_S)
    assert kept == [0]
    gevent.sleep(0.01)
    assert len(kept) == 1


def test_unwatch_writable_still_sends_kept_bytes(pair):
    transport, peer = pair(SMALL)
    sent = fill(transport)
    transport.watch_writable(lambda: pytest.fail("called"))
    transport.unwatch_writable()
    assert peer.read(len(sent)) == sent
    gevent.sleep(0.01)
    assert not transport._rest


def test_watch_writable_calls_back_until_unwatched(pair):
    transport, _peer = pair()
    calls = []
    over = Event()

    def writable():
        calls.append(1)
        if len(calls) == 3:
            transport.unwatch_writable()
            over.set()

    transport.watch_writable(writable)
    assert over.wait(LIMIT_S)


def test_watch_writable_calls_back_when_the_connection_is_lost(pair):
    transport, peer = pair(SMALL)
    fill(transport)
    called = Event()
    transport.watch_writable(called.set)
    peer.sock.close()
    assert called.wait(LIMIT_S)
    with pytest.raises(OSError, match=r"\w"):
        transport.try_send(b"x")
    assert transport.close_reason.startswith("closed by the peer")


@pytest.mark.parametrize("end", ["close_notify sent", "peer gone"])
def test_a_failed_send_releases_the_callers_buffer(pair, end):
    transport, peer = pair()
    if end == "peer gone":
        peer.sock.close()
    else:
        transport.close(CloseReason(CloseKind.EXPELLED, "test"))
    pending = bytearray(b"x" * 100_000)
    try:
        while True:
            transport.try_send(pending)
    except (ssl.SSLError, ConnectionError):
        pending.clear()
    assert not pending


def test_send_all_waits_until_kept_bytes_are_sent(pair):
    transport, peer = pair(SMALL)
    data = bytes(range(256)) * 1000
    reading = gevent.spawn(peer.read, len(data))
    transport.send_all(data, LIMIT_S)
    assert not transport._rest
    assert reading.get(timeout=LIMIT_S) == data
    assert transport.bytes_sent == len(data)


def test_bytes_on_their_way_through_tls_are_held(pair):
    transport, _ = pair()
    assert transport.held_bytes == 0
    fill(transport)
    assert 0 < transport.held_bytes <= KEPT_LIMIT_BYTES
    kept = transport.held_bytes
    sending = gevent.spawn(transport.send_all, bytes(100_000), LIMIT_S)
    gevent.sleep(0)
    assert transport.held_bytes == kept + 100_000
    sending.kill()
    assert transport.held_bytes == kept


def test_sending_has_a_deadline(pair):
    transport, _peer = pair(SMALL)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"sending took longer than 0\.05 s"):
        transport.send_all(bytes(1 << 20), 0.05)
    assert time.monotonic() - begun < LIMIT_S
    assert not transport.sending


def test_recv_works_while_the_socket_takes_nothing(pair):
    transport, peer = pair(SMALL)
    fill(transport)
    transport.watch_writable(lambda: None)
    peer.send(b"still here")
    assert transport.recv() == b"still here"


def test_a_peer_that_does_not_read_tls_answers_is_closed(pair):
    transport, _peer = pair(SMALL)
    fill(transport)
    for _ in range(10):
        # What OpenSSL says to a peer that asks for new keys again and again.
        transport._outgoing.write(bytes(5000))
        transport._send_own()
        if transport.close_reason:
            break
        assert len(transport._rest) <= KEPT_LIMIT_BYTES
    assert transport.close_reason == "the peer requests TLS messages and does not read them"


# The handshake ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (b"\x03" + bytes(1536), r"the client speaks plain RTMP; this port is for rtmps://"),
        (b"GET / HTTP/1.1\r\n\r\n", "the client speaks plain HTTP"),
        (b"\x00\x01\x02", r"expected a TLS handshake, found b'\\x00\\x01\\x02'"),
        (b"\x16\x03\x01\x00\x05hello", "."),
    ],
)
def test_bytes_that_are_not_tls_are_explained(make, contexts, first, message):
    transport, sock = make()
    sock.sendall(first)
    with pytest.raises(TlsError, match=message):
        transport.secure(contexts[0], LIMIT_S)


def test_the_handshake_has_a_deadline(make, contexts):
    transport, sock = make()
    sock.sendall(b"\x16\x03\x01")
    with pytest.raises(DeadlineExceeded, match=r"the TLS handshake took longer than 0\.05 s"):
        transport.secure(contexts[0], 0.05)


def test_leaving_during_the_handshake_is_no_tls_error(make, contexts):
    transport, sock = make()
    sock.sendall(b"\x16\x03\x01")
    sock.shutdown(socket.SHUT_WR)
    with pytest.raises(TransportClosed, match="closed by the peer in the TLS handshake") as caught:
        transport.secure(contexts[0], LIMIT_S)
    assert not isinstance(caught.value, TlsError)


@pytest.mark.parametrize(
    ("host", "trusting", "message"),
    [
        ("other.example", True, "the server's certificate can't be verified: Hostname mismatch.*other.example"),
        ("localhost", False, "the server's certificate can't be verified: unable to get local issuer"),
    ],
)
def test_a_client_explains_an_invalid_server_certificate(make, contexts, host, trusting, message):
    transport, sock = make()
    server = Peer(sock, contexts[0], None)
    shaking = gevent.spawn(server.handshake)
    context = contexts[1] if trusting else ssl.create_default_context()
    with pytest.raises(TlsError, match=message):
        transport.secure(context, LIMIT_S, host=host)
    # And tells the server.
    with pytest.raises(ssl.SSLError, match="ALERT"):
        shaking.get(timeout=LIMIT_S)


def test_a_server_explains_the_alert_of_a_client(make, contexts):
    transport, sock = make()
    peer = Peer(sock, ssl.create_default_context())

    def distrust():
        with pytest.raises(ssl.SSLCertVerificationError):
            peer.handshake()
        sock.sendall(peer._out.read())

    shaking = gevent.spawn(distrust)
    with pytest.raises(TlsError, match="the client does not trust our certificate: it does not know the issuer"):
        transport.secure(contexts[0], LIMIT_S)
    shaking.get(timeout=LIMIT_S)


def test_no_common_version_is_explained(make, contexts, authority):
    transport, sock = make()
    old = authority.client_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    strict = authority.server_context(authority.issue("localhost"))
    strict.minimum_version = ssl.TLSVersion.TLSv1_3
    shaking = gevent.spawn(Peer(sock, old).handshake)
    with pytest.raises(TlsError, match=r"no TLS version in common with the client \(ours: TLS 1\.3 and newer\)"):
        transport.secure(strict, LIMIT_S)
    with pytest.raises(ssl.SSLError):
        shaking.get(timeout=LIMIT_S)


def test_an_invalid_server_name_is_an_error(make, contexts):
    transport, _ = make()
    with pytest.raises(TlsError, match="is not a valid TLS server name"):
        transport.secure(contexts[1], LIMIT_S, host=".")


def test_accept_secures_a_server_connection(make, contexts, authority):
    transport, sock = make()
    settings = Tls(ServerTls(load_text(f"[tls]\n{authority.issue('localhost').ini}").tls))
    shaking = gevent.spawn(Peer(sock, contexts[1]).handshake)
    settings.accept(transport, LIMIT_S, transport.recv())
    shaking.get(timeout=LIMIT_S)
    assert transport.server_name == "localhost"


def test_accept_raises_when_a_reload_has_ended_rtmps(make):
    transport, _ = make()
    with pytest.raises(TransportClosed, match="RTMPS is no longer served"):
        Tls().accept(transport, LIMIT_S)


def test_handshakes_compute_one_at_a_time_and_leave_the_event_loop_its_turn():
    turns = HandshakeTurns()
    order = []

    def step():
        begun = time.thread_time()
        while time.thread_time() - begun < 0.005:
            pass
        order.append("step")

    def tick():
        while True:
            gevent.sleep(0.001)
            order.append("tick")

    ticking = gevent.spawn(tick)
    gevent.joinall([gevent.spawn(turns.run, step) for _ in range(10)], timeout=LIMIT_S)
    ticking.kill()
    text = "".join(each[0] for each in order)
    assert text.count("s") == 10
    assert "ss" not in text


def test_a_failed_step_is_followed_by_a_pause_too():
    turns = HandshakeTurns()

    def step():
        begun = time.thread_time()
        while time.thread_time() - begun < 0.02:
            pass
        raise ssl.SSLError

    begun = time.monotonic()
    with pytest.raises(ssl.SSLError):
        turns.run(step)
    assert time.monotonic() - begun > 0.035


def test_a_client_that_has_gone_before_its_turn_costs_no_step(make, contexts):
    steps = []

    class Recorded(HandshakeTurns):
        def run(self, step, check=lambda: None):
            super().run(lambda: (steps.append(step), step()), check)

    turns = Recorded()
    turns._turn.acquire()
    transport, sock = make()
    hello = b"\x16\x03\x01\x00\x05\x01\x00"
    shaking = gevent.spawn(transport.secure, contexts[0], LIMIT_S, first=hello, turns=turns)
    gevent.sleep(0)
    assert turns.waiting == 1
    sock.sendall(b"more of it")
    sock.close()
    turns._turn.release()
    with pytest.raises(TransportClosed, match=r"^closed by the peer in the TLS handshake$"):
        shaking.get(timeout=LIMIT_S)
    assert (steps, turns.waiting) == ([], 0)
    # The turn is free again.
    turns.run(lambda: None, lambda: None)


# The end ----------------------------------------------------------------------------------------------------------------


def test_a_close_notify_ends_the_connection(pair):
    transport, peer = pair()
    peer.send(b"last words")
    peer.sock.sendall(peer.close_notify())
    data, error = ending(transport)
    assert (data, str(error)) == (b"last words", "closed by the peer")


def test_an_end_without_a_close_notify_is_no_error(pair):
    transport, peer = pair()
    peer.send(b"last words")
    peer.sock.shutdown(socket.SHUT_WR)
    data, error = ending(transport)
    assert (data, str(error)) == (b"last words", "closed by the peer")
    assert not isinstance(error, TlsError)


@pytest.mark.parametrize("missing", [1, 20, 25])
def test_an_incomplete_record_is_reported(pair, missing):
    transport, peer = pair()
    peer.send(b"whole")
    record = peer.encrypt(b"half")
    peer.sock.sendall(record[:-missing])
    peer.sock.shutdown(socket.SHUT_WR)
    data, error = ending(transport)
    # Of a header that is cut itself, what is missing of it.
    shown = missing if missing < len(record) - 5 else missing - (len(record) - 5)
    assert data == b"whole"
    assert str(error) == f"closed by the peer: the connection ended {shown} bytes before the end of a TLS record"


def test_a_reset_says_so(pair):
    transport, peer = pair(tcp=True)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.sock.close()
    assert str(ending(transport)[1]) == "closed by the peer (connection reset)"


def test_a_modified_record_is_a_tls_error(pair):
    transport, peer = pair()
    record = bytearray(peer.encrypt(b"hello"))
    record[-1] ^= 1
    peer.sock.sendall(bytes(record))
    error = ending(transport)[1]
    assert isinstance(error, TlsError)
    assert "modified on its way" in str(error)
    # The peer is told, by an alert.
    with pytest.raises(ssl.SSLError, match="ALERT"):
        peer.read_some()


def test_closing_sends_a_close_notify(pair):
    transport, peer = pair()
    reading = gevent.spawn(ending, transport)
    gevent.sleep(0)
    transport.try_send(b"last words")
    transport.close(CloseReason(CloseKind.EXPELLED, "enough"))
    transport.close(CloseReason(CloseKind.EXPELLED, "not the first reason"))
    assert peer.read_all() == b"last words"
    assert str(reading.get(timeout=LIMIT_S)[1]) == "enough"
    with pytest.raises(OSError, match=r"\w"):
        transport.try_send(b"more")


def test_closing_with_half_a_record_sent_sends_no_close_notify(pair):
    transport, peer = pair(SMALL)
    sent = fill(transport)
    begun = time.monotonic()
    transport.close(CloseReason(CloseKind.EXPELLED, "enough"))
    assert time.monotonic() - begun < 1
    got = bytearray()
    # The end of the connection, not a record that can't be decrypted.
    with pytest.raises(ssl.SSLEOFError):  # noqa: PT012
        while True:
            got += peer.read_some()
    assert sent.startswith(bytes(got))


def test_linger_delivers_kept_bytes_while_the_peer_still_sends(pair):
    transport, peer = pair(SMALL, tcp=True)
    over = Event()

    def chat():
        while not over.is_set():
            peer.send(bytes(1000))
            gevent.sleep(0.001)

    chatting = gevent.spawn(chat)
    sent = fill(transport)
    lingering = gevent.spawn(transport.linger, LIMIT_S)
    assert peer.read_all() == sent
    over.set()
    chatting.join()
    peer.sock.close()
    lingering.get(timeout=LIMIT_S)


def test_lingering_has_a_deadline(pair):
    transport, _peer = pair(SMALL)
    fill(transport)
    with gevent.Timeout(LIMIT_S):
        transport.linger(0.05)


def test_ensure_open_takes_no_bytes(pair):
    transport, peer = pair()
    transport.ensure_open()
    peer.send(b"hello")
    transport.ensure_open()
    transport.ensure_open()
    assert transport.recv() == b"hello"
    peer.send(b"again")
    assert transport.recv() == b"again"
    transport.ensure_open()


def test_ensure_open_keeps_half_a_record(pair):
    transport, peer = pair()
    record = peer.encrypt(b"hello")
    peer.sock.sendall(record[:10])
    transport.ensure_open()
    reading = gevent.spawn(transport.recv)
    gevent.sleep(0.01)
    peer.sock.sendall(record[10:])
    assert reading.get(timeout=LIMIT_S) == b"hello"


@pytest.mark.parametrize("orderly", [True, False])
def test_ensure_open_raises_when_the_peer_has_left(pair, orderly):
    transport, peer = pair()
    peer.send(b"last words")
    if orderly:
        peer.sock.sendall(peer.close_notify())
    else:
        peer.sock.shutdown(socket.SHUT_WR)
    # What it has said is still to be heard.
    transport.ensure_open()
    assert transport.recv() == b"last words"
    with pytest.raises(TransportClosed, match="closed by the peer"):
        transport.ensure_open()
    with pytest.raises(TransportClosed, match="closed by the peer"):
        transport.recv()


def test_ensure_open_raises_after_a_close_notify(pair):
    transport, peer = pair()
    peer.sock.sendall(peer.close_notify())
    with pytest.raises(TransportClosed, match="closed by the peer"):
        transport.ensure_open()


def test_ensure_open_raises_after_close(pair):
    transport, _peer = pair()
    transport.close(CloseReason(CloseKind.EXPELLED, "enough"))
    with pytest.raises(TransportClosed, match="enough"):
        transport.ensure_open()


def test_dispose_frees_what_openssl_holds(pair):
    transport, _peer = pair()
    held = weakref.ref(transport._tls)
    gc.disable()
    try:
        transport.dispose()
        assert held() is None
    finally:
        gc.enable()
    with pytest.raises(OSError, match="disposed"):
        transport.try_send(b"x")


# Records ----------------------------------------------------------------------------------------------------------------


def test_records_are_counted_in_any_pieces():
    data = b"".join(b"\x17\x03\x03" + size.to_bytes(2, "big") + bytes(size) for size in (0, 1, 5, 300, 16640))
    for step in (1, 2, 3, 5, 7, 100, 20_000):
        counter = RecordCounter()
        for index in range(0, len(data), step):
            counter.feed(data[index : index + step])
        assert counter.missing == 0
        counter.feed(b"\x17\x03")
        assert counter.missing == 3
        counter.feed(b"\x03\x01\x00")
        assert counter.missing == 256
