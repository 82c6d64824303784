"""Asking a web server: one POST with JSON, in a thread of its own.

``requests`` bounds each single read and no more, so a server that sends a byte now and then could hold a thread for ever:
whoever waits cuts the connection when the time is over. Nothing here tells the URL, which may hold a password, not even an
exception.
"""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from rtmpd.config.access_rules import is_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rtmpd.config.secret import Secret

__all__ = ["ANSWER_LIMIT_BYTES", "Answer", "Call", "CallbackFailed", "name_of", "place_of"]

ANSWER_LIMIT_BYTES = 8 << 10
_OK = 200
_SERVER_ERROR = 500


class CallbackFailed(Exception):
    """The callback gave no answer that could be used; the message says why, without its URL."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a callback says.

    Attributes:
        allowed: Whether it lets the client in.
        status: The status code.
        body: The beginning of the body.
    """

    allowed: bool
    status: int
    body: bytes = b""


_thread = threading.local()


def _watched(sock: socket.socket) -> socket.socket:
    call: Call = _thread.call
    call.watch(sock)
    return sock


class _Lines:
    """Hands out the lines of a response's head, and remembers the last one."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.last = b""

    def readline(self, limit: int) -> bytes:
        self.last = self._file.readline(limit)
        return self.last

    def close(self) -> None:
        self._file.close()


class _WholeHead(HTTPResponse):
    """A response whose head has come to its end.

    The library takes the end of the connection for the end of the headers. Of an answer that breaks off there, its length and
    its body would be missing, and with them the name of the stream.
    """

    fp: Any

    def begin(self) -> None:
        file = self.fp
        self.fp = lines = _Lines(file)
        try:
            super().begin()
        finally:
            # It may have closed its file, where there is no body.
            if self.fp is lines:
                self.fp = file
        if not lines.last:
            raise HTTPException("the head broke off")


class _Plain(HTTPConnection):
    response_class = _WholeHead

    def _new_conn(self) -> socket.socket:
        return _watched(super()._new_conn())


class _Encrypted(HTTPSConnection):
    response_class = _WholeHead

    def _new_conn(self) -> socket.socket:
        return _watched(super()._new_conn())


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _EncryptedPool(HTTPSConnectionPool):
    ConnectionCls = _Encrypted


class _Adapter(HTTPAdapter):
    """Makes connections that a `Call` can cut."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _EncryptedPool}


class Call:
    """One question.

    Args:
        url: Whom to ask.
        question: What is sent, as JSON.
        limit_s: The most that connecting, and each single read, may take.
        ca: The authorities that sign the certificate of an https:// server, as ``requests`` has them.
    """

    def __init__(self, url: Secret, question: Mapping[str, str], limit_s: float, ca: str | bool = True) -> None:
        self._url = url
        self._question = question
        self._limit_s = limit_s
        self._ca = ca
        self._sock: socket.socket | None = None
        self._cut = False

    def watch(self, sock: socket.socket) -> None:
        """Remember a connection that was made, to cut it; raises OSError if that is already due."""
        # A descriptor of its own: TLS takes the other one away.
        self._sock = sock.dup()
        if self._cut:
            self.cut()
            raise ConnectionAbortedError

    def cut(self) -> None:
        """End the call: nobody waits for the answer any more. From any thread."""
        self._cut = True
        sock = self._sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                # It has ended meanwhile.
                return

    def run(self) -> Answer:
        """Ask, and return the answer. In a thread that may block.

        Raises:
            CallbackFailed: There was none, or it made no sense.
        """
        _thread.call = self
        try:
            return self._ask()
        except requests.exceptions.SSLError:
            raise CallbackFailed("its certificate can't be verified, or TLS failed") from None
        except requests.exceptions.Timeout:
            raise CallbackFailed(f"it did not answer within {self._limit_s:g} s") from None
        except (HTTPError, HTTPException):
            # Of urllib3 and http.client: requests lets them through while a body is read.
            raise CallbackFailed("its answer broke off") from None
        except (requests.exceptions.RequestException, OSError, ValueError):
            # Their texts have the URL in them.
            raise CallbackFailed("it can't be reached, or does not speak HTTP") from None
        finally:
            _thread.call = None
            if self._sock is not None:
                self._sock.close()

    def _ask(self) -> Answer:
        with requests.Session() as session:
            # No proxies, no .netrc, no certificates that only the environment of the process knows: tls_ca says which.
            session.trust_env = False
            for scheme in ("http://", "https://"):
                session.mount(scheme, _Adapter())
            response = session.post(
                self._url.reveal(),
                data=json.dumps(self._question),
                headers={
                    "Content-Type": "application/json",
                    "User-Agent": "rtmpd",
                    "Accept-Encoding": "identity",
                    "Connection": "close",
                },
                timeout=self._limit_s,
                allow_redirects=False,
                stream=True,
                verify=self._ca,
            )
            with response:
                if response.status_code >= _SERVER_ERROR:
                    raise CallbackFailed(f"it answered with status {response.status_code}")
                if response.status_code != _OK:
                    return Answer(False, response.status_code)
                body = b""
                # To its end, which is where a length that was not kept is noticed.
                while data := response.raw.read(ANSWER_LIMIT_BYTES + 1 - len(body), decode_content=False):
                    body += data
                    if len(body) > ANSWER_LIMIT_BYTES:
                        raise CallbackFailed(f"its answer is longer than {ANSWER_LIMIT_BYTES} bytes")
                return Answer(True, response.status_code, body)


def name_of(answer: Answer) -> str:
    """Return the name that an answer gives a publish, ``{"name": NAME}``; empty if it gives none.

    A body that is no JSON object says nothing: that is how go-rtmp has it.

    Raises:
        CallbackFailed: It was meant to be one, or its name can't be the name of a stream. To go on would be to publish under
            the name that the client gave, which may be a secret.
    """
    text = answer.body.strip()
    if not text.startswith(b"{"):
        return ""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise CallbackFailed("its answer is broken JSON") from None
    name = found.get("name")
    if name is None:
        return ""
    if not isinstance(name, str) or not is_name(name) or not all(name.split("/")):
        raise CallbackFailed("the name in its answer can't be the name of a stream")
    return name


def place_of(url: Secret) -> str:
    """Return what may be logged of a URL: scheme, host and port."""
    parts = urlsplit(url.reveal())
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
