"""Network namespaces, joined by links that can be slow or cut. Needs root, and iproute2."""

from __future__ import annotations

import subprocess


class Namespace:
    """A network namespace, for as long as this is open."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self.pid = self._holder.pid
        self.prefix = ("nsenter", "-t", str(self.pid), "-n")
        self.run("ip link set lo up")

    def run(self, command: str) -> None:
        done = subprocess.run([*self.prefix, *command.split()], capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


def link(near: Namespace, far: Namespace, number: int, rate: str = "") -> str:
    """Join two namespaces; return the address of the near end. *rate*: of what is sent to the far one, such as 900kbit."""
    near.run(f"ip link add far{number} type veth peer name near netns {far.pid}")
    near.run(f"ip addr add 10.97.{number}.1/24 dev far{number}")
    near.run(f"ip link set far{number} up")
    far.run(f"ip addr add 10.97.{number}.2/24 dev near")
    far.run("ip link set near up")
    if rate:
        near.run(f"tc qdisc add dev far{number} root tbf rate {rate} burst 16k latency 300ms")
    return f"10.97.{number}.1"
