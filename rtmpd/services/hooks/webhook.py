"""Webhooks: events are posted to a web server, as JSON.

The request is made by ``requests`` in a native thread. Its timeouts are for one read each, so a server that sends a byte now
and then could keep a thread for ever: the greenlet that waits has a deadline for the whole exchange, and shuts the thread's
sockets down when it is over. No answer is read beyond a few KiB, no redirect is followed, no proxy or password is taken from
the environment. What ``requests`` raises has the whole URL in it, so it is put into other words before it is logged.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import os
import socket
import ssl
import threading
import time
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import gevent
import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

import rtmpd
from rtmpd.services.hooks.board import Outcome
from rtmpd.services.hooks.notice import json_body
from rtmpd.services.hooks.share import Cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rtmpd.config.hook_targets import WebhookHook
    from rtmpd.config.model import HooksConfig
    from rtmpd.config.secret import Secret
    from rtmpd.services.hooks.notice import Notice
    from rtmpd.services.hooks.share import CpuShare
    from rtmpd.util.threads import Threads

__all__ = ["Webhook", "reason", "signature"]

_CONNECT_S = 10.0
_ANSWER_BYTES = 65536
_READ_BYTES = 8192
_ABORT_S = 2.0
"""How long a thread may take to notice that its sockets are shut; looking up a name can't be cut short."""
_AGAIN = frozenset({408, 429})


def signature(secret: Secret, body: bytes) -> str:
    """Return what the signature header says of a body."""
    return "sha256=" + hmac.new(secret.reveal().encode(), body, hashlib.sha256).hexdigest()


# What can be cut short ----------------------------------------------------------------------------------------------------


class _Wires:
    """The sockets of one thread. Another thread can shut them down, which ends whatever waits for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._twins: WeakKeyDictionary[HTTPConnection, socket.socket] = WeakKeyDictionary()

    def watch(self, connection: HTTPConnection, sock: socket.socket) -> None:
        """Keep a second descriptor of a connection's socket: the first one changes hands with TLS, and with the answer."""
        with self._lock:
            old = self._twins.pop(connection, None)
            if old is not None:
                old.close()
            self._twins[connection] = sock.dup()

    def tidy(self) -> None:
        """Let go of the sockets of connections that are closed: only then does the peer see it."""
        with self._lock:
            for connection, twin in list(self._twins.items()):
                if connection.sock is None:
                    twin.close()
                    del self._twins[connection]

    def shut(self) -> None:
        """Shut all sockets down. Does not wait."""
        with self._lock:
            for twin in self._twins.values():
                with contextlib.suppress(OSError):
                    twin.shutdown(socket.SHUT_RDWR)


class _Local(threading.local):
    """What each thread has: a session, which keeps connections open, and its sockets."""

    def __init__(self) -> None:
        self.wires = _Wires()
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.session.headers["User-Agent"] = f"rtmpd/{rtmpd.__version__}"
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, _Adapter())


class _Watched:
    """A connection of urllib3 whose socket another thread can shut down."""

    def _new_conn(self) -> socket.socket:
        sock: socket.socket = super()._new_conn()  # type: ignore[misc]
        _local.wires.watch(self, sock)  # type: ignore[arg-type]
        return sock


class _PlainConnection(_Watched, HTTPConnection):
    pass


class _TlsConnection(_Watched, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    def __init__(self) -> None:
        super().__init__(pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}


_local = _Local()


class _Exchange:
    """One request and its answer. `run` belongs to a thread, `abort` to the event loop.

    Attributes:
        outcome: What the answer's status means, once that has come, whatever becomes of the rest.
        cpu_s: What it has cost, once it is over.
    """

    def __init__(self, url: str, body: bytes, headers: dict[str, str], timeout_s: float, ca: str | bool) -> None:
        self._url = url
        self._ca = ca
        self._body = body
        self._headers = headers
        self._timeout_s = timeout_s
        self._wires: _Wires | None = None
        self._aborted = False
        self.outcome: Outcome | None = None
        self.cpu_s = 0.0

    def run(self) -> Outcome:
        """Make the request and judge the answer."""
        if self._aborted:
            return Outcome("cut short", again=True)
        wires = self._wires = _local.wires
        began_s = time.thread_time()
        try:
            with _local.session.post(
                self._url,
                data=self._body,
                headers=self._headers,
                timeout=(min(_CONNECT_S, self._timeout_s), self._timeout_s),
                allow_redirects=False,
                stream=True,
                verify=self._ca,
            ) as answer:
                self.outcome = _judge(answer)
                if _read_out(answer) or self.outcome.problem:
                    return self.outcome
                return Outcome(remark=f"it answered more than {_ANSWER_BYTES} bytes; the rest was not read")
        except requests.Timeout as error:
            stage = "no connection" if isinstance(error, requests.ConnectTimeout) else "no answer"
            return Outcome(f"{stage} in {self._timeout_s:g} s", again=True, timed_out=True)
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            again = not isinstance(error, ValueError)
            return Outcome(reason(error) if again else "its URL can't be used", again=again)
        finally:
            self._wires = None
            wires.tidy()
            self.cpu_s = time.thread_time() - began_s

    def abort(self) -> None:
        """End it, wherever it is. Does not wait."""
        self._aborted = True
        wires = self._wires
        if wires is not None:
            wires.shut()


def _judge(answer: requests.Response) -> Outcome:
    """Say what the status of an answer means."""
    status = answer.status_code
    if 200 <= status < 300:
        return Outcome()
    if 300 <= status < 400:
        return Outcome(f"it answered {status}; redirects are not followed")
    if status in _AGAIN or status >= 500:
        return Outcome(f"it answered {status}", again=True, wait_s=_retry_after_s(answer))
    return Outcome(f"it answered {status}")


def _read_out(answer: requests.Response) -> bool:
    """Read the body, so that the connection can be used again; return whether it was short enough.

    One that breaks off is none of our business: the status has come.
    """
    read = 0
    try:
        while read <= _ANSWER_BYTES:
            part = answer.raw.read(_READ_BYTES, decode_content=False)
            if not part:
                return True
            read += len(part)
    except (HTTPError, OSError):
        return True
    return False


def _retry_after_s(answer: requests.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0


# What went wrong, without the URL -----------------------------------------------------------------------------------------


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that it wraps."""
    seen: list[BaseException] = []
    queue: list[object] = [error]
    while queue and len(seen) < 20:
        each = queue.pop(0)
        if isinstance(each, BaseException) and each not in seen:
            seen.append(each)
            yield each
            queue += [*each.args, getattr(each, "reason", None), each.__cause__, each.__context__]


def reason(error: BaseException) -> str:
    """Say what is wrong with a connection, in words that have nothing of the request in them."""
    known = list(_chain(error))
    for each in known:
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"its certificate is not good: {each.verify_message}"
        if isinstance(each, ssl.SSLError):
            return f"TLS failed: {each.reason or 'closed'}"
        if isinstance(each, socket.gaierror):
            return "its name is not known" if each.errno == socket.EAI_NONAME else "its name can't be looked up now"
    names = {type(each).__name__ for each in known}
    if "RemoteDisconnected" in names:
        return "it closed the connection without an answer"
    for each in known:
        if isinstance(each, OSError) and each.errno is not None and each.errno in errno.errorcode:
            return os.strerror(each.errno)
    if names & {"BadStatusLine", "LineTooLong", "HTTPException", "UnknownProtocol", "InvalidHeader", "InvalidChunkLength"}:
        return "its answer is not HTTP"
    return f"no connection: {type(error).__name__}"


# The carrier --------------------------------------------------------------------------------------------------------------


class Webhook:
    """Posts events to one URL.

    Args:
        target: Where to.
        threads: Make the requests.
        share: Says when.
        ca: Gives the authorities that sign the certificate of an https:// server, as ``requests`` has them.
    """

    def __init__(
        self, target: WebhookHook, threads: Threads, share: CpuShare, ca: Callable[[], str | bool] = lambda: True
    ) -> None:
        self.label = target.label
        self._ca = ca
        self._share = share
        self._cost = Cost()
        self._url = target.url
        self._threads = threads

    def carry(self, notice: Notice, attempt: int, config: HooksConfig) -> Outcome:
        """Post an event and wait for the answer."""
        body = json_body(notice)
        headers = {
            "Content-Type": "application/json",
            "X-Rtmpd-Event": notice.type,
            "X-Rtmpd-Event-Id": notice.id,
            "X-Rtmpd-Attempt": str(attempt),
        }
        if config.hook_secret:
            headers["X-Rtmpd-Signature"] = signature(config.hook_secret, body)
        timeout_s = config.hook_timeout_s
        self._share.wait(self._cost)
        exchange = _Exchange(self._url, body, headers, timeout_s, self._ca())
        job = None
        try:
            with gevent.Timeout(timeout_s, False):  # type: ignore[arg-type]
                job = self._threads.spawn(exchange.run)
                outcome = job.get()
                self._cost.add(exchange.cpu_s)
                return outcome
            exchange.abort()
            if job is not None:
                with gevent.Timeout(_ABORT_S, False):
                    job.wait()
        except gevent.GreenletExit:
            exchange.abort()
            raise
        judged = exchange.outcome
        if judged is not None:
            return judged if judged.problem else Outcome(remark=f"its answer did not end in {timeout_s:g} s")
        return Outcome(f"no whole answer in {timeout_s:g} s", again=True, timed_out=True)
