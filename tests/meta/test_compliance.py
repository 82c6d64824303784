"""docs/spec-compliance.rst lists every message, command, type and codec, with tests that exist."""

import re
from pathlib import Path
from typing import NamedTuple

import docutils.core
import docutils.nodes
import pytest

from rtmpd.media.tags import AudioPacket, VideoPacket
from rtmpd.protocol import amf0, amf3
from rtmpd.protocol.enhanced import AUDIO_FOUR_CCS, VIDEO_FOUR_CCS, CapsEx, server_answer
from rtmpd.protocol.message import MessageType, UserControlType
from rtmpd.rtmp.commands import COMMANDS

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "spec-compliance.rst"

STATES = {"implemented", "passed on", "ignored", "refused"}


class Row(NamedTuple):
    section: str
    name: str
    text: str
    state: str
    tests: list[tuple[str, str]]  # file and name


def rows() -> list[Row]:
    document = docutils.core.publish_doctree(PAGE.read_text("utf-8"), settings_overrides={"report_level": 1, "halt_level": 2})
    found = []
    for section in document.findall(docutils.nodes.section):
        title = section.next_node(docutils.nodes.title).astext()
        for body in section.findall(docutils.nodes.tbody):
            for row in body.children:
                cells = [cell.astext() for cell in row.children]
                tests, path = [], ""
                for literal in row.children[-1].findall(docutils.nodes.literal):
                    if literal.astext().endswith(".py"):
                        path = literal.astext()
                    else:
                        tests.append((path, literal.astext()))
                state = cells[2] if len(cells) == 5 else cells[1]
                found.append(Row(title, cells[0], " ".join(cells), state, tests))
    return found


ROWS = rows()


def names(section: str) -> str:
    return " ".join(row.name for row in ROWS if row.section == section)


def numbers(section: str, base: int = 10) -> set[int]:
    return {int(number, base) for number in re.findall(r"\b(?:0x[0-9A-F]{2}|\d+)\b", names(section))}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.section}: {row.name}")
def test_a_row_has_a_state_and_tests_that_exist(row):
    assert row.state in STATES
    assert row.tests
    for path, name in row.tests:
        assert re.search(rf"^ *def {re.escape(name)}\(", (TESTS / path).read_text("utf-8"), re.MULTILINE), (path, name)


def test_a_row_is_listed_once():
    seen = [(row.section, row.name, row.text.split()[1]) for row in ROWS]
    assert len(seen) == len(set(seen))
    assert len(seen) > 100


def test_every_message_type_and_event_is_listed():
    assert set(MessageType) <= numbers("Messages")
    assert set(UserControlType) <= numbers("User Control events")


def test_every_command_is_listed():
    assert set(COMMANDS) - set(re.split(r"[\s,]+", names("Commands"))) == set()


def test_every_type_of_amf_is_listed():
    assert {int(name, 16) for name in names("AMF0").split()} == {*amf0._SCALARS, *amf0._CONTAINERS, 0x04, 0x09, 0x0E}
    # 0x04 and 0x0E are reserved, 0x09 ends an object.
    assert {int(name, 16) for name in names("AMF3").split()} == set(range(len(amf3._SCALARS + amf3._OBJECTS)))


def test_every_part_of_enhanced_rtmp_is_listed():
    assert set(names("Codecs").split()) >= VIDEO_FOUR_CCS | AUDIO_FOUR_CCS
    packets = names("Enhanced RTMP: media").lower().replace(" ", "")
    for packet in (*VideoPacket, *AudioPacket):
        assert packet.name.lower().replace("_", "") in packets, packet
    properties = names("Enhanced RTMP: connect")
    assert set(server_answer()) <= set(re.split(r"[\s:]+", properties))
    for flag in CapsEx:
        assert flag.name.lower().replace("_", "") in properties.lower()
