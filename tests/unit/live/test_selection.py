from __future__ import annotations

import pytest

from rtmpd.live.selection import (
    Arrival,
    Candidate,
    Cause,
    Choice,
    Condition,
    Conflict,
    ConflictRules,
    Failback,
    OnConflict,
    SelectionRules,
    SourceRole,
)

PRIMARY = Candidate(SourceRole.PRIMARY, 1, healthy_s=100)
BACKUP = Candidate(SourceRole.BACKUP, 2, healthy_s=100)
SLATE = Candidate(SourceRole.SLATE, 0, healthy_s=100)
RULES = SelectionRules()


# Arrivals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_conflict", OnConflict)
def test_a_source_without_a_rival_is_activated(on_conflict):
    assert ConflictRules(10, on_conflict).decide(Arrival(0, 0)) is Conflict.ACTIVATE


@pytest.mark.parametrize(
    ("silent_s", "expected"),
    [
        (0, Conflict.REFUSE),
        (9.99, Conflict.REFUSE),
        (10, Conflict.TAKE_OVER),
        (3600, Conflict.TAKE_OVER),
    ],
)
@pytest.mark.parametrize("on_conflict", [OnConflict.REFUSE, OnConflict.TAKEOVER])
def test_a_source_is_replaced_once_it_has_been_silent_for_long_enough(on_conflict, silent_s, expected):
    assert ConflictRules(10, on_conflict).decide(Arrival(1, silent_s)) is expected


@pytest.mark.parametrize("silent_s", [0, 10, 1e9])
def test_without_takeover_the_active_source_always_stays(silent_s):
    assert ConflictRules(0).decide(Arrival(1, silent_s)) is Conflict.REFUSE


@pytest.mark.parametrize("entitled", [False, True])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("on_conflict", OnConflict)
def test_only_a_publisher_that_is_entitled_and_not_held_takes_over(on_conflict, entitled, held):
    took = ConflictRules(10, on_conflict, 1).decide(Arrival(2, 0, entitled, held)) is Conflict.TAKE_OVER
    assert took == (on_conflict is OnConflict.TAKEOVER and entitled and not held)


@pytest.mark.parametrize(
    ("publishers", "silent_s", "expected"),
    [
        (1, 0, Conflict.STAND_BY),
        (1, 60, Conflict.STAND_BY),
        (2, 0, Conflict.STAND_BY),
        (3, 0, Conflict.REFUSE),
        (3, 10, Conflict.TAKE_OVER),
    ],
)
def test_backups_stand_by_up_to_the_limit_and_then_replace_a_silent_publisher(publishers, silent_s, expected):
    assert ConflictRules(10, OnConflict.BACKUP, 2).decide(Arrival(publishers, silent_s)) is expected


# The active source ------------------------------------------------------------------------------------------------------


def down(candidate):
    return candidate._replace(condition=Condition.DOWN, healthy_s=0)


def faulty(candidate):
    return candidate._replace(condition=Condition.FAULTY, healthy_s=0)


@pytest.mark.parametrize("condition", Condition)
@pytest.mark.parametrize("other", [[], [BACKUP._replace(ready=False)], [down(BACKUP)], [down(SLATE)]])
def test_without_another_source_that_can_be_used_nothing_changes(condition, other):
    assert RULES.choose(PRIMARY._replace(condition=condition), other, 100) is None


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([PRIMARY, BACKUP, SLATE], 1),
        ([BACKUP, SLATE], 2),
        ([faulty(PRIMARY), BACKUP, SLATE], 2),
        ([faulty(PRIMARY), faulty(BACKUP), SLATE], 1),
        ([down(PRIMARY), SLATE], 0),
        ([PRIMARY._replace(ready=False), SLATE], 0),
        ([BACKUP._replace(number=7), BACKUP], 2),
    ],
)
def test_without_an_active_source_the_best_one_becomes_active(others, chosen):
    cause = Cause.RETURN if chosen else Cause.SLATE
    assert RULES.choose(None, others, 0) == Choice(chosen, cause)


def test_a_source_that_sends_nothing_is_replaced_at_once():
    assert RULES.choose(down(PRIMARY), [BACKUP, SLATE], 0) == Choice(2, Cause.FAILOVER)
    assert RULES.choose(down(PRIMARY), [faulty(BACKUP), SLATE], 0) == Choice(2, Cause.FAILOVER)
    assert RULES.choose(down(PRIMARY), [down(BACKUP), SLATE], 0) == Choice(0, Cause.SLATE)


def test_a_source_with_a_fault_is_replaced_by_a_healthy_publisher_only_and_not_too_often():
    assert RULES.choose(faulty(PRIMARY), [BACKUP], 5) == Choice(2, Cause.FAILOVER)
    assert RULES.choose(faulty(PRIMARY), [BACKUP], 4.9) is None
    assert RULES.choose(faulty(PRIMARY), [faulty(BACKUP)], 100) is None
    assert RULES.choose(faulty(PRIMARY), [SLATE], 100) is None


def test_the_primary_becomes_active_again_at_its_keyframe_once_it_was_healthy_for_long_enough():
    assert RULES.choose(BACKUP, [PRIMARY._replace(healthy_s=30)], 0) == Choice(1, Cause.FAILBACK, at_keyframe=True)
    assert RULES.choose(BACKUP, [PRIMARY._replace(healthy_s=29.9)], 1000) is None
    assert RULES.choose(BACKUP, [faulty(PRIMARY)], 1000) is None


def test_no_source_with_a_lesser_role_becomes_active_while_the_active_one_is_healthy():
    assert RULES.choose(PRIMARY, [BACKUP, SLATE, BACKUP._replace(number=9)], 1000) is None
    assert RULES.choose(BACKUP, [BACKUP._replace(number=1)], 1000) is None


@pytest.mark.parametrize("failback", [Failback.MANUAL, Failback.NEVER])
def test_without_an_automatic_failback_the_primary_is_used_only_when_the_backup_fails(failback):
    rules = RULES._replace(failback=failback)
    assert rules.choose(BACKUP, [PRIMARY], 1000) is None
    assert rules.choose(down(BACKUP), [PRIMARY], 1000) == Choice(1, Cause.FAILOVER)


@pytest.mark.parametrize("failback", Failback)
def test_a_slate_gives_way_to_any_publisher_that_sends(failback):
    rules = RULES._replace(failback=failback)
    assert rules.choose(SLATE, [BACKUP._replace(healthy_s=0)], 0) == Choice(2, Cause.RETURN)
    assert rules.choose(SLATE, [faulty(PRIMARY)], 0) == Choice(1, Cause.RETURN)
    assert rules.choose(SLATE, [down(PRIMARY)], 0) is None
