"""The documentation parses, its links and examples work, and it agrees with the code."""

import io
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import docutils.core
import docutils.nodes
import pytest

import rtmpd
from rtmpd.cli import FLAGS
from rtmpd.config.loader import load_text
from rtmpd.config.spec import sections

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.rst"), *ROOT.glob("docs/*.rst"), *ROOT.glob("bench/*.rst")])
# Folders that exist only on the machine of an author.
PRIVATE = re.compile(r"(?<![\w.])/(?:home|root|mnt|tmp)/")


def name(page):
    return str(page.relative_to(ROOT))


@cache
def parse(page):
    """Return the page as docutils reads it, and the complaints of docutils."""
    complaints = io.StringIO()
    settings = {"report_level": 1, "halt_level": 5, "warning_stream": complaints, "input_encoding": "utf-8"}
    document = docutils.core.publish_doctree(page.read_text("utf-8"), name(page), settings_overrides=settings)
    return document, complaints.getvalue()


@cache
def sources():
    """Return the paths of the source files."""
    folders = [ROOT / folder for folder in ("rtmpd", "tests", "bench", "docs", "etc")]
    return [f"/{name(path)}" for path in (*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.*")))]


def examples(page, language):
    """Return the blocks of code of a page in one language."""
    document, _ = parse(page)
    return [
        block.astext()
        for block in document.findall(docutils.nodes.literal_block)
        if language in block["classes"] and "wrong" not in block["classes"]
    ]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_parses_without_complaints(page):
    assert parse(page)[1] == ""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_that_exist(page):
    document, _ = parse(page)
    for reference in document.findall(docutils.nodes.reference):
        target = reference.get("refuri", "")
        if target and "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_is_linked_from_the_readme_or_the_index(page):
    linked = set()
    for start in (ROOT / "README.rst", ROOT / "docs" / "index.rst"):
        document, _ = parse(start)
        for reference in document.findall(docutils.nodes.reference):
            linked.add((start.parent / reference.get("refuri", "")).resolve())
    assert page in linked or page.name == "README.rst"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_are_short_and_name_no_private_folder(page):
    for line in page.read_text("utf-8").splitlines():
        assert len(line) <= 120, line
        assert not PRIVATE.search(line), line
        assert line == line.rstrip(), line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_a_page_names_exist(page):
    text = page.read_text("utf-8")
    for path in re.findall(r"``((?:rtmpd|tests|docs|etc|bench|man|systemd|\.ci)/[\w./-]*)``", text):
        assert (ROOT / path).exists(), path
    # A module without its folder, as in a table of a folder.
    for path in re.findall(r"``((?:\w+/)*\w+\.(?:py|configspec|c))``", text):
        assert any(source.endswith(f"/{path}") for source in sources()), path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_modules_that_a_page_names_exist(page):
    for dotted in re.findall(r"``(rtmpd(?:\.[a-z_0-9]+)+)``", page.read_text("utf-8")):
        if (ROOT / "systemd" / dotted).exists():
            continue  # a unit
        path = ROOT / dotted.replace(".", "/")
        assert path.is_dir() or any(path.with_suffix(suffix).exists() for suffix in (".py", ".pyx", ".configspec")), dotted


def test_the_readme_and_the_changes_name_this_version():
    assert f"This is version {rtmpd.__version__}." in (ROOT / "README.rst").read_text("utf-8")
    versions = re.findall(r"^(\d+\.\d+\.\d+) \(", (ROOT / "CHANGES.rst").read_text("utf-8"), re.MULTILINE)
    assert versions[0] == rtmpd.__version__


def test_the_flags_of_the_readme_are_those_of_the_command():
    usage = subprocess.run([sys.executable, "-m", "rtmpd", "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    accepted = set(re.findall(r"--[a-z-]+", usage.stdout))
    text = (ROOT / "README.rst").read_text("utf-8")
    table = set(re.findall(r"^``(--[a-z-]+)", text, re.MULTILINE))
    assert table == accepted - {"--config"}
    for flag in FLAGS:
        assert f"``{flag.name} {flag.argument}``".replace(" ``", "``") in text


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_configurations_on_a_page_are_valid(page):
    for example in examples(page, "ini"):
        load_text(example, name(page))


@pytest.mark.parametrize("page", [ROOT / "CHANGES.rst", ROOT / "docs/design.rst", ROOT / "docs/operations.rst"], ids=name)
def test_words_that_look_like_options_are_options(page):
    options = {option.name for section in sections() for option in section.options}
    for word in re.findall(r"``([a-z]+(?:_[a-z]+)*_(?:s|ms|bytes|limit))``", page.read_text("utf-8")):
        assert word in options, word


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_that_a_page_names_with_their_section_exist(page):
    known = {(section.name, option.name) for section in sections() for option in section.options}
    for section, option in re.findall(r"``\[(\w+)\] (\w+)(?: =[^`]*)?``", page.read_text("utf-8")):
        assert (section, option) in known, f"[{section}] {option}"


def test_flags_that_the_pages_for_users_name_exist():
    for page in (ROOT / "docs" / "migrating.rst", ROOT / "docs" / "troubleshooting.rst"):
        flags = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", page.read_text("utf-8")))
        assert flags <= {flag.name for flag in FLAGS} | {
            "--version",
            "--check-config",
            "--print-config",
            "--make-slate",
            "--like",
        }


def test_operations_names_every_limit_and_timeout():
    text = (ROOT / "docs" / "operations.rst").read_text("utf-8")
    for section in sections():
        for option in section.options:
            if option.name.endswith(("_limit", "_limit_bytes", "_limit_s", "_limit_ms", "_timeout_s")):
                assert f"``{option.name}``" in text, option.name


# The table of what clients do, and its tests ----------------------------------------------------------------------------


def rows_of_the_table():
    """Row number to what rtmpd does with it, from docs/protocol.rst."""
    text = (ROOT / "docs" / "protocol.rst").read_text("utf-8").partition("\nWhat clients do\n")[2]
    row = r"^   \* - (\d+)\n     - .*\n     - (handled|passed on|ignored|refused|missing)$"
    return {int(number): done for number, done in re.findall(row, text, re.MULTILINE)}


def rows_of_the_tests():
    rows = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for first, second in re.findall(r"def test_row_0*(\d+)(?:_and_0*(\d+))?_", path.read_text("utf-8")):
            rows |= {int(row) for row in (first, second) if row}
    return rows


def test_every_row_of_the_table_has_a_test_and_every_tested_row_is_in_the_table():
    rows = rows_of_the_table()
    assert len(rows) > 60
    assert rows_of_the_tests() == {row for row, done in rows.items() if done != "missing"}


# Examples run -----------------------------------------------------------------------------------------------------------


def run_example(path, text, url, **options):
    path.write_text(text)
    return subprocess.Popen([sys.executable, path, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_the_programs_of_the_client_page_run(server, tmp_path):
    publish, play, refused = examples(ROOT / "docs" / "client.rst", "python")
    running = server()
    publisher = run_example(tmp_path / "publish.py", publish, running.url())
    running.wait_for_line(r"publishes live/test")
    player = run_example(tmp_path / "play.py", play, running.url())
    running.wait_for_line(r"plays live/test")
    second = run_example(tmp_path / "second.py", refused, running.url())
    other = run_example(tmp_path / "other.py", refused, running.url("other"))
    assert second.communicate(timeout=20) == ("refused: NetStream.Publish.BadName\n", "")
    assert other.communicate(timeout=20) == ("published\n", "")
    output, errors = player.communicate(timeout=20)
    assert errors == ""
    counts = dict(line.split() for line in output.splitlines())
    assert list(counts)[:2] == ["DATA_AMF0", "VIDEO"]
    assert int(counts["VIDEO"]) > 10
    assert publisher.communicate(timeout=20) == ("", "")
    assert [process.returncode for process in (publisher, player, second, other)] == [0, 0, 0, 0]
    running.wait_for_line(r"stopped publishing live/test: FCUnpublish; .*\(video h264\)")


def test_the_refusal_program_prints_that_there_is_no_connection(tmp_path):
    refused = examples(ROOT / "docs" / "client.rst", "python")[2]
    process = run_example(tmp_path / "refused.py", refused, "rtmp://127.0.0.1:1/live/test")
    output, errors = process.communicate(timeout=20)
    assert output.startswith("no connection: can't connect to 127.0.0.1:1: ")
    assert errors == ""
