"""Behind a real haproxy: the client's own address is in the log, and counts for limits."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import serving
from tests.e2e.media import AT_ONCE, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.media import Programs

HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen rtmp
    bind 127.0.0.1:{front}
    source 127.0.0.1
    server rtmpd 127.0.0.1:{back} {option} check inter 200ms
"""

pytestmark = pytest.mark.peer


@pytest.fixture
def balancer(programs: Programs, peer, tmp_path) -> Callable[[int, str], int]:
    """Return a function that starts haproxy in front of a port, and gives its own."""

    def start(back: int, option: str) -> int:
        program = peer("haproxy", "haproxy")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            front = probe.getsockname()[1]
        configuration = tmp_path / f"haproxy{front}.cfg"
        configuration.write_text(HAPROXY.format(front=front, back=back, option=option))
        started = programs.start("haproxy", program, "-db", "-f", configuration)

        def ready() -> bool:
            assert started.running, started.errors
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", front)) == 0

        until(ready, "haproxy")
        return front

    return start


def ports_of_clients(server_port: int) -> set[int]:
    """The ports that open connections to a local port come from."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established = [(local, remote) for _, local, remote, state, *_ in rows if state == "01"]
    return {int(local[-4:], 16) for local, remote in established if int(remote[-4:], 16) == server_port}


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_a_stream_through_haproxy_has_the_clients_address(option, balancer, programs: Programs, tmp_path: Path):
    ini = f"{AT_ONCE}[server]\nproxy_protocol_from = 127.0.0.1\n"
    with serving(ini, tmp_path) as server:
        front = balancer(server.port, option)
        url = f"rtmp://127.0.0.1:{front}/live/a"
        player = programs.play(url)
        server.wait_for_line(r"plays live/a$")
        publisher = programs.publish("h264_aac", url)
        ports = {int(server.wait_for_line(rf"#\d+ 127\.0\.0\.1:(\d+) {what} live/a$")[1]) for what in ("publishes", "plays")}
        assert ports == ports_of_clients(front)
        publisher.succeed()
        player.succeed()
        assert len(player.packets()["video 0"]) == 75
        # The balancer's looks at whether we are there are no errors.
        assert not [line for line in server.log() if re.search(" (WARNING|ERROR) +(?!running as root)", line)]


def test_proxy_headers_are_required_from_configured_balancers_and_refused_from_others(
    balancer, programs: Programs, tmp_path: Path
):
    with serving(AT_ONCE, tmp_path) as server:
        front = balancer(server.port, "send-proxy-v2")
        publisher = programs.publish("h264_aac", f"rtmp://127.0.0.1:{front}/live/a")
        assert publisher.wait() != 0
        server.wait_for_line(r"WARNING .*handshake")
        ini = tmp_path / "rtmpd.ini"
        ini.write_text(f"{AT_ONCE}[server]\nproxy_protocol_from = 127.0.0.1\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("configuration reloaded")
        publisher = programs.publish("h264_aac", server.url("b"))
        assert publisher.wait() != 0
        server.wait_for_line(r"WARNING 127.0.0.1:\d+: expected a PROXY header, found b'\\x03")
        programs.publish("h264_aac", f"rtmp://127.0.0.1:{front}/live/c").succeed()
        server.wait_for_line(r"stopped publishing live/c")
