"""rtmpd.util.speed: which form of the hot paths is in use, and that a server works with either."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rtmpd
from rtmpd.util import speed

ROOT = Path(rtmpd.__file__).parents[1]
BUILT = any((ROOT / "rtmpd").glob("_fast.*.so"))


def version(program: str = "from rtmpd.cli import main; main(['--version'])", **variables: str) -> str:
    """The output of ``rtmpd --version`` in an environment."""
    environment = {name: value for name, value in os.environ.items() if name != "RTMPD_PURE"} | variables
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def test_the_extension_is_built_where_it_must_be():
    if os.environ.get("RTMPD_REQUIRE_FAST") == "1":
        assert BUILT
        assert speed.IN_USE == "compiled"


def test_a_variable_forces_pure_python():
    assert version(RTMPD_PURE="1") == f"rtmpd {rtmpd.__version__} (pure Python)\n"


@pytest.mark.skipif(not BUILT, reason="the extension is not built")
@pytest.mark.parametrize("variables", [{}, {"RTMPD_PURE": ""}, {"RTMPD_PURE": "0"}], ids=str)
def test_the_extension_is_used_if_it_is_built(variables):
    assert version(**variables) == f"rtmpd {rtmpd.__version__} (compiled)\n"


@pytest.mark.parametrize(
    "extension",
    [
        pytest.param("sys.modules['rtmpd._fast'] = None", id="none"),
        pytest.param("rtmpd._fast = types.SimpleNamespace(INTERFACE=0)", id="of other sources"),
    ],
)
def test_without_an_extension_that_fits_everything_is_pure_python(extension):
    program = f"import sys, types, rtmpd; {extension}; from rtmpd.cli import main; main(['--version'])"
    assert version(program) == f"rtmpd {rtmpd.__version__} (pure Python)\n"


def test_the_interface_of_the_extension_is_that_of_the_sources():
    (number,) = re.findall(r"^INTERFACE = (\d+)$", (ROOT / "rtmpd" / "_fast.pyx").read_text("utf-8"), re.MULTILINE)
    assert int(number) == speed.INTERFACE


def test_a_form_is_replaced_only_if_the_extension_is_in_use():
    from rtmpd.live import subscriber

    pure = speed.PURE["send_each"]
    assert (subscriber.send_each is pure) == (speed.IN_USE == "pure Python")
