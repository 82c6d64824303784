import pytest
from configobj.validate import VdtUnknownCheckError

from rtmpd.config import spec
from rtmpd.config.access_rules import is_name
from rtmpd.config.checks import converter


def test_comments_are_descriptions_and_facts():
    description, facts = spec._comment(["# of the file", "", "# One", "# two.", "#: unit: bytes; reload: no"])
    assert description == "One two."
    assert facts == {"unit": "bytes", "reload": "no"}


@pytest.fixture
def written(monkeypatch):
    """Return a function that replaces the text of the spec."""

    def write(text):
        lines = text.splitlines()
        parsed = spec.ConfigObj(lines, interpolation=False, list_values=False, _inspec=True)
        monkeypatch.setattr(spec, "_read", lambda: parsed)
        return spec.sections.__wrapped__()

    return write


def test_an_option_is_read(written):
    (section,) = written("# About.\n[s]\n# What.\n#: unit: bytes; reload: no; flag: --o N\no = integer(1, 9, default=3)\n")
    assert (section.name, section.description, section.subsections_of) == ("s", "About.", ())
    (option,) = section.options
    assert option == spec.Option("s", "o", "integer", "a whole number from 1 to 9", 3, "What.", "bytes", False, "--o N")


@pytest.mark.parametrize(
    ("facts", "error"), [("reload: maybe", KeyError), ("unit: s", KeyError), ("reload: yes; colour: red", ValueError)]
)
def test_wrong_facts_are_refused(written, facts, error):
    with pytest.raises(error):
        written(f"# About.\n[s]\n# What.\n#: {facts}\no = boolean(default=yes)\n")


def test_a_section_with_an_unknown_fact_is_refused(written):
    with pytest.raises(ValueError, match="colour"):
        written("# About.\n#: colour: red\n[s]\n")


def test_the_checks_of_configobj_are_not_there():
    with pytest.raises(VdtUnknownCheckError):
        converter().check("ip_addr", "::1")


@pytest.mark.parametrize("name", ["a", "a/b", "a,b", "ü", "a" * 255, "a=b", "*"])
def test_names(name):
    assert is_name(name)


@pytest.mark.parametrize("name", ["", "a" * 256, "a b", "\u00a0", 'a"', "a'", "a?b", "a#b", "[a]", "a\n", "\u200b", "\ud800"])
def test_texts_that_are_no_name(name):
    assert not is_name(name)
