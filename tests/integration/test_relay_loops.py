"""Relays that lead back to where their stream comes from."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.integration.wire import begin

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Server


def reload(server: Server, directory: Path, ini: str) -> None:
    (directory / "rtmpd.ini").write_text(ini)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_line("configuration reloaded")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "127.9.9.9", "[::ffff:127.0.0.1]"])
def test_a_relay_to_its_own_server_is_refused(server, host, publisher, player, tmp_path):
    running = server("[live]\n", "--listen", ":0")
    port = running.wait_for_line(r"listening on (?:\[::\]|0\.0\.0\.0):(\d+)")[1]
    reload(running, tmp_path, f"[relay]\nrelay_to = rtmp://{host}:{port}/{{app}}/{{name}}\n")
    sender, watcher = publisher(running, "cam"), player(running, "cam")
    begin(sender, watcher)
    running.wait_for_line(
        r"WARNING live/cam: relay to \S+ does not come up: the destination is this very server: a loop; "
        r"the next attempt follows in \d\d\.\d s"
    )
    assert len([line for line in running.log() if " publishes " in line]) == 1


def test_a_loop_over_another_server_is_refused(server, publisher, player, tmp_path):
    """A to B to A, each under another name, so that nothing but the mark tells."""
    first = server("[live]\n")
    second = server("", "--relay-to", first.url("{name}x", "a"))
    reload(first, tmp_path, f"[relay]\nrelay_to = {second.url('{name}', 'b')}\n")
    sender, watcher = publisher(first, "cam"), player(first, "cam")
    begin(sender, watcher)
    loop = r"refused: NetStream\.Publish\.Rejected: A relay loop: the stream has come from this server\."
    second.wait_for_line(rf"WARNING b/cam: relay to \S+ does not come up: {loop}; the next attempt follows in")
    first.wait_for_line(f"publish {loop}")
    assert [line.rpartition(" ")[2] for line in first.log() if " publishes " in line] == ["live/cam"]
