"""HLS: the routes of playlists and media, which viewers get in sessions."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote
from weakref import WeakKeyDictionary

from rtmpd.config.access_rules import address_group
from rtmpd.errors import HttpError
from rtmpd.http.messages import PLAYLIST, Response
from rtmpd.http.routes import Route
from rtmpd.live.grant import Grant
from rtmpd.media.hls.playlist import parse_name
from rtmpd.media.hls.window import Answer, parse_directives
from rtmpd.services.hls.packagers import Packagers
from rtmpd.services.hls.pages import Member, Playlists, index_playlist, media_response, prefix_of, report_of
from rtmpd.services.hls.sessions import Admitted, Session, SessionConnection, Sessions, credentials_of
from rtmpd.util.event_loop import SharedSlices
from rtmpd.util.stream_key import StreamKey
from rtmpd.viewers.requests import authorize, outcome, play_request, refusals, stream_of
from rtmpd.viewers.viewer import ViewerConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rtmpd.config.model import Config, HlsConfig
    from rtmpd.http.messages import Request
    from rtmpd.http.routes import Exchange
    from rtmpd.hub import Hub
    from rtmpd.media.hls.playlist import Report, Resource
    from rtmpd.media.hls.window import Directives
    from rtmpd.services.hls.packaged import Packaged
    from rtmpd.services.hls.packager import Packager

READY_S = 10.0
"""How long a request waits until a stream is packaged: hls.js waits no longer for the first byte of a playlist."""

OTHERS_S = 2.0
"""How long an index waits for further renditions when it has one."""

_HELD_PER_CONNECTION = 4
"""How many requests of an address may be held for each connection that it may have: players hold those of two playlists and of
their next parts."""

_SECRET_BYTES = 32
_REPORTS = 16
_PROTOCOL = "hls"
_NOT_YET = (("Retry-After", "1"),)
_NO_STORE = (("Cache-Control", "no-store"),)


class HlsOptions(NamedTuple):
    """The part of a configuration that HLS uses.

    Attributes:
        hls: ``[hls]``.
        renditions_of: Returns ``hls_renditions`` of the application that a path belongs to.
    """

    hls: HlsConfig
    renditions_of: Callable[[str], tuple[str, ...]]


class Hls:
    """The service.

    Args:
        hub: The hub.
        options: Its options.

    Attributes:
        packagers: The streams as segments.
        sessions: The viewers.
        routes: The routes, which must come before those of streams and pages.
    """

    def __init__(self, hub: Hub, options: HlsOptions) -> None:
        self._hub = hub
        self._options = options
        self._random_secret = os.urandom(_SECRET_BYTES)
        self.packagers = Packagers(hub, options.hls)
        self.sessions = Sessions(hub, self._secret)
        self._held = 0
        self._held_by_address: Counter[str] = Counter()
        self._slices = SharedSlices()
        self._playlists: WeakKeyDictionary[Packaged, Playlists] = WeakKeyDictionary()
        # Blocking requests hold no place, and media is shared by all viewers.
        self.routes = [
            Route("/{key}/index.m3u8", self._serve_index, long=True, cors=True),
            Route("/{key}/{rendition}/media.m3u8", self._serve_playlist, long=True, cors=True),
            *(
                Route(f"/{{key}}/{{rendition}}/{name}", self._serve_media, long=True, cors=True)
                for name in ("seg-{name}.m4s", "part-{name}.m4s", "init-{name}.mp4")
            ),
        ]

    @staticmethod
    def select(config: Config) -> HlsOptions:
        """Return the options of ``[hls]``, and a function for those of applications."""

        def renditions_of(app: str) -> tuple[str, ...]:
            found = config.application(app)
            return found[1].hls.hls_renditions if found is not None else ()

        return HlsOptions(config.hls, renditions_of)

    @property
    def _secret(self) -> bytes:
        return self._options.hls.hls_secret.reveal().encode() or self._random_secret

    def start(self) -> None:
        """Start packaging, and to end sessions."""
        self.packagers.start()
        self.sessions.start()
        self._hub.gauges["hls_sessions"] = lambda: len(self.sessions)

    def reload(self, options: HlsOptions) -> None:
        """Apply new options."""
        self._options = options
        self.packagers.reload(options.hls)
        self.sessions.reload(self._secret)

    def stop(self, limit_s: float) -> None:
        """End all sessions and packagers."""
        self.sessions.stop()
        self.packagers.stop(limit_s)

    # Streams and their renditions ------------------------------------------------------------------------------------------

    def _family(self, key: StreamKey) -> list[StreamKey]:
        """Return a stream and those that are its renditions by their names, whether they are live or not."""
        return [key, *(StreamKey(key + suffix) for suffix in self._options.renditions_of(key.app))]

    def _origins(self, key: StreamKey) -> list[StreamKey]:
        """Return the streams whose viewers may play a stream: itself, and those that it is a rendition of."""
        suffixes = self._options.renditions_of(key.app)
        return [key, *(StreamKey(key.removesuffix(each)) for each in suffixes if key.name.endswith(each) and key.name != each)]

    def _packager(self, key: StreamKey) -> Packager:
        """Return the packager of a stream; raises `HttpError`."""
        packager = self.packagers.find(key)
        if packager is None:
            stream = self._hub.streams.get(key)
            known = stream is not None and stream.available
            text = f"There is no HLS of {key}: it is off." if known else f"{key} is not being published."
            raise HttpError(404, text)
        packager.touch()
        return packager

    @staticmethod
    def _renditions_of(packager: Packager, deadline_s: float) -> Sequence[Packaged]:
        """Return the renditions of a stream; waits until they are known; raises `HttpError`."""
        if not packager.renditions and not packager.problem:
            packager.wait_ready(max(0.0, deadline_s - time.monotonic()))
        if packager.renditions:
            return packager.renditions
        if packager.problem:
            raise HttpError(415, f"HLS can't carry {packager.key}: {packager.problem}")
        if packager.ended:
            raise HttpError(404, f"{packager.key} has ended.")
        raise HttpError(503, f"No media of {packager.key} has arrived yet.", _NOT_YET)

    def _rendition(
        self, request: Request, key: StreamKey, number: int | None = None, session: Session | None = None
    ) -> tuple[Packager, Packaged]:
        """Return the rendition that a request is for, of the publish that it is for.

        Args:
            request: The request.
            key: The stream.
            number: The sequence number that it is for; None: it has none.
            session: The session of a request for a playlist.

        Raises:
            HttpError: There is no such rendition.
        """
        # It may begin the packager of a new publish, which makes that of the one before the earlier one.
        packager = self._packager(key)
        name = request.captured["rendition"]
        earlier = self._earlier_rendition(key, name, number, session)
        if earlier is not None:
            return earlier
        if session is not None:
            session.packagers[key] = packager
        for each in self._renditions_of(packager, time.monotonic() + READY_S):
            if each.name == name:
                return packager, each
        raise HttpError(404, f"{key} has no such rendition.")

    def _earlier_rendition(
        self, key: StreamKey, name: str, number: int | None, session: Session | None
    ) -> tuple[Packager, Packaged] | None:
        """Return a rendition of the publish before the present one if a request is for that, and not for the present one.

        A player can't continue its buffers with the tracks of another publish: it gets the end of the one that it plays.
        Sequence numbers tell them apart, also for players behind a cache, which are one session here. Without a number, a
        session gets the publish that it began with; one without an id gets its end once, since the next player with the same
        address may be a new one.
        """
        packager = self.packagers.earlier(key)
        found = next((each for each in packager.renditions if each.name == name), None) if packager is not None else None
        if packager is None or found is None:
            return None
        if number is not None:
            return (packager, found) if number <= found.window.next_part[0] else None
        if session is None or session.packagers.get(key) is not packager or (session.credentials and found in session.finished):
            return None
        return packager, found

    # Authorization -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _refusals(self, exchange: Exchange, connection: ViewerConnection) -> Iterator[None]:
        """Count, log and answer refusals; report the request as one for a play."""
        exchange.outcome = outcome()
        with refusals(self._hub, exchange, connection):
            yield
        # Whether it is served depends on the response.
        exchange.outcome = {name: value for name, value in exchange.outcome.items() if name != "served"}

    def _admit(
        self, request: Request, exchange: Exchange, connection: ViewerConnection, key: StreamKey, parameters: Mapping[str, str]
    ) -> tuple[Admitted, bool]:
        """Authorize a client; return what it was granted, and whether it had to show something. May wait; raises `Refused`."""
        shown = {name: value for name, value in parameters.items() if name != "s" and not name.startswith("_HLS_")}
        asked = play_request(request, exchange, _PROTOCOL, key, shown)
        proved = not self._hub.authorizer.is_open(asked)
        grant = authorize(asked, self._hub, exchange, connection.emit).grant
        return Admitted(asked, grant, time.monotonic()), proved

    # The multivariant playlist ------------------------------------------------------------------------------------------------

    def _serve_index(self, request: Request, exchange: Exchange) -> Response:
        connection = ViewerConnection(exchange, self._hub, _PROTOCOL)
        asked, parameters = stream_of(request)
        with self._refusals(exchange, connection):
            admitted, proved = self._admit(request, exchange, connection, asked, parameters)
        key = admitted.grant.key
        deadline_s = time.monotonic() + READY_S
        members: list[Member] = []
        problem: HttpError | None = None
        # All begin at once: they are packaged on demand.
        found = [packager for each in self._family(key) if (packager := self.packagers.find(each)) is not None]
        for packager in [each for each in found if not each.ended] or found:
            packager.touch()
            try:
                members.append(Member(prefix_of(asked, packager.key), self._with_a_part(packager, deadline_s, exchange)))
                deadline_s = min(deadline_s, time.monotonic() + OTHERS_S)
            except HttpError as error:
                problem = problem or error
        if not members:
            if problem is None:
                self._packager(key)
            raise problem or HttpError(404, f"{key} is not being published.")
        query = f"?s={self.sessions.new_id(admitted, proved=proved)}"
        self._hub.count("hls_playlists")
        body = index_playlist(members, query).encode()
        return Response(body=body, content_type=PLAYLIST, headers=_NO_STORE).compressed(request)

    def _with_a_part(self, packager: Packager, deadline_s: float, exchange: Exchange) -> Sequence[Packaged]:
        """Return the renditions of a stream when each has its first part, or the time is over; raises `HttpError`."""
        renditions = self._renditions_of(packager, deadline_s)
        for each in renditions:
            while each.window.last_part is None and not each.window.ended and not packager.ended:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    if each is renditions[0]:
                        raise HttpError(503, f"No media of {packager.key} has arrived yet.", _NOT_YET)
                    break
                each.wait(left_s)
                exchange.ensure_open()
        return renditions

    # Media playlists --------------------------------------------------------------------------------------------------------

    def _serve_playlist(self, request: Request, exchange: Exchange) -> Response:
        directives = parse_directives(request.query)
        if directives is None:
            raise HttpError(400, "The delivery directives are invalid.")
        key, parameters = stream_of(request)
        if request.method == "HEAD":
            # It begins no play, and what it would wait for is not known.
            self._session_of_media(request, exchange, key, parameters)
            self._rendition(request, key)
            return Response(content_type=PLAYLIST, headers=_NO_STORE, sized=False)
        connection = ViewerConnection(exchange, self._hub, _PROTOCOL)
        with self._refusals(exchange, connection):
            session = self._session(request, exchange, connection, key, parameters)
        session.requests += 1
        try:
            packager, rendition = self._rendition(request, key, directives.sequence_number, session)
            session.use(rendition.window.targets.target_s)
            self.sessions.note_client(session, (exchange.transport.address, exchange.agent, key))
            self._hold(rendition, directives, exchange)
        finally:
            session.requests -= 1
            session.use()
        if session.stream is None:
            raise HttpError(403, "This session has ended.")
        packager.touch()
        reports = self._reports(packager, rendition)
        response = self._playlists_of(rendition).respond(request, directives, reports, session.media_query)
        if rendition.window.ended:
            session.finished.add(rendition)
        self._hub.count("hls_playlists")
        session.add_bytes(response.size)
        return response

    def _playlists_of(self, rendition: Packaged) -> Playlists:
        found = self._playlists.get(rendition)
        if found is None:
            found = self._playlists[rendition] = Playlists(rendition)
        return found

    def _reports(self, packager: Packager, rendition: Packaged) -> list[Report]:
        """Return how far the other renditions are: of the stream, and of those that are its renditions by their names."""
        found = [(f"../{each.name}/media.m3u8", each) for each in packager.renditions if each is not rendition]
        for key in self._family(self._origins(packager.key)[-1]):
            other = self.packagers.running(key) if key != packager.key else None
            if other is not None:
                found += [(f"../../{quote(key.name)}/{each.name}/media.m3u8", each) for each in other.renditions]
        return [report for uri, each in found[:_REPORTS] if (report := report_of(each, uri)) is not None]

    def _hold(self, rendition: Packaged, directives: Directives, exchange: Exchange) -> None:
        """Wait until a playlist has what a client asks for; raises `HttpError`."""
        window = rendition.window
        until_s = time.monotonic() + window.hold_limit_s
        while True:
            match window.answer(directives):
                case Answer.READY:
                    return
                case Answer.BAD:
                    raise HttpError(400, "The requested playlist is too far in the future.")
                case Answer.MISSING:
                    raise HttpError(404, "There is no such playlist.")
                case Answer.WAIT:
                    self._wait(rendition, until_s, exchange)

    def _wait(self, rendition: Packaged, until_s: float, exchange: Exchange) -> None:
        """Wait until a rendition changes; raises `HttpError` if it has not in time."""
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            self._hub.count("hls_holds_expired")
            raise HttpError(503, "The requested media did not arrive in time.", _NOT_YET)
        # A connection of HTTP/2 may make many requests at once.
        limits = self._hub.connection_limits
        group = address_group(exchange.transport.address)
        most = limits.limits.connections_per_address_limit * _HELD_PER_CONNECTION
        if self._held >= limits.limit or (most and self._held_by_address[group] >= most):
            raise HttpError(503, "Too many requests are held.", _NOT_YET)
        self._held += 1
        self._held_by_address[group] += 1
        try:
            rendition.wait(left_s)
            # A part wakes all viewers of its rendition at once.
            self._slices.check()
        finally:
            self._held -= 1
            self._held_by_address[group] -= 1
            if not self._held_by_address[group]:
                del self._held_by_address[group]
        exchange.ensure_open()

    def _session(
        self, request: Request, exchange: Exchange, connection: ViewerConnection, key: StreamKey, parameters: Mapping[str, str]
    ) -> Session:
        """Return the session of a request for a media playlist, which may begin with it. May wait.

        Raises:
            Refused: The client may not play the stream.
            HttpError: It may no longer.
        """
        sessions, origins = self.sessions, self._origins(key)
        session_id = parameters.get("s", "")
        if session_id:
            self._check_expelled(session_id)
            session = sessions.find(session_id, origins)
            if session is not None:
                return session
            found = self._admitted_before(request, exchange, connection, session_id, origins)
            if found is not None:
                return self._begin(exchange, found[0], session_id, key, private=found[1])
        credentials = credentials_of(key, exchange.transport.address, exchange.agent, parameters)
        session = sessions.find_by_credentials(credentials)
        if session is not None:
            return session
        admitted, proved = self._admit(request, exchange, connection, key, parameters)
        if admitted.grant.key != key:
            # Its URLs of media are relative to this name.
            raise HttpError(404, "The server renames this stream: begin with its index.m3u8.")
        session_id = sessions.new_id(admitted, proved=proved)
        return self._begin(exchange, admitted, session_id, key, private=proved, credentials=credentials)

    def _check_expelled(self, session_id: str) -> None:
        if self.sessions.is_expelled(session_id):
            raise HttpError(403, "This session is no longer authorized.")

    def _admitted_before(
        self, request: Request, exchange: Exchange, connection: ViewerConnection, session_id: str, origins: Sequence[StreamKey]
    ) -> tuple[Admitted, bool] | None:
        """Return what the holder of an id was granted, and whether it had to show something; None: the id is not valid.

        The id may be of this server, or of another one with the same secret. May wait; raises `Refused`.
        """
        admitted = self.sessions.admitted(session_id, origins)
        if admitted is not None:
            if admitted.holds:
                return admitted, True
            # Its session has ended for a while, and nothing has renewed the grant.
            grant = authorize(admitted.asked, self._hub, exchange, connection.emit).grant
            return Admitted(admitted.asked, grant, time.monotonic()), True
        claim = self.sessions.claim(session_id, origins)
        if claim is None:
            return None
        if not claim.proved:
            return self._admit(request, exchange, connection, StreamKey(claim.key), {})
        asked = play_request(request, exchange, _PROTOCOL, StreamKey(claim.key), {})
        # What the client has shown is not known here: a grant that expires is not renewed unless it is open by then.
        expires_s = max(1.0, claim.until_s - time.time()) if claim.expires else 0.0
        return Admitted(asked, Grant(StreamKey(claim.key), expires_s=expires_s), time.monotonic()), True

    def _begin(
        self, exchange: Exchange, admitted: Admitted, session_id: str, key: StreamKey, *, private: bool, credentials: str = ""
    ) -> Session:
        """Begin a session; raises `Refused`."""
        connection = SessionConnection(self._hub, exchange.transport.peer, exchange.agent)
        session = Session(connection, admitted, session_id, self.sessions.expel, private=private)
        return self.sessions.begin(session, key, credentials)

    # Media ------------------------------------------------------------------------------------------------------------------

    def _serve_media(self, request: Request, exchange: Exchange) -> Response:
        resource = parse_name(request.path.rpartition("/")[2])
        if resource is None:
            raise HttpError(404, "There is no such segment.")
        key, parameters = stream_of(request)
        session, private = self._session_of_media(request, exchange, key, parameters)
        packager, rendition = self._media_rendition(request, key, resource)
        packager.touch()
        pieces = self._find_media(rendition, resource, exchange)
        if pieces is None:
            raise HttpError(404, "There is no such segment, or no longer.")
        self._hub.count("hls_media")
        response = media_response(request, rendition, pieces, request.path.rpartition("/")[2], private=private)
        if session is not None:
            session.use()
            if request.method == "GET":
                session.add_bytes(response.size)
        return response

    def _media_rendition(self, request: Request, key: StreamKey, resource: Resource) -> tuple[Packager, Packaged]:
        """Return the rendition that has some media, of whichever publish; raises `HttpError`."""
        if not resource.init_id:
            return self._rendition(request, key, resource.number)
        self._packager(key)
        earlier = self._earlier_rendition(key, request.captured["rendition"], 0, None)
        if earlier is not None and earlier[1].init_segment(resource.init_id) is not None:
            return earlier
        return self._rendition(request, key)

    def _session_of_media(
        self, request: Request, exchange: Exchange, key: StreamKey, parameters: Mapping[str, str]
    ) -> tuple[Session | None, bool]:
        """Return the session that a request for media counts for, if there is one, and whether only its holder may have it.

        Raises:
            HttpError: The client may not have it.
        """
        sessions = self.sessions
        session_id = parameters.get("s", "")
        if session_id:
            self._check_expelled(session_id)
            origins = self._origins(key)
            session = sessions.find(session_id, origins)
            if session is not None and session.private:
                return session, True
            admitted = sessions.admitted(session_id, origins)
            if admitted is not None and admitted.holds:
                return None, True
            claim = sessions.claim(session_id, origins)
            if claim is not None and claim.proved:
                return None, True
        session = sessions.find_by_client((exchange.transport.address, exchange.agent, key))
        if session is not None and not session.private:
            # It was admitted without showing anything, and lasts, also over a reload that demands more.
            return session, False
        if self._hub.authorizer.is_open(play_request(request, exchange, _PROTOCOL, key, {})):
            return None, False
        connection = ViewerConnection(exchange, self._hub, _PROTOCOL)
        with self._refusals(exchange, connection):
            self._admit(request, exchange, connection, key, parameters)
        return None, True

    def _find_media(self, rendition: Packaged, resource: Resource, exchange: Exchange) -> Sequence[bytes] | None:
        """Return what a name stands for; None: there is no such thing. A part that playlists hint at is waited for."""
        if resource.init_id:
            found = rendition.init_segment(resource.init_id)
            return [found] if found is not None else None
        if resource.part is None:
            return rendition.segment_data(resource.number)
        window = rendition.window
        until_s = time.monotonic() + window.hold_limit_s
        while window.find_part(resource.number, resource.part)[0] is Answer.WAIT:
            self._wait(rendition, until_s, exchange)
        found = rendition.part_data(resource.number, resource.part)
        return [found] if found else None
