import enum

import pytest

from rtmpd import phases
from rtmpd.phases import CloseKind, CloseReason, IllegalTransition, Machine

TABLES = {
    name: value
    for name, value in vars(phases).items()
    if name.isupper() and isinstance(value, dict) and name != "CLOSE_COUNTERS"
}


class Light(enum.Enum):
    RED = 1
    GREEN = 2


def test_a_transition_of_the_table_changes_the_phase():
    machine = Machine({Light.RED: frozenset({Light.GREEN}), Light.GREEN: frozenset()}, Light.RED)
    machine.to(Light.RED)
    machine.to(Light.GREEN)
    assert machine.phase is Light.GREEN


def test_any_other_transition_raises_and_changes_nothing():
    machine = Machine({Light.RED: frozenset({Light.GREEN}), Light.GREEN: frozenset()}, Light.GREEN)
    with pytest.raises(IllegalTransition, match="Light: GREEN is not followed by RED"):
        machine.to(Light.RED)
    assert machine.phase is Light.GREEN


@pytest.mark.parametrize("name", TABLES)
def test_a_table_lists_every_phase_and_each_can_be_reached(name):
    table = TABLES[name]
    kind = type(next(iter(table)))
    assert set(table) == set(kind)
    reached, front = set(), {next(iter(table))}
    while front:
        reached |= front
        front = set().union(*(table[phase] for phase in front)) - reached
    assert reached == set(kind)


@pytest.mark.parametrize("name", TABLES)
def test_every_phase_leads_to_the_last_one(name):
    table = TABLES[name]
    ends = {phase for phase, following in table.items() if not following}
    assert len(ends) == 1
    ending = set(ends)
    for _ in table:
        ending |= {phase for phase, following in table.items() if following & ending}
    assert ending == set(table)


@pytest.mark.parametrize(
    ("kind", "counters", "logged"),
    [
        (CloseKind.PEER_LEFT, (), False),
        (CloseKind.EARLY, ("early_closes",), False),
        (CloseKind.SILENT, ("deadlines_exceeded", "zombie_connections"), True),
        (CloseKind.INTERNAL, (), False),
    ],
)
def test_the_kind_of_a_reason_decides_counters_and_log_line(kind, counters, logged):
    reason = CloseReason(kind, "text")
    assert (reason.counters, reason.logged) == (counters, logged)


def test_a_reason_reads_as_its_text():
    assert str(CloseReason(CloseKind.SHUTDOWN, "the server is stopping")) == "the server is stopping"
