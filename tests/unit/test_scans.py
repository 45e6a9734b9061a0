"""What a claim scans, and how it remembers where to begin."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from queuert_py.runtime.scans import SLACK, Scans
from queuert_py.values import LiveJob

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
START = "-infinity"


def claimed(queue: str = "a", run_at: datetime = NOON, priority: int = 0, lane: int = 0) -> LiveJob:
    blank: dict[str, Any] = dict.fromkeys(LiveJob._fields)
    known: dict[str, Any] = {"lane": lane, "queue": queue, "priority": priority, "run_at": run_at}
    return LiveJob(**{**blank, **known})


def shown(scans: Scans) -> list[tuple[int, str, int, str]]:
    rows = [json.loads(part) for part in scans.parts()]
    return [(row["lane"], row["queue"], row["priority"], row["since"]) for row in rows]


def since(scans: Scans, queue: str = "a", priority: int = 0) -> str:
    return next(begin for _, name, level, begin in shown(scans) if (name, level) == (queue, priority))


def test_at_first_each_queue_of_each_lane_is_scanned_from_the_start() -> None:
    scans = Scans(["a", "b"], [0, 1])
    assert sorted(shown(scans)) == [(lane, queue, 0, START) for lane in (0, 1) for queue in ("a", "b")]
    assert sorted(scans.queues()) == [f'{{"lane":{lane},"queue":"{queue}"}}' for lane in (0, 1) for queue in ("a", "b")]


def test_the_queues_take_turns_in_being_first() -> None:
    scans = Scans(["a", "b", "c"], [0])
    assert {shown(scans)[0][1] for _ in range(3)} == {"a", "b", "c"}


def test_a_queue_with_any_name_is_valid_json() -> None:
    name = 'quo"te\\ \n ü'
    assert shown(Scans([name], [0]))[0][1] == name


def test_higher_priorities_are_scanned_first() -> None:
    scans = Scans(["a"], [0])
    for priority in (-5, 10, 3):
        scans.hinted(0, "a", priority)
    assert [priority for _, _, priority, _ in shown(scans)] == [10, 3, 0, -5]


def test_a_full_claim_moves_the_beginning_to_a_little_before_its_lowest_run_at() -> None:
    scans = Scans(["a", "b"], [0])
    scans.learn([claimed(run_at=NOON + timedelta(seconds=n)) for n in (3, 1, 2)], full=True)
    assert since(scans) == (NOON + timedelta(seconds=1) - SLACK).isoformat()
    assert since(scans, "b") == START, "nothing was learnt about the other queue"


def test_priorities_are_learnt_apart() -> None:
    scans = Scans(["a"], [0])
    scans.learn([claimed(priority=5), claimed(priority=0, run_at=NOON + timedelta(hours=1))], full=True)
    assert since(scans, priority=5) == (NOON - SLACK).isoformat()
    assert since(scans, priority=0) == (NOON + timedelta(hours=1) - SLACK).isoformat()


def test_a_claim_that_comes_back_short_begins_at_the_start_again() -> None:
    scans = Scans(["a"], [0])
    scans.learn([claimed()], full=True)
    scans.learn([claimed(run_at=NOON + timedelta(hours=1))], full=False)
    assert since(scans) == START


def test_from_the_start_forgets_everything_learnt() -> None:
    scans = Scans(["a", "b"], [0])
    scans.learn([claimed("a"), claimed("b", priority=3)], full=True)
    scans.from_the_start()
    assert {begin for *_, begin in shown(scans)} == {START}


def test_a_hint_adds_its_priority_and_leaves_what_is_known() -> None:
    scans = Scans(["a"], [0])
    scans.learn([claimed(priority=4)], full=True)
    scans.hinted(0, "a", 4)
    scans.hinted(0, "a", 9)
    assert since(scans, priority=4) == (NOON - SLACK).isoformat()
    assert since(scans, priority=9) == START


def test_a_hint_for_somebody_elses_queue_or_lane_changes_nothing() -> None:
    scans = Scans(["a"], [0])
    before = shown(scans)
    scans.hinted(0, "other", 0)
    scans.hinted(7, "a", 0)
    assert shown(scans) == before


def test_relisting_takes_over_the_priorities_in_use_and_keeps_0() -> None:
    scans = Scans(["a", "b"], [0])
    scans.hinted(0, "a", 99)
    scans.learn([claimed()], full=True)
    scans.relist([(0, "a", 5, 3.0, 3.0), (0, "a", -1, 0.0, None)])
    assert [(priority, begin) for _, queue, priority, begin in shown(scans) if queue == "a"] == [(5, START), (0, START), (-1, START)]
    assert [priority for _, queue, priority, _ in shown(scans) if queue == "b"] == [0]


def test_relisting_tells_of_due_work_under_a_priority_that_was_not_scanned() -> None:
    scans = Scans(["a"], [0])
    assert scans.relist([(0, "a", 0, -1.0, None)]) is False, "scanned already"
    assert scans.relist([(0, "a", 7, 5.0, 5.0)]) is False, "not due yet"
    assert scans.relist([(0, "a", 7, -1.0, None)]) is False, "known since the last look"
    assert scans.relist([(0, "a", 8, 0.0, None)]) is True


def test_relisting_is_when_the_scans_last_began_at_the_start() -> None:
    scans = Scans(["a"], [0])
    scans._full_at -= 100
    assert scans.age() >= 100
    scans.relist([])
    assert scans.age() < 50
