"""JavaScript libraries that the tests play with, as npm packages. The repository carries none of them."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.conftest import find_peer, miss_peer

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rtmpd-tests"

NPM_FLAGS = ("--loglevel=error", "--fetch-retries=2", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000")


class Package(NamedTuple):
    """A version of an npm package, the SHA-512 of its tarball as npm writes it, and the file of it that pages load."""

    name: str
    version: str
    integrity: str
    script: str


HLS_JS = Package(
    "hls.js",
    "1.7.4",
    "sha512-3GlxGdPvT2YHvQYOt+yOzT/DEior/qJVNIylHA77kgeoBTdQQqi70GwefNEUmHQeNGyjC8U62+bruqW/Tpm+tg==",
    "package/dist/hls.js",
)
MPEGTS_JS = Package(
    "mpegts.js",
    "1.8.2",
    "sha512-cZYMa5muASH55wrS6JK5IGkUqnCA96c0f+WdnW91jIK9s/N6NzjmTQDJNYg9A5u/G2Q5nj2b3w1Zwzze/9guxA==",
    "package/dist/mpegts.js",
)


def script_of(package: Package) -> bytes:
    """Return the script of a package, which is downloaded once.

    Without npm or its registry the test is skipped, or fails with RTMPD_REQUIRE_PEERS. Another tarball than the pinned one
    fails the test.
    """
    kept = CACHE / f"{package.name}-{package.version}.tgz"
    if not kept.exists():
        _download(package, kept)
    data = kept.read_bytes()
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    assert found == package.integrity, f"{kept} is not the tarball that the tests know"
    with tarfile.open(kept) as tarball:
        member = tarball.extractfile(package.script)
        assert member is not None
        return member.read()


def _download(package: Package, kept: Path) -> None:
    npm = find_peer("npm", "npm")
    CACHE.mkdir(parents=True, exist_ok=True)
    # Two test processes may download at once.
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        command = [npm, "pack", *NPM_FLAGS, "--pack-destination", directory, f"{package.name}@{package.version}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            problem = done.stderr.strip()[:300]
        except subprocess.TimeoutExpired:
            problem = "no answer"
        made = list(Path(directory).glob("*.tgz"))
        if not made:
            miss_peer(f"npm can't download {package.name} {package.version}: {problem}")
        made[0].replace(kept)
