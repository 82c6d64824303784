"""The families of metrics: what they are called, and where their values come from.

docs/metrics.rst lists the same ones, and tests compare. Pure tables.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["COUNTERS", "FAILURES", "GAUGES", "RELAYS", "STREAMS", "Column", "Total"]


class Total(NamedTuple):
    """A family with one value; a counter's sample has ``_total`` behind the name."""

    family: str
    help: str
    counter: bool = True


class Column(NamedTuple):
    """A family with a value per stream or relay: *field* of its series."""

    family: str
    counter: bool
    field: str
    help: str


COUNTERS: Final = {
    "connections": Total("rtmp_connections", "Connections that were served."),
    "publishes": Total("rtmp_publishers", "Publishes that began."),
    "plays": Total("rtmp_subscribers", "Plays that began."),
    "auth_successes": Total("rtmp_auth_successes", "Clients that authentication let in."),
    "auth_failures": Total("rtmp_auth_failures", "Clients that authentication kept out."),
    "auth_bans": Total("rtmpd_auth_bans", "Addresses that were banned because of failures of authentication."),
    "auth_banned_connections": Total("rtmpd_auth_banned_connections", "Connections of banned addresses, closed at once."),
    "audio_messages": Total("rtmp_messages_audio", "Audio messages from publishers."),
    "video_messages": Total("rtmp_messages_video", "Video messages from publishers."),
    "data_messages": Total("rtmp_messages_data", "Data messages from publishers."),
    "bytes_ingested": Total("rtmp_bytes_ingested", "Bytes of media from publishers."),
    "bytes_egress": Total("rtmp_bytes_egress", "Bytes that sockets of players took."),
    "handshake_failures": Total("rtmp_handshake_failures", "Connections that ended in the handshake: not RTMP, or too slow."),
    "recording_errors": Total("rtmp_recording_errors", "Recordings that were given up because of an error."),
    "recordings": Total("rtmpd_recordings", "Recordings that were finished."),
    "recorded_bytes": Total("rtmpd_recorded_bytes", "Bytes of finished recordings."),
    "recordings_repaired": Total("rtmpd_recordings_repaired", "Recordings that a crash had cut off, made whole at start."),
    "recordings_deleted": Total("rtmpd_recordings_deleted", "Recordings that were deleted for their age, or to make room."),
    "hook_deliveries": Total("rtmpd_hook_deliveries", "Events that hooks were told of."),
    "hook_failures": Total("rtmpd_hook_failures", "Events that a hook could not be told of: it failed, at each try."),
    "hook_timeouts": Total("rtmpd_hook_timeouts", "Tries to tell a hook that took too long."),
    "hook_retries": Total("rtmpd_hook_retries", "Tries to tell a hook after the first."),
    "hook_drops": Total("rtmpd_hook_drops", "Events that were not told since too many waited, or since the server stopped."),
    "tls_handshakes": Total("rtmpd_tls_handshakes", "TLS handshakes of clients that were done."),
    "zombie_connections": Total("rtmp_zombie_connections", "Connections whose peer had gone without a word."),
    "relay_messages_sent": Total("rtmp_relay_messages_sent", "Messages sent to relay destinations."),
    "relay_messages_dropped": Total("rtmp_relay_messages_dropped", "Messages that relay destinations did not get."),
    "relay_bytes_sent": Total("rtmp_relay_bytes_sent", "Bytes sent to relay destinations."),
    "relay_moves": Total("rtmpd_relay_moves", "Relays that their destination asked to connect again, and that did at once."),
    "relay_reconnects": Total("rtmpd_relay_reconnects", "Relays that came up again after they had lost their connection."),
    "player_skips": Total("rtmpd_player_skips", "Times that a player was too far behind and moved to a keyframe."),
    "player_messages_dropped": Total("rtmpd_player_messages_dropped", "Messages that players were too slow to get."),
    "player_frames_disposed": Total("rtmpd_player_frames_disposed", "Disposable frames among these."),
    "players_disconnected": Total("rtmpd_players_disconnected", "Players that were disconnected for being too far behind."),
    "players_stalled": Total("rtmpd_players_stalled", "Players that were cut off because they took nothing."),
    "timestamp_jumps": Total("rtmpd_timestamp_jumps", "Jumps in the timestamps of publishers that were mended."),
    "reconnect_requests": Total("rtmpd_reconnect_requests", "Clients that were asked to connect again."),
    "memory_sheds": Total("rtmpd_memory_sheds", "Times that a stream gave something up for memory_limit_bytes."),
    "publish_bitrate_exceeded": Total("rtmpd_publish_bitrate_exceeded", "Publishers that sent too much for too long."),
    "takeovers": Total("rtmpd_takeovers", "Publishers that were silent and made way for another."),
}
"""Counters of the hub, by name, that have a family of their own."""

FAILURES: Final = {
    "accept_failures": "a connection could not be accepted for want of file descriptors",
    "auth_callback_errors": "an authentication callback did not answer in time, or not as it should",
    "auth_file_errors": "a file with tokens could not be used",
    "connections_refused": "a connection limit was reached",
    "deadlines_exceeded": "a client took too long, or was silent for too long",
    "early_closes": "a client left before it had connected to an application",
    "http_bad_requests": "a request to the HTTP listener made no sense",
    "http_deadlines": "a request to the HTTP listener took too long",
    "internal_errors": "a bug; the log has a traceback",
    "limits_exceeded": "a client asked for more than a limit allows",
    "memory_refusals": "memory_limit_bytes was reached, and nobody else could publish",
    "players_refused": "players_per_stream_limit was reached",
    "protocol_errors": "a client broke the protocol",
    "proxy_errors": "a load balancer sent no PROXY header, or a wrong one",
    "refused": "a connect, publish or play was refused",
    "relay_failures": "a relay did not come up, or lost its connection",
    "relay_loops": "a relay led back to where its stream came from",
    "relays_refused": "relay_limit was reached",
    "tls_failures": "a TLS handshake came to nothing, or what came later was not TLS",
    "retention_errors": "old recordings could not be looked through or deleted",
    "streams_refused": "stream_limit was reached",
    "unsupported_codecs": "a player said that it does not take the codec of the video",
}
"""Counters of the hub, by name, that are values of the label ``reason`` of ``rtmpd_failures_total``.

What is in neither table is exported there, too: no counter is ever lost.
"""

GAUGES: Final = {
    "tls_certificate_expiry": Total(
        "rtmpd_tls_certificate_expiry_seconds", "When the first TLS certificate expires, Unix time; 0: none.", counter=False
    ),
    "auth_callbacks_active": Total("rtmpd_auth_callbacks_active", "Callbacks that are under way or wait.", counter=False),
    "recordings_active": Total("rtmp_recordings_active", "Recordings under way.", counter=False),
    "wire_log_bytes": Total("rtmpd_wire_log_bytes", "Memory that the logs of streams take.", counter=False),
    "hooks_waiting": Total("rtmpd_hooks_waiting", "Events that wait for hooks.", counter=False),
    "log_lines_dropped": Total("rtmpd_log_lines_dropped", "Log lines that were dropped: whoever takes them paused or failed."),
    "access_lines_dropped": Total("rtmpd_access_log_lines_dropped", "Lines of the access log that were dropped."),
}
"""Functions that parts of the server may give the hub in ``gauges``, by name; 0 without them."""

STREAMS: Final = (
    Column("rtmp_stream_published", False, "published", "1 while somebody publishes the stream, else 0."),
    Column("rtmp_stream_players", False, "players", "Players of the stream."),
    Column("rtmp_stream_bitrate_bps", False, "bitrate_bps", "Bits of media per second from its publisher, over 5 s."),
    Column("rtmp_stream_fps", False, "fps", "Video frames per second from its publisher, over 5 s."),
    Column("rtmp_stream_keyframe_age_seconds", False, "keyframe_age_s", "Time since its last keyframe came."),
    Column("rtmp_stream_keyframe_interval_seconds", False, "keyframe_interval_s", "Time between its last two keyframes."),
    Column("rtmp_stream_lag_seconds", False, "lag_s", "How far its slowest player is behind its newest frame."),
    Column("rtmp_stream_drops", True, "drops", "Skips of its players, and players that were disconnected or cut off."),
    Column("rtmp_stream_skips", True, "skips", "Times that one of its players was moved to a keyframe."),
    Column("rtmp_stream_messages_dropped", True, "messages_dropped", "Messages that its players did not get."),
    Column("rtmp_stream_frames_disposed", True, "frames_disposed", "Disposable frames among these."),
    Column("rtmp_stream_disconnects", True, "disconnects", "Players that were disconnected for being too far behind."),
    Column("rtmp_stream_bytes_ingested", True, "bytes_in", "Bytes of media from its publishers."),
    Column("rtmp_stream_bytes_egress", True, "bytes_out", "Bytes that sockets of its players took."),
)

RELAYS: Final = (
    Column("rtmp_relay_destination_up", False, "up", "1 while the stream goes out to the destination, else 0."),
    Column("rtmp_relay_destination_lag_seconds", False, "lag_s", "How far the destination is behind the newest frame."),
    Column("rtmp_relay_destination_bytes_sent", True, "bytes_sent", "Bytes sent to the destination."),
    Column("rtmp_relay_destination_messages_sent", True, "messages_sent", "Messages sent to the destination."),
    Column("rtmp_relay_destination_messages_dropped", True, "messages_dropped", "Messages that the destination did not get."),
    Column("rtmp_relay_destination_reconnects", True, "reconnects", "Connections to the destination that were made again."),
)
