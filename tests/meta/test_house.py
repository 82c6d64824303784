"""Rules for the sources and the packaging that no linter checks."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rtmpd

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "rtmpd").rglob("*.py"))
EXTENSION = "rtmpd._fast"  # optional
MODULES = ["rtmpd", *(module.name for module in pkgutil.walk_packages(rtmpd.__path__, "rtmpd.") if module.name != EXTENSION)]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", "utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def listed(section: str, option: str) -> list[str]:
    """The items of an option of several lines."""
    return SETUP[section][option].split()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# Modules ----------------------------------------------------------------------------------------------------------------


def test_every_source_file_is_a_module():
    files = {path.with_suffix("") for path in SOURCES}
    found = {ROOT / name.replace(".", "/") for name in MODULES}
    assert files == {path / "__init__" if path.is_dir() else path for path in found}


def test_importing_everything_patches_nothing():
    """Run in a separate process, since the imports of the tests would hide a patch."""
    names = [name for name in MODULES if not name.endswith("__main__")]
    program = (
        "import importlib, gevent.monkey, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "modules = ['socket', 'ssl', 'select', 'threading', 'time', 'os', 'queue', 'subprocess', 'signal', 'thread']\n"
        "print([name for name in modules if gevent.monkey.is_module_patched(name)])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
    assert done.stderr == ""


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


# The version ------------------------------------------------------------------------------------------------------------


def test_the_version_is_the_installed_one():
    assert importlib.metadata.version("rtmpd") == rtmpd.__version__


def test_the_newest_changes_are_those_of_this_version():
    text = (ROOT / "CHANGES.rst").read_text("utf-8")
    sections = re.findall(r"^v?(\d+\.\d+\S*).*\n[-=~^]+$", text, re.MULTILINE)
    assert sections, "no section of CHANGES.rst begins with a version"
    assert sections[0] == rtmpd.__version__


# What setup.cfg and the Makefile name -----------------------------------------------------------------------------------


def test_the_files_that_the_metadata_names_exist():
    assert (ROOT / SETUP["metadata"]["long_description"].removeprefix("file:").strip()).is_file()
    for name in listed("metadata", "license_files"):
        assert (ROOT / name).is_file()
    for package, names in SETUP["options.package_data"].items():
        for name in names.split():
            assert (ROOT / package.replace(".", "/") / name).is_file()


def test_the_programs_exist():
    for line in SETUP["options.entry_points"]["console_scripts"].strip().splitlines():
        module, _, attribute = line.partition("=")[2].strip().partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))


def test_the_minimum_version_of_python_is_the_same_everywhere():
    minimum = SETUP["options"]["python_requires"].removeprefix(">=")
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'target-version = "py{minimum.replace(".", "")}"' in pyproject
    assert SETUP["mypy"]["python_version"] == minimum
    assert f"Programming Language :: Python :: {minimum}" in SETUP["metadata"]["classifiers"]
    assert sys.version_info >= tuple(map(int, minimum.split(".")))


def test_the_floors_are_all_of_the_package():
    """A new module needs a floor."""
    floors = listed("importlinter:contract:floors", "layers")
    for name in floors:
        importlib.import_module(name)
    top = {f"rtmpd.{module.name}" for module in pkgutil.iter_modules(rtmpd.__path__)} - {"rtmpd.__main__", EXTENSION}
    assert top == set(floors)


def test_the_contract_of_purity_names_modules_that_exist():
    for name in listed("importlinter:contract:pure", "source_modules"):
        importlib.import_module(name)


def test_the_folders_and_files_in_the_options_of_tools_exist():
    for name in [*listed("tool:pytest", "testpaths"), *listed("mypy", "files")]:
        assert (ROOT / name).exists()
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    for pattern in re.findall(r'^"([^"]+)" = \[', pyproject, re.MULTILINE):
        assert list(ROOT.glob(pattern)), pattern


def test_the_makefile_uses_extras_modules_and_files_that_exist():
    for extra in re.findall(r"--editable \.\[([\w,]+)\]", MAKEFILE):
        assert set(extra.split(",")) <= set(SETUP["options.extras_require"])
    for module in re.findall(r"python -m (\w+)", MAKEFILE):
        assert module in ("venv", "pip", "pytest") or (ROOT / module).is_dir()
    for target in re.findall(r"^\S+: (setup\.cfg.*?) \|", MAKEFILE, re.MULTILINE):
        assert all((ROOT / name).is_file() for name in target.split())


def test_the_makefile_has_every_phony_target():
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    targets = re.findall(r"^(\w+):", MAKEFILE, re.MULTILINE)
    assert sorted(phony) == sorted(targets)
    assert {"run", "test", "lint"} <= set(phony)
