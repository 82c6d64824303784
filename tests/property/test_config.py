from configobj import ConfigObj
from hypothesis import given, settings
from hypothesis import strategies as st

from rtmpd.config.loader import load_file, load_text
from rtmpd.config.model import Config, ListenAddress
from rtmpd.config.render import render_config, render_value
from rtmpd.config.scan import scan
from rtmpd.config.spec import sections
from rtmpd.errors import ConfigError

OPTIONS = [option for section in sections() for option in section.options]
WORDS = st.sampled_from(
    [
        *(option.name for option in OPTIONS),
        *("server", "log", "live", "applications", "DEFAULT", "__many__", "*", "live/sub", "x", "info", "yes", "5", "0.5"),
        *("nan", ":1935", "[::1]:1", '"', "'", '"""', "'''", ",", "#", "=", " ", "\t", "\r", "\\", "%(x)s", "\ufeff", "\u2028"),
        *("[", "]", "[[", "]]", "[server]", "[log]", "[live]", "[applications]", "[[x]]", "[[live]]", "[[[y]]]", ";", "\x00"),
    ]
)
LINES = st.one_of(
    st.lists(WORDS, max_size=8).map("".join),
    st.builds("{} = {}".format, WORDS, st.lists(WORDS, max_size=6).map("".join)),
    st.builds("{}{}{}".format, st.sampled_from(["[", "[[", "[[["]), WORDS, st.sampled_from(["]", "]]", "]]]"])),
    st.builds(
        lambda option, value: f"{option.name} = {render_value(option.default) if value is None else value}",
        st.sampled_from(OPTIONS),
        st.none() | st.from_regex(r"-?[0-9]{1,9}(\.[0-9]{1,3})?", fullmatch=True),
    ),
)
TEXTS = st.lists(LINES, max_size=12).map("\n".join)


def outcome(function, *arguments):
    """Return the result of a function, or the one kind of exception that it may raise."""
    try:
        return function(*arguments)
    except ConfigError as error:
        return error


def check(text):
    """Load a text: it must be valid or a ConfigError, and a valid configuration must load back after it is printed."""
    config = outcome(load_text, text, "x.ini")
    if isinstance(config, ConfigError):
        assert config.problems
        for problem in config.problems:
            assert problem.startswith("x.ini:")
            assert problem.isprintable()
    else:
        assert isinstance(config, Config)
        assert load_text(render_config(config)) == config


@given(st.text())
@settings(deadline=None)
def test_any_text_is_valid_or_has_problems(text):
    check(text)


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_any_text_like_a_configuration_is_valid_or_has_problems(text):
    check(text)


@given(st.text(st.characters(exclude_categories=())))
@settings(deadline=None)
def test_text_that_no_file_can_contain_raises_no_other_exception(text):
    check(text)


@given(st.binary())
@settings(max_examples=50, deadline=None)
def test_any_file_is_valid_or_has_problems(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.ini"
    path.write_bytes(data)
    assert isinstance(outcome(load_file, path), Config | ConfigError)


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_configobj_reads_the_lines_of_the_scan_as_the_scan_does(text):
    found = scan(text)
    parsed = ConfigObj(found.lines, interpolation=False, raise_errors=True)
    refused = {line for line, _problem in found.problems}
    expected = {path for path, line in found.where.items() if line not in refused}
    paths = set()

    def walk(section, path):
        paths.update((*path, name) for name in section.scalars)
        for name in section.sections:
            paths.add((*path, name))
            walk(section[name], (*path, name))

    walk(parsed, ())
    assert paths == expected


VALUES = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=20)


@given(st.lists(VALUES.filter(lambda text: not ('"' in text and "'" in text)), min_size=2, max_size=6), st.data())
@settings(max_examples=100, deadline=None)
def test_quoted_values_are_kept_whatever_they_contain(values, data):
    written = [render_value(value) for value in values]
    gaps = [data.draw(st.sampled_from(["", " ", "   "])) for _ in values]
    comment = data.draw(st.sampled_from(["", " # no", ' # "a", b', " #'"]))
    line = "x = " + ",".join(gap + value + gap for gap, value in zip(gaps, written, strict=True)) + comment
    found = scan(line)
    assert found.problems == []
    assert ConfigObj(found.lines, interpolation=False)["x"] == values


@given(st.text(st.sampled_from("abz09.:[]%-_1 é"), max_size=20))
@settings(deadline=None)
def test_an_address_is_valid_or_wrong_and_has_one_form(text):
    try:
        address = ListenAddress.parse(text)
    except ValueError:
        return
    assert ListenAddress.parse(str(address)) == address
