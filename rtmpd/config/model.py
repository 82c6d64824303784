"""The configuration as typed, immutable values.

There is one field per option of rtmpd.configspec, which has the description and the default; the loader sets the values.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping  # noqa: TC003 - a field's type is looked up at run time
from dataclasses import dataclass
from typing import Final, Self

from rtmpd.config.access_rules import NamedSecret, Network  # noqa: TC001 - a field's type is looked up at run time
from rtmpd.config.file_names import FileNameTemplate  # noqa: TC001 - a field's type is looked up at run time
from rtmpd.config.hook_targets import ScriptHook, WebhookHook  # noqa: TC001 - a field's type is looked up at run time
from rtmpd.config.relay_url import RelayUrl  # noqa: TC001 - a field's type is looked up at run time
from rtmpd.config.secret import Secret  # noqa: TC001 - a field's type is looked up at run time
from rtmpd.util.text import shown

DEFAULT_APPLICATION: Final = "*"
"""The name of the application that takes connections that no other name takes."""

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*", re.ASCII)
_ZONE = re.compile(r"[A-Za-z0-9_.-]*", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class ListenAddress:
    """An address to listen on.

    Attributes:
        host: An IP address, without brackets, or a host name. Empty: all addresses, IPv4 and IPv6.
        port: The TCP port; 0: the kernel chooses.
    """

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``HOST:PORT``, ``:PORT`` or ``[IPv6]:PORT``.

        Raises:
            ValueError: The text is none of these; the message is complete ("expected ..., got ...").
        """
        host, colon, port = text.rpartition(":")
        if not colon:
            hint = f"; a port alone is written {shown(':' + text)}" if _PORT.fullmatch(text) else ""
        elif host.count(":") and not host.startswith("["):
            hint = "; an IPv6 address is written in brackets"
        elif not _PORT.fullmatch(port) or int(port) > 65535:
            hint = "; the port is a number from 0 to 65535"
        else:
            try:
                return cls(_parse_host(host), int(port))
            except ValueError as error:
                hint = f"; {error}"
        raise ValueError(f"expected HOST:PORT, :PORT or [IPv6]:PORT, got {shown(text)}{hint}")

    def overlaps(self, other: ListenAddress) -> bool:
        """Return whether the kernel would refuse to listen on both addresses."""
        if self.port != other.port or self.port == 0:
            return False
        hosts = {self.host, other.host}
        if len(hosts) == 1 or "" in hosts:
            return True
        families = {_family(host) for host in hosts}
        return len(families) == 1 and None not in families and bool(hosts & {"0.0.0.0", "::"})  # noqa: S104


def _family(host: str) -> int | None:
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return None


def _parse_host(host: str) -> str:
    """Return a valid host in a canonical form, for comparisons; raises ValueError."""
    if not host:
        return ""
    if host.startswith("[") and host.endswith("]"):
        zone = host[1:-1].partition("%")[2]
        try:
            address = str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            address = ""
        if not address or not _ZONE.fullmatch(zone):
            raise ValueError(f"{shown(host[1:-1])} is not an IPv6 address")
        return address
    # A host name that ends in a number is a wrong IPv4 address: the resolver would read 1.2.3 as 1.2.0.3.
    if host.rpartition(".")[2].isdigit():
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError(f"{shown(host)} is not an IPv4 address") from None
    if not _HOST_NAME.fullmatch(host) or len(host) > 253:
        raise ValueError(f"{shown(host)} is not a host name or an address")
    return host.lower()


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The options of ``[server]``."""

    listen: tuple[ListenAddress, ...]
    user: str
    group: str
    chunk_size_bytes: int
    window_ack_size_bytes: int
    peer_bandwidth_bytes: int
    handshake_timeout_s: float
    connect_timeout_s: float
    idle_timeout_s: float
    lazy_read_ms: float
    read_timeout_s: float
    write_timeout_s: float
    ping_interval_s: float
    ping_timeout_s: float
    unsent_limit_bytes: int
    proxy_protocol_from: tuple[Network, ...]
    drain_reconnect_url: str
    drain_timeout_s: float


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """The options of ``[limits]``. An application can set only some of them."""

    connection_limit: int
    connections_per_address_limit: int
    connection_rate_limit: int
    stream_limit: int
    waiting_stream_limit: int
    players_per_stream_limit: int
    publish_bitrate_limit: int
    publish_bitrate_grace_s: float
    publish_bitrate_action: str
    message_limit_bytes: int
    request_limit_bytes: int
    url_limit_bytes: int
    gop_cache_limit_bytes: int
    memory_limit_bytes: int
    chunk_stream_limit: int
    message_stream_limit: int
    command_limit: int
    relay_limit: int


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """The options of ``[tls]``."""

    tls_listen: tuple[ListenAddress, ...]
    tls_cert: tuple[str, ...]
    tls_key: tuple[str, ...]
    tls_version: str
    tls_handshake_timeout_s: float
    tls_client_auth: str
    tls_client_ca: str
    tls_ca: str
    tls_verify: bool


@dataclass(frozen=True, slots=True)
class LogConfig:
    """The options of ``[log]``."""

    level: str
    log_target: str
    log_file: str
    log_format: str
    access_log_file: str
    stream_summary_s: float
    queue_limit: int


@dataclass(frozen=True, slots=True)
class LiveConfig:
    """The options of ``[live]``."""

    gop_cache: bool
    wait_for_publisher: bool
    default_stream_name: str
    keyframe_wait_s: float
    pacing: bool
    pacing_share: float
    pacing_limit_ms: float
    hevc_fallback: str
    multitrack_fallback: str
    unsupported_codec: str


@dataclass(frozen=True, slots=True)
class PublishConfig:
    """The options of ``[publish]``."""

    publisher_grace_s: float
    on_conflict: str
    publisher_takeover_s: float
    takeover_by: str
    takeover_hold_s: float
    standby_limit: int
    backup_alias: str
    stall_timeout_s: float
    frame_rate_floor: float
    bitrate_floor: int
    keyframe_timeout_s: float
    frozen_timeout_s: float
    frozen_frame_bytes: int
    silence_timeout_s: float
    silence_frame_bytes: int
    failover_hold_s: float
    failback: str
    failback_after_s: float
    match_copies: bool
    align_clocks: bool


@dataclass(frozen=True, slots=True)
class SlateConfig:
    """The options of ``[slate]``."""

    slate_file: str
    slate_limit_bytes: int
    slate_record: bool


@dataclass(frozen=True, slots=True)
class BackpressureConfig:
    """The options of ``[backpressure]``."""

    backpressure_policy: str
    lag_limit_s: float
    lag_limit_bytes: int
    max_latency_s: float


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """The options of ``[auth]``."""

    auth_mode: str
    auth_publish: bool
    auth_play: bool
    auth_tokens: tuple[NamedSecret, ...]
    auth_file: str
    auth_callback: Secret
    auth_callback_format: str
    auth_callback_timeout_s: float
    auth_recheck_s: float
    auth_recheck_grace_s: float
    auth_publish_keys: tuple[NamedSecret, ...]
    auth_users: tuple[NamedSecret, ...]
    auth_sign_secrets: tuple[Secret, ...]
    publish_allow: tuple[Network, ...]
    publish_deny: tuple[Network, ...]
    play_allow: tuple[Network, ...]
    play_deny: tuple[Network, ...]
    auth_ban_failures: int
    auth_ban_window_s: float
    auth_ban_s: float
    auth_ban_exempt: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """The options of ``[relay]``."""

    relay_to: tuple[RelayUrl, ...]
    relay_connect_timeout_s: float
    relay_write_timeout_s: float
    relay_ack_timeout_s: float
    relay_retry_s: float
    relay_retry_limit_s: float
    relay_on_header_change: str


@dataclass(frozen=True, slots=True)
class HlsConfig:
    """The options of ``[hls]``. An application can set only some of them."""

    hls: str
    hls_segment_s: float
    hls_part_ms: float
    hls_window_s: float
    hls_memory_limit_bytes: int
    hls_idle_s: float
    hls_renditions: tuple[str, ...]
    hls_secret: Secret
    hls_total_limit_bytes: int
    hls_directory: str


@dataclass(frozen=True, slots=True)
class RecordConfig:
    """The options of ``[record]``."""

    record_all: bool
    record_streams: tuple[str, ...]
    record_format: str
    record_directory: str
    record_file_name: FileNameTemplate
    segment_duration_s: float
    segment_size_bytes: int
    keep_age_s: float
    keep_size_bytes: int
    keep_free_bytes: int
    disk_reserve_bytes: int
    disk_backlog_limit_bytes: int
    disk_timeout_s: float
    record_retry_s: float


@dataclass(frozen=True, slots=True)
class ApplicationConfig:
    """The options of one application: those that it sets itself, and those of the sections."""

    limits: LimitsConfig
    live: LiveConfig
    publish: PublishConfig
    slate: SlateConfig
    backpressure: BackpressureConfig
    auth: AuthConfig
    record: RecordConfig
    relay: RelayConfig
    hls: HlsConfig


DEFAULT_HTTP: Final = ListenAddress("127.0.0.1", 8080)
"""The default of ``http_listen``. Unlike any other address, it may be in use."""


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """The options of ``[http]``."""

    http_listen: tuple[ListenAddress, ...]
    http_tls_listen: tuple[ListenAddress, ...]
    http_allow_origin: tuple[str, ...]
    http_frame_ancestors: tuple[str, ...]
    http_metrics_from: tuple[Network, ...]

    @property
    def may_be_in_use(self) -> bool:
        """Whether ``http_listen`` is the default address: the server starts without it if it is in use."""
        return self.http_listen == (DEFAULT_HTTP,)


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """The options of ``[metrics]``."""

    metrics_listen: tuple[ListenAddress, ...]
    stream_series_limit: int


@dataclass(frozen=True, slots=True)
class HooksConfig:
    """The options of ``[hooks]``."""

    hook_scripts: tuple[ScriptHook, ...]
    hook_webhooks: tuple[WebhookHook, ...]
    hook_stdio_format: str
    hook_timeout_s: float
    hook_concurrency: int
    hook_queue_limit: int
    hook_retries: int
    hook_retry_limit_s: float
    hook_secret: Secret


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration: a field for each section.

    Attributes:
        applications: The named applications, each with all its options.
    """

    server: ServerConfig
    limits: LimitsConfig
    tls: TlsConfig
    log: LogConfig
    live: LiveConfig
    publish: PublishConfig
    slate: SlateConfig
    backpressure: BackpressureConfig
    auth: AuthConfig
    record: RecordConfig
    relay: RelayConfig
    http: HttpConfig
    hls: HlsConfig
    metrics: MetricsConfig
    hooks: HooksConfig
    applications: Mapping[str, ApplicationConfig]

    @property
    def defaults(self) -> ApplicationConfig:
        """The options of an application that sets none itself."""
        return ApplicationConfig(
            limits=self.limits,
            live=self.live,
            publish=self.publish,
            slate=self.slate,
            backpressure=self.backpressure,
            auth=self.auth,
            record=self.record,
            relay=self.relay,
            hls=self.hls,
        )

    @property
    def slate_files(self) -> dict[str, int]:
        """Each ``slate_file`` with the largest ``slate_limit_bytes`` of the parts that name it."""
        found: dict[str, int] = {}
        for part in (self.slate, *(each.slate for each in self.applications.values())):
            if part.slate_file:
                found[part.slate_file] = max(found.get(part.slate_file, 0), part.slate_limit_bytes)
        return found

    def application(self, app: str) -> tuple[str, ApplicationConfig] | None:
        """Find the application that the path *app* belongs to: the longest name that is a prefix of the path.

        Only whole parts of a path match: ``live/sub`` belongs to ``live``, ``lively`` does not.

        Returns:
            The name and the options of the application. None: connections to *app* must be refused.
        """
        if not self.applications:
            return DEFAULT_APPLICATION, self.defaults
        prefix = app.strip("/")
        while prefix:
            options = self.applications.get(prefix)
            if options is not None:
                return prefix, options
            prefix = prefix.rpartition("/")[0]
        options = self.applications.get(DEFAULT_APPLICATION)
        return None if options is None else (DEFAULT_APPLICATION, options)
