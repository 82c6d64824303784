"""The commands of clients: a table from command name to function.

Each function gets the connection and the decoded command, and may raise `Refused`. Every command with a transaction id is
answered, known or not: clients wait for it. Before a connect, publish or play is accepted, the hub's authorizer is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rtmpd.admission import Admission
from rtmpd.authorization import Action, ClientFacts, Connect, Request
from rtmpd.errors import LoginRequired, Refused, RemoteProtocolError
from rtmpd.events import EventType
from rtmpd.live.selection import SourceRole
from rtmpd.phases import ConnectionPhase
from rtmpd.protocol import status
from rtmpd.protocol.enhanced import parse_capabilities, server_answer
from rtmpd.protocol.message import UserControlType
from rtmpd.protocol.naming import NameProblem, is_printable, join_key, resolve, split_query, without_secrets
from rtmpd.protocol.via import MEMBER, parse_via
from rtmpd.rtmp.player import Player
from rtmpd.rtmp.publisher import Publisher
from rtmpd.util.stream_key import StreamKey
from rtmpd.util.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rtmpd.protocol.command import Command
    from rtmpd.protocol.naming import StreamName
    from rtmpd.rtmp.connection import Connection, MessageStream

_SERVER_VERSION = "FMS/3,5,7,7009"
_CAPABILITIES = 31
_MAX_DESCRIPTION = 200
_MAX_AGENT = 80
_MAX_URL = 1024
_TRUE = ("1", "yes", "true")


def _result(connection: Connection, command: Command, *values: Any) -> None:
    if command.transaction_id > 0:
        connection.endpoint.send_command("_result", command.transaction_id, *(values or (None, None)))


def answer_unknown(connection: Connection, command: Command) -> None:
    """Answer an unknown command; answers of the client (``_result``, ``onStatus`` ...) get none."""
    if command.name not in ("_result", "_error", "onStatus", "pong", "onBWDone"):
        _result(connection, command)


# Connecting -------------------------------------------------------------------------------------------------------------


def _connect(connection: Connection, command: Command) -> None:
    if connection.connected:
        raise RemoteProtocolError("connect for the second time")
    # An object, or an ECMA array as some clients send it; both are dicts here.
    properties = command.command_object if isinstance(command.command_object, dict) else {}
    client = connection.client
    client.app = _text_of(properties.get("app"))
    # "tcurl" is the spelling of some clients.
    client.tc_url = _text_of(properties.get("tcUrl", properties.get("tcurl")))
    connection.last_request.connect("")
    for text in (client.app, client.tc_url):
        _check_length(connection, text, status.CONNECT_INVALID_APP)
    client.agent = printable(_text_of(properties.get("flashVer"))[:_MAX_AGENT])
    client.page_url = _text_of(properties.get("pageUrl"))[:_MAX_URL]
    client.swf_url = _text_of(properties.get("swfUrl"))[:_MAX_URL]
    client.capabilities = parse_capabilities(properties)
    client.via = parse_via(properties.get(MEMBER))
    try:
        found = resolve(client.app, client.tc_url, "", "")
    except NameProblem as problem:
        raise Refused(status.CONNECT_INVALID_APP, _sentence(problem)) from None
    if not is_printable(found.key):
        raise Refused(status.CONNECT_INVALID_APP, "The application's name has control characters or is too long.")
    # The end of it may be a publish key: nothing else of it gets into the log, events and the access log.
    shown = connection.hub.authorizer.shown_app(found.key)
    connection.last_request.connect(shown)
    options = connection.hub.admit(found.key)
    client.user = _log_in(connection, found, properties)
    client.options = options
    client.application = found
    client.measure()
    connection.enter(ConnectionPhase.COMMAND)
    endpoint, server = connection.endpoint, connection.options.server
    # In this order: OBS, FFmpeg, GStreamer and librtmp all accept it.
    endpoint.send_window_ack_size(server.window_ack_size_bytes)
    endpoint.send_peer_bandwidth(server.peer_bandwidth_bytes)
    endpoint.send_chunk_size(server.chunk_size_bytes)
    endpoint.send_command(
        "_result",
        command.transaction_id,
        {"fmsVer": _SERVER_VERSION, "capabilities": _CAPABILITIES, "mode": 1, **server_answer()},
        status.info(status.CONNECT_SUCCESS, "Connection succeeded.", objectEncoding=client.capabilities.object_encoding),
    )
    user = f" as {client.user}" if client.user else ""
    agent = repr(_text_of(properties["flashVer"])[:_MAX_AGENT]) if client.agent else "an unnamed client"
    connection.log.info("connected to %s%s by %s", shown or "(no application)", user, agent)


def _check_length(connection: Connection, text: str, code: str) -> None:
    """Refuse an app, tcUrl or stream name that is too long: each is kept, and taken apart for each request."""
    limit = connection.options.limits.url_limit_bytes
    if len(text) > limit or len(text.encode(errors="surrogatepass")) > limit:
        raise Refused(code, "The URL is too long.", f"url_limit_bytes is {limit}, and the app, tcUrl or name is longer")


def _text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def _log_in(connection: Connection, found: StreamName, properties: dict[str, Any]) -> str:
    """Ask the authorizer whether a client may connect; return the user's name, empty without a login.

    Raises:
        Refused: It may not connect. LoginRequired: Not without a login.
    """
    client, agent = connection.client, properties.get("flashVer")
    request = Connect(
        address=connection.transport.address,
        app=found.key,
        query="&".join(split_query(text)[1] for text in (client.app, client.tc_url.strip("'\""))),
        parameters=found.parameters,
        # OBS and FFmpeg send both when they publish; librtmp and GStreamer the first.
        encoder=properties.get("type") == "nonprivate" or (isinstance(agent, str) and agent.startswith("FMLE")),
    )
    try:
        return connection.hub.authorizer.login(request)
    except LoginRequired:
        connection.last_request.served = True
        raise
    except Refused as refused:
        connection.emit(EventType.AUTH_FAILED, action=str(Action.CONNECT), reason=refused.reason)
        raise


def _authorize(connection: Connection, action: Action, found: StreamName, arguments: dict[str, Any]) -> Admission:
    """Ask the authorizer whether a client may publish or play; return its admission. May wait.

    Raises:
        Refused: It may not. TransportClosed: It may, but has left meanwhile, or was closed.
    """
    client, before = connection.client, connection.phase

    def wait() -> None:
        # Answers to earlier commands need not wait.
        connection.flush()
        connection.enter(ConnectionPhase.AUTHORIZE)

    request = Request(
        action,
        connection.transport.peer,
        connection.transport.address,
        found.key,
        found.parameters,
        client.user,
        client.application.key if client.user else "",
        ClientFacts(
            connection_id=str(connection.number),
            protocol=connection.transport.scheme,
            agent=client.agent,
            tc_url=without_secrets(client.tc_url)[:_MAX_URL],
            page_url=client.page_url,
            swf_url=client.swf_url,
        ),
        arguments,
        waiting=wait,
    )
    try:
        grant = connection.hub.authorizer.authorize(request)
    except Refused as refused:
        connection.emit(EventType.AUTH_FAILED, action=str(action), reason=refused.reason)
        raise
    waited = connection.phase is not before
    connection.enter(before)
    connection.last_request.stream_key = grant.key
    if waited:
        connection.transport.ensure_open()
    return Admission(request, grant)


def _create_stream(connection: Connection, command: Command) -> None:
    _result(connection, command, None, connection.create_message_stream().id)


def _fc_publish(connection: Connection, command: Command) -> None:
    """Answer FCPublish; the publish command decides."""
    _result(connection, command)
    if command.transaction_id > 0:
        connection.endpoint.send_command(
            "onFCPublish", 0, None, status.info(status.PUBLISH_START, f"FCPublish to stream {_text(command.argument(0))}.")
        )


def _fc_unpublish(connection: Connection, command: Command) -> None:
    name = command.argument(0)
    for message_stream in list(connection.message_streams.values()):
        role = message_stream.role
        if isinstance(role, Publisher) and (len(connection.sources) == 1 or role.name == name):
            _stop_publishing(connection, message_stream, "FCUnpublish")
    _result(connection, command)
    if command.transaction_id > 0:
        connection.endpoint.send_command(
            "onFCUnpublish", 0, None, status.info(status.UNPUBLISH_SUCCESS, f"FCUnpublish to stream {_text(name)}.")
        )


def _fc_subscribe(connection: Connection, command: Command) -> None:
    _result(connection, command)
    connection.endpoint.send_command(
        "onFCSubscribe", 0, None, status.info(status.PLAY_START, f"FCSubscribe to {_text(command.argument(0))}.")
    )


def _get_stream_length(connection: Connection, command: Command) -> None:
    # Live streams have none.
    _result(connection, command, None, 0)


def _text(value: Any) -> str:
    return value[:_MAX_DESCRIPTION] if isinstance(value, str) else ""


def _resolve(connection: Connection, action: Action, name: str, code: str) -> StreamName:
    client = connection.client
    assert client.options is not None
    _check_length(connection, name, code)
    try:
        found = client.resolve(name, client.options.default_stream_name)
    except NameProblem as problem:
        raise Refused(code, _sentence(problem)) from None
    if not is_printable(found.key):
        raise Refused(code, "The stream's name has control characters or is too long.")
    if found.defaulted:
        connection.log.warning("%s without a stream name: the stream is %s (default_stream_name)", action, found.key)
    return found


def _sentence(problem: NameProblem) -> str:
    text = str(problem)
    return f"{text[0].upper()}{text[1:]}."


# Publishing -------------------------------------------------------------------------------------------------------------


def _publish(connection: Connection, command: Command) -> None:
    message_stream = connection.message_stream(command.message_stream_id)
    name = command.argument(0)
    if isinstance(message_stream.role, Publisher):
        if not name or not isinstance(name, str):
            # Wirecast stops with a second publish whose name is false or empty.
            _stop_publishing(connection, message_stream, "publish without a name")
            return
        if name == message_stream.role.name:
            _send_publish_start(connection, message_stream, message_stream.role.key)
            return
        _stop_publishing(connection, message_stream, "publish of another name")
    elif name is False:
        return
    if not isinstance(name, str):
        name = ""
    _stop_playing(connection, message_stream, "publish")
    connection.last_request.begin(Action.PUBLISH)
    found, role = _role(connection, _resolve(connection, Action.PUBLISH, name, status.PUBLISH_BAD_NAME))
    # Media is never answered, so that no acknowledgement need be sent at once from here on.
    connection.transport.interactive = False
    # The second argument, the type (live, record, append), may be missing; all are live here.
    admission = _authorize(connection, Action.PUBLISH, found, {"type": command.argument(1)})
    publisher = Publisher(connection, message_stream, name, admission)
    stream = connection.hub.publish(admission.grant.key, publisher.source, role, publisher.start)
    connection.last_request.served = True
    _send_publish_start(connection, message_stream, stream.key)


def _role(connection: Connection, found: StreamName) -> tuple[StreamName, SourceRole | None]:
    """Return the stream that a publisher means, and the role that it asks for: by the query, or by ``backup_alias``.

    YouTube's second address has ``?backup=1``.
    """
    alias = connection.hub.publish_options(found.key).backup_alias
    if alias:
        before, _, after = alias.partition("{name}")
        app, _, name = found.key.rpartition("/")
        own = name[len(before) : len(name) - len(after)]
        key = StreamKey(f"{app}/{own}")
        if own and f"{before}{own}{after}" == name and join_key(app, own) == key:
            return found._replace(key=key), SourceRole.BACKUP
    asked = found.parameters.get("role", "")
    if asked == SourceRole.BACKUP or found.parameters.get("backup", "") in _TRUE:
        return found, SourceRole.BACKUP
    return found, SourceRole.PRIMARY if asked == SourceRole.PRIMARY else None


def _send_publish_start(connection: Connection, message_stream: MessageStream, key: str) -> None:
    connection.endpoint.send_user_control(UserControlType.STREAM_BEGIN, message_stream.id)
    connection.send_status(message_stream.id, status.info(status.PUBLISH_START, f"{key} is now published.", details=key))


def _stop_publishing(connection: Connection, message_stream: MessageStream, reason: str) -> None:
    if not isinstance(message_stream.role, Publisher):
        return
    key = message_stream.role.key
    connection.leave(message_stream, reason)
    connection.send_status(message_stream.id, status.info(status.UNPUBLISH_SUCCESS, f"{key} is now unpublished.", details=key))


# Playing ----------------------------------------------------------------------------------------------------------------


def _play(connection: Connection, command: Command) -> None:
    name = command.argument(0)
    message_stream = connection.message_stream(command.message_stream_id)
    if name is False:
        _stop_playing(connection, message_stream, "play(false)")
        return
    # start -2 (live or recorded), -1 (live) or any other: there are only live streams. Clients mean reset unless they say no.
    reset = command.argument(3, True)
    reset = reset is not False and reset != 0
    times = {"start": command.argument(1), "duration": command.argument(2)}
    _start_playing(connection, message_stream, name if isinstance(name, str) else "", times, reset=reset)


def _play2(connection: Connection, command: Command) -> None:
    options = command.argument(0)
    name = options.get("streamName") if isinstance(options, dict) else options
    if not isinstance(name, str):
        raise Refused(status.PLAY_FAILED, "play2 names no stream.")
    _start_playing(connection, connection.message_stream(command.message_stream_id), name, {}, reset=False)


def _start_playing(
    connection: Connection, message_stream: MessageStream, name: str, times: dict[str, Any], *, reset: bool
) -> None:
    _stop_publishing(connection, message_stream, "play")
    _stop_playing(connection, message_stream, "play of another name", silent=True)
    connection.last_request.begin(Action.PLAY)
    found = _resolve(connection, Action.PLAY, name, status.PLAY_STREAM_NOT_FOUND)
    admission = _authorize(connection, Action.PLAY, found, {**times, "reset": reset})
    player = Player(connection, message_stream, name, admission)
    key = admission.grant.key
    stream = connection.hub.play(key, player)
    problem = player.unsupported(stream)
    if problem:
        connection.hub.unplay(stream, player)
        connection.hub.count("unsupported_codecs")
        raise Refused(status.PLAY_NO_TRACK, problem)
    endpoint = connection.endpoint
    number = message_stream.id
    endpoint.send_user_control(UserControlType.STREAM_BEGIN, number)
    if reset:
        connection.send_status(number, status.info(status.PLAY_RESET, f"Playing and resetting {key}.", details=key))
    connection.send_status(number, status.info(status.PLAY_START, f"Started playing {key}.", details=key))
    try:
        # The player joins the fan-out only after this is sent, so that no media overtakes it.
        connection.flush()
    except BaseException:
        connection.hub.unplay(stream, player)
        raise
    player.start(stream)
    connection.last_request.served = True


def _stop_playing(connection: Connection, message_stream: MessageStream, reason: str, *, silent: bool = False) -> None:
    if not isinstance(message_stream.role, Player):
        return
    key = message_stream.role.key
    rest = connection.leave(message_stream, reason)
    if not silent:
        connection.endpoint.send_user_control(UserControlType.STREAM_EOF, message_stream.id)
        connection.send_status(message_stream.id, status.info(status.PLAY_STOP, f"Stopped playing {key}.", details=key))
    connection.endpoint.outgoing[:0] = rest


def _pause(connection: Connection, command: Command) -> None:
    player = _player(connection, command)
    if player is None:
        _result(connection, command)
        return
    if command.argument(0, True):
        player.pause()
        info = status.info(status.PAUSE_NOTIFY, f"Pausing {player.key}.", details=player.key)
    else:
        player.resume()
        info = status.info(status.UNPAUSE_NOTIFY, f"Unpausing {player.key}.", details=player.key)
    connection.send_status(command.message_stream_id, info)


def _player(connection: Connection, command: Command) -> Player | None:
    """Return the player of the message stream that a command came on."""
    message_stream = connection.message_streams.get(command.message_stream_id)
    return message_stream.role if message_stream is not None and isinstance(message_stream.role, Player) else None


def _seek(connection: Connection, command: Command) -> None:
    # Level "status", although the code says Failed: FFmpeg ends on any error, and the stream continues.
    info = status.info(status.SEEK_FAILED, "A live stream can't be sought in.")
    connection.send_status(command.message_stream_id, {**info, "level": "status"})


def _receive_audio(connection: Connection, command: Command) -> None:
    _receive(connection, command, "audio")


def _receive_video(connection: Connection, command: Command) -> None:
    _receive(connection, command, "video")


def _receive(connection: Connection, command: Command, what: str) -> None:
    player = _player(connection, command)
    if player is None:
        _result(connection, command)
        return
    wanted = bool(command.argument(0, True))
    if wanted:
        # Sections 7.2.2.4 and 7.2.2.5: these two notices, and none for switching off.
        for code, text in ((status.SEEK_NOTIFY, "Seeking"), (status.PLAY_START, "Started playing")):
            connection.send_status(command.message_stream_id, status.info(code, f"{text} {player.key}.", details=player.key))
    if what == "audio":
        player.receive(audio=wanted)
    else:
        player.receive(video=wanted)


# Ending -----------------------------------------------------------------------------------------------------------------


def _named(connection: Connection, command: Command) -> MessageStream | None:
    """Return the message stream that closeStream or deleteStream names.

    The id is an argument, or the message stream that the command came on. GStreamer sends the stream's name instead, on message
    stream 0: then it can only be the only one.
    """
    number = command.argument(0)
    if isinstance(number, (int, float)) and not isinstance(number, bool) and number in connection.message_streams:
        return connection.message_streams[int(number)]
    if command.message_stream_id in connection.message_streams:
        return connection.message_streams[command.message_stream_id]
    if isinstance(number, str) and len(connection.message_streams) == 1:
        return next(iter(connection.message_streams.values()))
    return None


def _close_stream(connection: Connection, command: Command) -> None:
    """Stop publishing or playing; the message stream stays: JW Player uses closeStream as a pause, and plays on it again."""
    message_stream = _named(connection, command)
    if message_stream is not None:
        _stop_publishing(connection, message_stream, "closeStream")
        _stop_playing(connection, message_stream, "closeStream")
    _result(connection, command)


def _delete_stream(connection: Connection, command: Command) -> None:
    message_stream = _named(connection, command)
    if message_stream is not None:
        _stop_publishing(connection, message_stream, "deleteStream")
        _stop_playing(connection, message_stream, "deleteStream")
        connection.message_streams.pop(message_stream.id, None)
    _result(connection, command)


COMMANDS: Final[dict[str, Callable[[Connection, Command], None]]] = {
    "connect": _connect,
    "createStream": _create_stream,
    "initStream": answer_unknown,
    "releaseStream": answer_unknown,
    "FCPublish": _fc_publish,
    "FCUnpublish": _fc_unpublish,
    "FCSubscribe": _fc_subscribe,
    "getStreamLength": _get_stream_length,
    "_checkbw": answer_unknown,
    "publish": _publish,
    "play": _play,
    "play2": _play2,
    "pause": _pause,
    "pauseRaw": _pause,
    "seek": _seek,
    "receiveAudio": _receive_audio,
    "receiveVideo": _receive_video,
    "closeStream": _close_stream,
    "deleteStream": _delete_stream,
}
