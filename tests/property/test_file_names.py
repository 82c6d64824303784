"""Names of recordings: for any stream name the files are inside the directory, and the template recognizes them."""

from __future__ import annotations

import datetime as dt
import os
import posixpath

from hypothesis import assume, example, given
from hypothesis import strategies as st

from rtmpd.config.file_names import FileNameTemplate, safe_component

NAMES = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=300),
    st.binary(max_size=120).map(lambda data: data.decode("utf-8", "surrogateescape")),
    st.lists(st.sampled_from(("..", ".", "/", "\0", "\n", "%", "~", "\udcff", "x" * 40, "-2", ".flv", "")), max_size=8).map(
        "".join
    ),
    st.sampled_from(("../../etc/passwd", "", ".", "..", "/", "CON", "x" * 10_000, "\udcc3\udca9", "\ud800")),
)
START = dt.datetime(2031, 2, 3, tzinfo=dt.UTC)
STARTS = st.builds(lambda seconds: START + dt.timedelta(seconds=seconds), st.floats(-1e9, 1e11))
PIECES = st.sampled_from(
    [
        "{app}",
        "{name}",
        "{n}",
        "{n:03}",
        "{start:%Y/%m/%d}",
        "{start:%H%M%S}",
        "{start:%I%p-%j.%f}",
        "/",
        "/",
        "-",
        "a",
        " ",
        ".",
        "~",
    ]
)
TEMPLATES = st.lists(PIECES, min_size=1, max_size=8).map("".join)
ADDED = st.sampled_from(("", "-2", "-99", "-1a2b3c4d", "-99-2"))


def parsed(text: str) -> FileNameTemplate | None:
    try:
        return FileNameTemplate.parse(text)
    except ValueError:
        return None


@given(TEMPLATES, NAMES, NAMES, STARTS, st.integers(1, 10**9), ADDED)
@example("{app}/{name}-{start:%Y%m%d-%H%M%S}", "..", "../../etc/passwd", START, 1, "-2")
def test_every_name_gives_a_path_inside_the_directory_that_the_template_recognizes(text, app, name, start, number, added):
    template = parsed(text)
    assume(template is not None)
    path = template.expand(app, name, start, number)
    assert path.isascii()
    assert path.isprintable()
    assert posixpath.normpath(path) == path
    assert not path.startswith("/")
    for component in path.split("/"):
        assert component.strip()
        assert not component.startswith(".")
        assert len(component) <= 200
    assert os.path.commonpath(["/recordings", posixpath.join("/recordings", path)]) == "/recordings"
    assert template.matches(path + added)
    parts = path.split("/")
    for length in range(1, len(parts)):
        assert template.matches_directory("/".join(parts[:length]))
        assert not template.matches("/".join(parts[:length]))
    assert not template.matches_directory(path)


@given(NAMES, NAMES)
@example("", "%")
@example("%2E", ".")
@example("é", "\udcc3\udca9")
@example("x" * 101, "x" * 102)
def test_different_names_give_different_values(first, second):
    assume(first != second)
    assert safe_component(first) != safe_component(second)


@given(st.text(st.characters(exclude_categories=())))
def test_any_template_is_valid_or_has_a_problem(text):
    template = parsed(text)
    if template is not None:
        assert template.matches(template.expand("a", "b", START, 1))
