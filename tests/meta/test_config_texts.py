"""The texts that describe the options agree with the spec."""

import dataclasses
import re
import textwrap
import typing
from collections.abc import Mapping
from pathlib import Path

import pytest

from rtmpd.config import model, render
from rtmpd.config.access_rules import NamedSecret, Network
from rtmpd.config.file_names import FileNameTemplate
from rtmpd.config.hook_targets import ScriptHook, WebhookHook
from rtmpd.config.loader import load_text
from rtmpd.config.model import Config, ListenAddress
from rtmpd.config.relay_url import RelayUrl
from rtmpd.config.secret import Secret
from rtmpd.config.spec import configspec, sections
from rtmpd.errors import ConfigError

ROOT = Path(__file__).parents[2]
SAMPLE = (ROOT / "etc" / "rtmpd.ini").read_text("utf-8")
DOCS = (ROOT / "docs" / "configuration.rst").read_text("utf-8")
OPTIONS = [option for section in sections() for option in section.options]
TYPES = {
    "integer": int,
    "duration": float,
    "size": int,
    "rate": int,
    "tc_url": str,
    "paths": tuple[str, ...],
    "float": float,
    "boolean": bool,
    "option": str,
    "name": str,
    "alias": str,
    "addresses": tuple[ListenAddress, ...],
    "path": str,
    "account": str,
    "patterns": tuple[str, ...],
    "relay_urls": tuple[RelayUrl, ...],
    "file_name": FileNameTemplate,
    "secret": Secret,
    "scripts": tuple[ScriptHook, ...],
    "webhooks": tuple[WebhookHook, ...],
    "secret_url": Secret,
    "secrets": tuple[Secret, ...],
    "stream_secrets": tuple[NamedSecret, ...],
    "user_secrets": tuple[NamedSecret, ...],
    "networks": tuple[Network, ...],
    "origins": tuple[str, ...],
    "suffixes": tuple[str, ...],
}
WRONG = {"paths": '"", b', "path": "a, b", "secrets": "env:", "patterns": "/x", "secret": "env:"}  # where "a?b" is right
UPDATE = "run python -m rtmpd.config.render"


def examples(kind):
    """The blocks of the documentation that start with the directive ``kind``, without their indent."""
    blocks = re.findall(rf"^{re.escape(kind)}\n((?:\n| +.*\n)+)", DOCS, re.MULTILINE)
    return [textwrap.dedent(block) for block in blocks if not block.startswith("   :class: wrong")]


def hints_of_config():
    return typing.get_type_hints(Config, {**vars(model), "Mapping": Mapping})


def test_the_sample_is_written_from_the_spec():
    assert render.render_sample() == SAMPLE, UPDATE


def test_the_tables_of_the_documentation_are_written_from_the_spec():
    assert render.replace_tables(DOCS) == DOCS, UPDATE


def test_the_sample_is_the_defaults():
    assert load_text(SAMPLE) == load_text("")


def test_the_sample_is_the_defaults_with_every_option_uncommented_too():
    text, count = re.subn(r"^#(?=\w+ = )", "", SAMPLE, flags=re.MULTILINE)
    assert count == len(OPTIONS)
    assert load_text(text) == load_text("")


def test_each_option_of_the_sample_is_checked():
    for option in OPTIONS:
        wrong, count = re.subn(
            rf"^#{option.name} = .*", f"{option.name} = {WRONG.get(option.kind, 'a?b')}", SAMPLE, flags=re.MULTILINE
        )
        assert count == 1
        with pytest.raises(ConfigError) as raised:
            load_text(wrong)
        assert f"[{option.section}] {option.name}: expected {option.expected.split(',')[0]}" in str(raised.value)


def test_each_option_is_a_field_of_its_type():
    hints = hints_of_config()
    assert list(hints) == [section.name for section in sections()]
    for section in sections():
        if section.subsections_of:
            kinds = typing.get_type_hints(typing.get_args(hints[section.name])[1])
            assert kinds == {name: hints[name] for name in section.subsections_of}
            continue
        fields = typing.get_type_hints(hints[section.name])
        assert fields == {option.name: TYPES[option.kind] for option in section.options}
        assert list(fields) == [option.name for option in section.options]


def test_each_value_has_the_type_of_its_field():
    config = load_text("")
    for option in OPTIONS:
        value = getattr(getattr(config, option.section), option.name)
        assert value == option.default
        assert type(value) is (typing.get_origin(TYPES[option.kind]) or TYPES[option.kind])


def test_configurations_have_no_defaults_of_their_own():
    for hint in hints_of_config().values():
        for field in dataclasses.fields(hint) if dataclasses.is_dataclass(hint) else ():
            assert field.default is dataclasses.MISSING


def test_an_application_takes_exactly_the_options_of_its_sections():
    (applications,) = [section for section in sections() if section.name == "applications"]
    taken = [option for section in sections() if section.name in applications.subsections_of for option in section.options]
    spec = configspec()
    partial = ("limits", "record", "hls")
    many = {each.name: spec[each.section][each.name] for each in taken if each.section not in partial or each.scope}
    assert dict(spec["applications"]["__many__"]) == many
    assert {"gop_cache", "players_per_stream_limit", "record_format"} < set(many)
    assert not {"connection_limit", "record_all"} & set(many)


def test_each_section_and_option_is_described():
    for described in [*sections(), *OPTIONS]:
        assert described.description.endswith(".")
        assert described.description[0].isupper() or described.description.startswith("[")


def test_the_unit_is_in_the_name():
    units = {"_s": "seconds", "_ms": "milliseconds", "_bytes": "bytes"}
    for option in OPTIONS:
        suffix = next((suffix for suffix in units if option.name.endswith(suffix)), None)
        if suffix:
            assert option.unit == units[suffix]
        else:
            assert option.unit not in units.values()
        assert bool(option.unit) is (option.kind in {"integer", "float", "duration", "size", "rate"})


def test_the_examples_of_the_documentation_load():
    found = examples(".. code-block:: ini")
    assert len(found) == 6
    for example in found:
        load_text(example)


def test_the_examples_of_applications_do_what_the_documentation_says():
    two, everything = (load_text(example) for example in examples(".. code-block:: ini")[-2:])
    assert list(two.applications) == ["live", "studio"]
    assert two.application("other") is None
    assert two.applications["studio"].publish.publisher_grace_s == 20
    assert everything.application("other") == ("*", everything.defaults)
    assert everything.applications["live/mobile"].publish.publisher_grace_s == 60


def test_the_wrong_example_of_the_documentation_gives_the_problems_shown():
    (wrong,) = examples(".. code-block:: ini\n   :class: wrong")
    (shown,) = examples("gives these problems::")
    with pytest.raises(ConfigError) as raised:
        load_text(wrong.lstrip("\n"), "rtmpd.ini")
    assert raised.value.problems == shown.split("\n")[1:-2]


def test_no_line_is_too_long():
    for text in (SAMPLE, DOCS):
        assert max(len(line) for line in text.splitlines()) <= 120
