"""The manual pages agree with the spec, the command and the daemon, and have no warnings of man and mandoc."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import docutils.core
import docutils.nodes
import pytest

import rtmpd
from rtmpd.config.loader import load_text
from rtmpd.config.render import replace_flags, replace_options
from rtmpd.config.spec import sections

ROOT = Path(__file__).parents[2]
COMMAND, FILE = ROOT / "man" / "rtmpd.8", ROOT / "man" / "rtmpd.ini.5"
PAGES = (COMMAND, FILE)
UPDATE = "run python -m rtmpd.config.render"


def name(page):
    return page.name


def plain(text):
    """Text without roff's escapes."""
    text = re.sub(r"\\f[BIRP]", "", text)
    for escape, character in {"-": "-", "e": "\\", "(dq": '"', "(aq": "'", "(ha": "^", "(ti": "~", "(ga": "`", "&": ""}.items():
        text = text.replace(f"\\{escape}", character)
    return text


def section(page, title):
    """The lines of one section."""
    found = re.search(rf'^\.SH "?{title}"?\n(.*?)(?=^\.SH|\Z)', page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def examples(page):
    """The examples of a page, as they are to be typed."""
    return [plain(text) for text in re.findall(r"^\.EX\n(.*?)^\.EE$", section(page, "EXAMPLES"), re.MULTILINE | re.DOTALL)]


def test_options_and_flags_are_written_from_the_spec():
    text = FILE.read_text("utf-8")
    assert replace_options(text) == text, UPDATE
    text = COMMAND.read_text("utf-8")
    assert replace_flags(text) == text, UPDATE


def test_every_option_is_listed_in_order():
    listed = re.findall(r"^\.(?:SS \[(\w+)\]|TP\n\.B (\w+))$", section(FILE, "OPTIONS"), re.MULTILINE)
    wanted = [pair for each in sections() for pair in [(each.name, ""), *(("", option.name) for option in each.options)]]
    assert listed == wanted


def test_the_page_lists_exactly_the_flags_of_the_command():
    usage = subprocess.run([sys.executable, "-m", "rtmpd", "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    accepted = set(re.findall(r"--[a-z-]+", usage.stdout))
    tags = re.findall(r"^\.T[PQ]\n(\.B.*)$", section(COMMAND, "OPTIONS"), re.MULTILINE)
    assert set(re.findall(r"--[a-z-]+", plain("\n".join(tags)))) == accepted


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_has_its_sections_and_this_version(page):
    text = page.read_text("utf-8")
    assert f'"rtmpd {rtmpd.__version__}"' in text.splitlines()[0]
    titles = [title.strip('"') for title in re.findall(r"^\.SH (.+)$", text, re.MULTILINE)]
    wanted = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "FILES", "EXAMPLES", "SEE ALSO"]
    assert [title for title in titles if title in wanted] == wanted
    assert {"SIGNALS", "EXIT STATUS", "ENVIRONMENT"} <= set(titles) or page == FILE


@pytest.mark.peer
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_man_has_no_warnings(page, peer):
    done = subprocess.run(
        [peer("man", "man-db"), "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MAN_KEEP_FORMATTING": "1"},
    )
    assert done.stderr == ""
    assert "RTMPD" in done.stdout


@pytest.mark.peer
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_mandoc_has_no_warnings(page, peer):
    done = subprocess.run([peer("mandoc", "mandoc"), "-Tlint", page], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


# What the daemon does -----------------------------------------------------------------------------------------------------


def table(heading):
    """The first column of the table below a heading of docs/operations.rst."""
    settings = {"report_level": 5, "input_encoding": "utf-8"}
    document = docutils.core.publish_doctree((ROOT / "docs/operations.rst").read_text("utf-8"), settings_overrides=settings)
    (part,) = [one for one in document.findall(docutils.nodes.section) if one[0].astext() == heading]
    rows = next(iter(part.findall(docutils.nodes.tbody))).findall(docutils.nodes.row)
    return [row[0].astext() for row in rows]


def test_the_signals_are_those_of_the_daemon_and_of_the_operators_page():
    handled = set(re.findall(r"signal_handler\(signal\.(SIG\w+)", (ROOT / "rtmpd/daemon/main.py").read_text("utf-8")))
    # faulthandler's.
    handled.add("SIGABRT")
    tags = re.findall(r"^\.TP\n\.BR? (.+)$", section(COMMAND, "SIGNALS"), re.MULTILINE)
    assert set(re.findall(r"SIG\w+", " ".join(tags))) == handled
    assert set(re.findall(r"SIG\w+", " ".join(table("Signals")))) == handled
    assert all(hasattr(signal, each) for each in handled)


def test_the_exit_codes_are_those_of_the_operators_page():
    tags = re.findall(r"^\.TP\n\.B (\d)$", section(COMMAND, "EXIT STATUS"), re.MULTILINE)
    assert tags == [code for code in table("Exit codes") if code.isdigit()]


@pytest.mark.parametrize("example", examples(FILE), ids=lambda text: text.split("\n")[0])
def test_an_example_of_a_file_is_valid(example):
    assert load_text(example) != load_text("")
