"""Names of recordings: safe path components, valid templates, and the paths that a template matches."""

from __future__ import annotations

import datetime as dt
import re
import time

import pytest

from rtmpd.config.file_names import FileNameTemplate, safe_component

DEFAULT = "{app}/{name}-{start:%Y%m%d-%H%M%S}"
START = dt.datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=dt.UTC)


def expand(template: str, app: str = "live", name: str = "cam", start: dt.datetime = START, number: int = 1) -> str:
    return FileNameTemplate.parse(template).expand(app, name, start, number)


# Values -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "component"),
    [
        ("cam1", "cam1"),
        ("A-b_c.d", "A-b_c.d"),
        ("", "%"),
        (".", "%2E"),
        ("..", "%2E."),
        (".hidden", "%2Ehidden"),
        ("/", "%2F"),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
        ("a\nb", "a%0Ab"),
        ("a\0b", "a%00b"),
        ("CON", "CON"),
        ("%2E", "%252E"),
        ("%", "%25"),
        ("~root", "%7Eroot"),
        ("-rf", "-rf"),
        ("a b", "a%20b"),
        ("kamera-ü", "kamera-%C3%BC"),
        ("\udcff\udc80", "%FF%80"),
        ("x" * 100, "x" * 100),
    ],
)
def test_a_name_becomes_one_component(text, component):
    assert safe_component(text) == component


@pytest.mark.parametrize(
    "text", ["x" * 10_000, "ü" * 10_000, "/" * 10_000, "." * 10_000, "x" * 82 + "ü" * 50, "x" * 81 + "/" * 50]
)
def test_a_long_name_keeps_its_beginning_and_gets_a_hash(text):
    component = safe_component(text)
    assert len(component) <= 100
    head, hash_ = component.split("~")
    assert len(hash_) == 16
    # No escape sequence is cut.
    assert safe_component(text[:20])[:20] == head[:20]
    assert all(len(piece) >= 2 for piece in head.split("%")[1:])
    assert component != safe_component(text + "x")


def test_text_that_no_client_can_send_has_a_name_of_its_own():
    texts = ["\ud800", "\udbff\udfff", "\U0010ffff", "\udced\udca0\udc80", "é", "\udcc3\udca9", "\udcff\udced\udca0\udc80"]
    components = [safe_component(text) for text in texts]
    assert len(set(components)) == len(texts)
    assert all(component.isascii() and len(component) <= 100 for component in components)
    assert safe_component("é") == "%C3%A9"
    assert safe_component("\udcc3\udca9").startswith("%ED%B3%83%ED%B2%A9~")


# Expansion ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "path"),
    [
        (DEFAULT, "live/cam-20310203-040506"),
        ("{name}", "cam"),
        ("{app}-{name}-{n}", "live-cam-7"),
        ("{name}/{n:03}", "cam/007"),
        ("{start:%Y/%m/%d}/{name}", "2031/02/03/cam"),
        ("{start:%Y/}{name}", "2031/cam"),
        ("all{start:/%Y}/{name}", "all/2031/cam"),
        ("{name}/{name}-{start:%H.%M}", "cam/cam-04.05"),
        ("{name} ({start:%y-%j %I%p %G-%V-%u %f})", "cam (31-034 04AM 2031-06-1 000789)"),
    ],
)
def test_a_template_is_expanded(template, path):
    parsed = FileNameTemplate.parse(template)
    assert parsed.expand("live", "cam", START, 7) == path
    assert parsed.matches(path)
    assert str(parsed) == template


def test_an_application_with_slashes_creates_no_directory():
    assert expand(DEFAULT, app="live/sub") == "live%2Fsub/cam-20310203-040506"
    assert expand("{app}/{name}", app="../..", name="../x") == "%2E.%2F../%2E.%2Fx"


def test_noon_is_pm_in_every_locale():
    assert expand("{name}-{start:%I%p}", start=START.replace(hour=12)) == "cam-12PM"
    assert expand("{name}-{start:%I%p}", start=START.replace(hour=0)) == "cam-12AM"


def test_a_number_may_outgrow_its_digits():
    template = FileNameTemplate.parse("{name}-{n:02}")
    assert template.expand("live", "cam", START, 12345) == "cam-12345"
    assert template.matches("cam-12345")
    assert not template.matches("cam-1x")


def test_a_component_that_would_be_too_long_is_shortened():
    template = FileNameTemplate.parse("{app}/" + "a" * 50 + "{app}{name}{start:%Y}")
    long, other = (template.expand("x" * 500, name * 500, START, 1) for name in "yz")
    assert long != other
    app, name = long.split("/")
    assert (len(app), len(name)) == (100, 200)
    assert name[183] == "~"
    for added in ("", "-2", "-1a2b3c4d"):
        assert template.matches(long + added)


# Which names it has given ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("added", ["", "-2", "-99", "-1a2b3c4d", "-2-3", "-1a2b3c4d-2"])
def test_a_name_with_an_added_number_matches(added):
    assert FileNameTemplate.parse(DEFAULT).matches(f"live/cam-20310203-040506{added}")


@pytest.mark.parametrize(
    "path",
    [
        *("", "live", "live/", "/live/cam-20310203-040506", "live/cam-20310203-040506/x", "x/live/cam-20310203-040506"),
        *("live/best-of", "live/cam-20310203", "live/cam-20310203-040506-copy", "live/cam-20310203-040506 (1)"),
        *("live/cam-20310203-04050", "live/cam-20310203-0405066", "live/cam-2031020٣-040506", "live/cam-20310203-040506\n"),
        *("live/cäm-20310203-040506", "live/c m-20310203-040506", "live/\udcff-20310203-040506", "li ve/cam-20310203-040506"),
        *(".live/cam-20310203-040506", "live/.cam-20310203-040506", "../cam-20310203-040506", "live/-20310203-040506"),
        *("live/cam-20310203-040506-2-3-4", "live/" + "x" * 101 + "-20310203-040506", "live-2/cam"),
    ],
)
def test_other_names_do_not_match(path):
    assert not FileNameTemplate.parse(DEFAULT).matches(path)


@pytest.mark.parametrize(
    ("path", "matches"),
    [
        *(("2031", True), ("2031/02", True), ("2031/02/cam", True), ("2031/02/cam/x", False)),
        *(
            ("", False),
            ("x", False),
            ("2031/2", False),
            (".", False),
            ("..", False),
            ("2031/02/.cam", False),
            ("2031-2", False),
        ),
    ],
)
def test_directories_that_a_template_makes(path, matches):
    assert FileNameTemplate.parse("{start:%Y/%m}/{name}/{n}").matches_directory(path) is matches


def test_a_template_without_directories_makes_none():
    template = FileNameTemplate.parse("{name}")
    assert not template.matches_directory("")
    assert not template.matches_directory("cam")


def test_a_hostile_name_takes_no_time_to_match():
    # Fields without text between them can be matched in many ways.
    template = FileNameTemplate.parse("{app}{name}{n}{start:%Y%m%d%H%M%S%f%j}-x")
    begun = time.process_time()
    for path in ("a" * 255, "1" * 255, "1" * 120 + "-" * 120, "%" * 255, "1" * 183 + "~" + "0" * 71):
        assert not template.matches(path)
    assert time.process_time() - begun < 1


# Templates ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("", "1 to 1000 characters"),
        ("{name}" + "x" * 995, "1 to 1000 characters"),
        ("recording", "a field such as {name} is missing"),
        ("%s-%d", '"%" is only possible in'),
        ("{name}-%Y", '"%" is only possible in'),
        ("{name", "braces are only possible in"),
        ("name}", "braces are only possible in"),
        ("{{name}}", "braces are only possible in"),
        ("{start:{name}}", "braces are only possible in"),
        ("{}", "the fields are {app}, {name}, {start:FORMAT} and {n}"),
        ("{Name}", "the fields are"),
        ("{key}", "the fields are"),
        ("{name!r}", "the fields are"),
        ("{name.x}", "the fields are"),
        ("{name:10}", "{start} takes a format"),
        ("{app:}", "{start} takes a format"),
        ("{n:3}", "such as {n:03}"),
        ("{n:d}", "such as {n:03}"),
        ("{n:}", "such as {n:03}"),
        ("{n:00}", "such as {n:03}"),
        ("{start}", "{start} needs a format"),
        ("{start:}", "{start} needs a format"),
        ("{start:now}", "needs % and one of"),
        ("{start:%}", "needs % and one of"),
        ("{start:%%}", "needs % and one of"),
        ("{start:%s}", "needs % and one of"),
        ("{start:%c}", "needs % and one of"),
        ("{start:%B}", "needs % and one of"),
        ("{start:%-d}", "needs % and one of"),
        ("{start:%Y%}", "needs % and one of"),
        ("{start:%Y\n}", "letters from A to Z"),
        ("{start:%H:%M}", "letters from A to Z"),
        ("kamera-ü-{name}", "letters from A to Z"),
        ("{name}\n", "letters from A to Z"),
        ("{name}\0", "letters from A to Z"),
        ("C:\\{name}", "letters from A to Z"),
        ("$HOME/{name}", "letters from A to Z"),
        ("/{name}", "the path is relative"),
        ("{name}/", "the path is relative"),
        ("{app}//{name}", "the path is relative"),
        ("{app}/ /{name}", "the path is relative"),
        ("{start:/%Y}/{name}", "the path is relative"),
        ("{start:%Y//%m}/{name}", "the path is relative"),
        ("{start:%Y/}/{name}", "the path is relative"),
        ("{start:%Y/ /%m}/{name}", "the path is relative"),
        ("./{name}", 'begin with "."'),
        ("../{name}", 'begin with "."'),
        ("{app}/../{name}", 'begin with "."'),
        (".{name}", 'begin with "."'),
        ("{app}/.{name}", 'begin with "."'),
        ("{start:.%Y}/{name}", 'begin with "."'),
        ("{start:%Y/..}/{name}", 'begin with "."'),
        ("{start:%Y/}.{name}", 'begin with "."'),
        ("{app}/" + "x" * 201 + "{name}", "be longer than 200 characters"),
        ("{app}/{start:" + "%f" * 34 + "}", "be longer than 200 characters"),
        ("{name}-{name}", "are possible only once"),
        ("{n}{app}{n}", "are possible only once"),
        ("a/" * 16 + "{name}", "at most 16 parts"),
        ("{start:" + "%Y/" * 16 + "%m}{name}", "at most 16 parts"),
        ("{name}.flv", ".flv is added automatically"),
    ],
)
def test_a_template_that_is_wrong_says_why(template, problem):
    with pytest.raises(ValueError, match=re.escape(problem)) as raised:
        FileNameTemplate.parse(template)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 150


@pytest.mark.parametrize(
    "template",
    ["x" * 200 + "{name}", "a/" * 15 + "{name}", "{app}" + "/a" * 15, " {name} ", "~{name}", "a.b..c{n:09}", "{name}.flv2"],
)
def test_templates_at_the_edge(template):
    parsed = FileNameTemplate.parse(template)
    assert parsed.matches(parsed.expand("live", "cam", START, 1))
    assert parsed == FileNameTemplate.parse(template)
    assert hash(parsed) == hash(FileNameTemplate.parse(template))
