"""The metric families: their names, help texts and sources. docs/metrics.rst lists the same families, and tests compare."""

from __future__ import annotations

from typing import Final, NamedTuple


class Total(NamedTuple):
    """A family with one value. The sample of a counter is named after the family with ``_total`` appended."""

    family: str
    help: str
    counter: bool = True


class Column(NamedTuple):
    """A family with a value per stream, source or relay: the attribute *field* of its figures."""

    family: str
    counter: bool
    field: str
    help: str


COUNTERS: Final = {
    "connections": Total("rtmp_connections", "Connections accepted and served."),
    "http_connections": Total("rtmpd_http_connections", "HTTP connections accepted and served."),
    "hls_playlists": Total("rtmpd_hls_playlists", "HLS playlists served."),
    "hls_media": Total("rtmpd_hls_media", "HLS segments, parts and initialization segments served."),
    "publishes": Total("rtmp_publishers", "Publishes started."),
    "plays": Total("rtmp_subscribers", "Plays started."),
    "auth_successes": Total("rtmp_auth_successes", "Publishes and plays that authentication allowed."),
    "auth_failures": Total("rtmp_auth_failures", "Connects, publishes and plays that authentication denied."),
    "auth_rechecks": Total("rtmpd_auth_rechecks", "Re-checks of running publishes and plays."),
    "auth_revocations": Total("rtmpd_auth_revocations", "Running publishes and plays that a re-check has ended."),
    "auth_bans": Total("rtmpd_auth_bans", "Addresses banned after repeated authentication failures."),
    "auth_banned_connections": Total("rtmpd_auth_banned_connections", "Connections closed because their address was banned."),
    "audio_messages": Total("rtmp_messages_audio", "Audio messages received from publishers."),
    "video_messages": Total("rtmp_messages_video", "Video messages received from publishers."),
    "data_messages": Total("rtmp_messages_data", "Data messages received from publishers."),
    "bytes_ingested": Total("rtmp_bytes_ingested", "Media payload received from publishers."),
    "bytes_egress": Total("rtmp_bytes_egress", "Bytes accepted by the sockets of players and relays."),
    "handshake_failures": Total("rtmp_handshake_failures", "Connections closed in the handshake: not RTMP, or timed out."),
    "recording_errors": Total(
        "rtmp_recording_errors", "Failed attempts to record, and files that could not be closed or repaired."
    ),
    "recordings": Total("rtmpd_recordings", "Recording files finished."),
    "recorded_bytes": Total("rtmpd_recorded_bytes", "Total size of finished recording files."),
    "recordings_repaired": Total("rtmpd_recordings_repaired", "Recordings left by a crash and repaired at start."),
    "recordings_other_format": Total(
        "rtmpd_recordings_other_format", "Recordings begun as FLV although record_format is mp4: MP4 can't carry the codecs."
    ),
    "recordings_deleted": Total("rtmpd_recordings_deleted", "Recordings deleted by age, total size or free space."),
    "hls_segments": Total("rtmpd_hls_segments", "HLS segments made."),
    "hls_segments_dropped": Total(
        "rtmpd_hls_segments_dropped", "HLS segments removed early because of hls_memory_limit_bytes or hls_total_limit_bytes."
    ),
    "hls_errors": Total("rtmpd_hls_errors", "Streams whose packaging for HLS an internal error has ended."),
    "hls_disk_errors": Total("rtmpd_hls_disk_errors", "HLS segments that could not be written, and stayed in memory."),
    "hook_deliveries": Total("rtmpd_hook_deliveries", "Events delivered to hooks."),
    "hook_failures": Total("rtmpd_hook_failures", "Events not delivered to a hook: all attempts failed."),
    "hook_timeouts": Total("rtmpd_hook_timeouts", "Delivery attempts that exceeded hook_timeout_s."),
    "hook_retries": Total("rtmpd_hook_retries", "Delivery attempts after the first."),
    "hook_drops": Total("rtmpd_hook_drops", "Events discarded because the queue of a hook was full or the server stopped."),
    "tls_handshakes": Total("rtmpd_tls_handshakes", "TLS handshakes completed with clients."),
    "zombie_connections": Total("rtmp_zombie_connections", "Connections closed because the peer no longer responded."),
    "relay_messages_sent": Total("rtmp_relay_messages_sent", "Messages sent to relay destinations."),
    "relay_messages_dropped": Total("rtmp_relay_messages_dropped", "Messages not sent to relay destinations."),
    "relay_bytes_sent": Total("rtmp_relay_bytes_sent", "Bytes sent to relay destinations."),
    "relay_moves": Total("rtmpd_relay_moves", "Relays that reconnected at once because the destination requested it."),
    "relay_reconnects": Total("rtmpd_relay_reconnects", "Relays re-established after a lost connection."),
    "player_skips": Total("rtmpd_player_skips", "Times that a lagging player was moved to the newest keyframe."),
    "player_messages_dropped": Total("rtmpd_player_messages_dropped", "Messages not sent to players that were too slow."),
    "player_frames_disposed": Total("rtmpd_player_frames_disposed", "Disposable frames among the dropped messages."),
    "players_disconnected": Total("rtmpd_players_disconnected", "Players disconnected by backpressure_policy."),
    "players_stalled": Total("rtmpd_players_stalled", "Players disconnected because their socket accepted no data."),
    "timestamp_jumps": Total("rtmpd_timestamp_jumps", "Jumps in the timestamps of publishers that were corrected."),
    "reconnect_requests": Total("rtmpd_reconnect_requests", "Clients asked to reconnect."),
    "memory_sheds": Total("rtmpd_memory_sheds", "Times that a stream released memory because of memory_limit_bytes."),
    "publish_bitrate_exceeded": Total("rtmpd_publish_bitrate_exceeded", "Publishers that exceeded publish_bitrate_limit."),
    "takeovers": Total("rtmpd_takeovers", "Publishers replaced by a new one."),
    "takeovers_refused": Total("rtmpd_takeovers_refused", "Publishers that takeover_by did not allow to replace another one."),
    "takeovers_held": Total("rtmpd_takeovers_held", "Publishers refused since the last takeover was too recent."),
    "copies_joined": Total("rtmpd_copies_joined", "Publishers found to send the frames of another one, and merged with it."),
    "copies_broken": Total("rtmpd_copies_broken", "Of these, those that sent other frames later."),
    "copy_frames_duplicate": Total("rtmpd_copy_frames_duplicate", "Frames of copies that another copy had brought before."),
    "copy_frames_filled": Total("rtmpd_copy_frames_filled", "Frames that only one of several copies has brought."),
    "copy_frames_mismatched": Total("rtmpd_copy_frames_mismatched", "Frames of copies that differ from those of the others."),
    "copy_frames_late": Total("rtmpd_copy_frames_late", "Frames of copies that came after the stream had passed their place."),
}
"""Counters of the hub, by name, that have a family of their own."""

SWITCHES: Final = {
    "source_switches_failback": "failback",
    "source_switches_failover": "failover",
    "source_switches_manual": "manual",
    "source_switches_return": "return",
    "source_switches_slate": "slate",
}
"""Counters of the hub, by name, that are values of the label ``cause`` of ``rtmpd_source_switches_total``."""

FAILURES: Final = {
    "accept_failures": "a connection could not be accepted: no free file descriptor",
    "auth_callback_errors": "an authentication callback timed out or returned an invalid answer",
    "auth_file_errors": "a token file could not be read or parsed",
    "connections_refused": "a connection limit was reached",
    "deadlines_exceeded": "a client exceeded a timeout",
    "early_closes": "a client closed the connection before its connect command",
    "hls_holds_expired": "what a blocking HLS request waited for did not come in time",
    "http_bad_requests": "an HTTP request was malformed",
    "http_deadlines": "an HTTP request exceeded its timeout",
    "internal_errors": "a bug; the log has a traceback",
    "interrupted_messages": "a client began a message before the end of another one on the same chunk stream",
    "limits_exceeded": "a client exceeded a limit",
    "lookup_failures": "a host name could not be looked up in time",
    "memory_closes": "a connection was closed because memory_limit_bytes was reached",
    "memory_refusals": "a publish was refused because memory_limit_bytes was reached",
    "players_refused": "players_per_stream_limit was reached",
    "protocol_errors": "a client violated the protocol",
    "proxy_errors": "a load balancer sent no PROXY header or an invalid one",
    "refused": "a connect, publish or play was refused",
    "relay_failures": "a relay could not connect or lost its connection",
    "relay_loops": "a relay led back to a server that its stream came from",
    "relays_refused": "relay_limit was reached",
    "tls_failures": "a TLS handshake failed, or TLS data was invalid",
    "retention_errors": "old recordings could not be listed or deleted",
    "slate_errors": "a slate_file could not be read or used",
    "streams_refused": "stream_limit or waiting_stream_limit was reached",
    "unsupported_codecs": "a player does not support the codec of the video",
}
"""Counters of the hub, by name, that are values of the label ``reason`` of ``rtmpd_failures_total``.

A counter that is in none of these tables is exported as a reason as well, so that no counter is lost.
"""

GAUGES: Final = {
    "tls_certificate_expiry": Total(
        "rtmpd_tls_certificate_expiry_seconds", "Unix time at which the first TLS certificate expires; 0: none.", counter=False
    ),
    "http_connections_active": Total("rtmpd_http_connections_active", "Open HTTP connections.", counter=False),
    "http2_connections_active": Total("rtmpd_http2_connections_active", "Open HTTP connections with HTTP/2.", counter=False),
    "hls_sessions": Total("rtmpd_hls_sessions_active", "Viewers that play by HLS.", counter=False),
    "auth_callbacks_active": Total("rtmpd_auth_callbacks_active", "Callbacks in progress or waiting.", counter=False),
    "recordings_active": Total("rtmp_recordings_active", "Recordings in progress.", counter=False),
    "hls_streams": Total("rtmpd_hls_streams", "Streams that are packaged for HLS.", counter=False),
    "hls_memory_bytes": Total("rtmpd_hls_memory_bytes", "Memory used by HLS segments.", counter=False),
    "wire_log_bytes": Total("rtmpd_wire_log_bytes", "Memory used by the logs of streams.", counter=False),
    "connection_buffer_bytes": Total(
        "rtmpd_connection_buffer_bytes", "Memory used by the buffers of connections.", counter=False
    ),
    "hooks_waiting": Total("rtmpd_hooks_waiting", "Events waiting for delivery to hooks.", counter=False),
    "log_lines_dropped": Total("rtmpd_log_lines_dropped", "Log lines dropped: their target was too slow or failed."),
    "access_lines_dropped": Total("rtmpd_access_log_lines_dropped", "Access log lines dropped."),
}
"""Functions in ``hub.gauges``, by name; the value is 0 while there is no such function."""

STREAMS: Final = (
    Column("rtmp_stream_published", False, "published", "1 while the stream has a publisher, else 0."),
    Column("rtmp_stream_players", False, "players", "Players of the stream."),
    Column("rtmp_stream_bitrate_bps", False, "bitrate_bps", "Media bit rate received from the publisher, mean over 5 s."),
    Column("rtmp_stream_fps", False, "fps", "Video frame rate received from the publisher, mean over 5 s."),
    Column("rtmp_stream_keyframe_age_seconds", False, "keyframe_age_s", "Time since the last keyframe was received."),
    Column("rtmp_stream_keyframe_interval_seconds", False, "keyframe_interval_s", "Time between the last two keyframes."),
    Column("rtmp_stream_lag_seconds", False, "lag_s", "Lag of the slowest player behind the newest frame."),
    Column("rtmp_stream_drops", True, "drops", "Skips and disconnects of players that were too slow."),
    Column("rtmp_stream_skips", True, "skips", "Times that a lagging player was moved to the newest keyframe."),
    Column("rtmp_stream_messages_dropped", True, "messages_dropped", "Messages not sent to players that were too slow."),
    Column("rtmp_stream_frames_disposed", True, "frames_disposed", "Disposable frames among the dropped messages."),
    Column("rtmp_stream_disconnects", True, "disconnects", "Players disconnected by backpressure_policy."),
    Column("rtmp_stream_bytes_ingested", True, "bytes_in", "Media payload received from publishers."),
    Column("rtmp_stream_bytes_egress", True, "bytes_out", "Bytes accepted by the sockets of players and relays."),
    Column("rtmp_stream_sources", False, "source_count", "Publishers of the stream, and the slate while it plays."),
    Column("rtmp_stream_source_switches", True, "source_switches", "Changes of the active source while there were readers."),
    Column("rtmp_stream_copy_frames_filled", True, "copy_frames_filled", "Frames that only one of several copies has brought."),
)

SOURCES: Final = (
    Column("rtmp_stream_source_active", False, "active", "1 for the active source of the stream, else 0."),
    Column("rtmp_stream_source_healthy", False, "healthy", "1 if the source sends media and violates no rule, else 0."),
    Column("rtmp_stream_source_bitrate_bps", False, "bitrate_bps", "Media bit rate of a publisher, mean over 5 s."),
)
"""Of each source of a stream. Sources are named by their roles."""

RELAYS: Final = (
    Column("rtmp_relay_destination_up", False, "up", "1 while the destination receives the stream, else 0."),
    Column("rtmp_relay_destination_lag_seconds", False, "lag_s", "Lag of the destination behind the newest frame."),
    Column("rtmp_relay_destination_bytes_sent", True, "bytes_sent", "Bytes sent to the destination."),
    Column("rtmp_relay_destination_messages_sent", True, "messages_sent", "Messages sent to the destination."),
    Column("rtmp_relay_destination_messages_dropped", True, "messages_dropped", "Messages not sent to the destination."),
    Column("rtmp_relay_destination_reconnects", True, "reconnects", "Connections re-established to the destination."),
)
