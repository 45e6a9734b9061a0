"""What must hold whatever the order: each rule looks at the rows after a schedule, and answers what breaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tests.interleave.operations import Outcome

State = Mapping[str, Sequence[Mapping[str, Any]]]
Rule = Callable[[State, State, Sequence[Outcome]], Iterator[str]]
RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    RULES.append(check)
    return check


def broken(before: State, after: State, outcomes: Sequence[Outcome]) -> list[str]:
    """All that is wrong, each with the name of its rule."""
    return [f"{check.__name__}: {what}" for check in RULES for what in check(before, after, outcomes)]


def _live(state: State) -> dict[str, Mapping[str, Any]]:
    return {row["sequence_id"]: row for row in state["live_job"]}


def _history(state: State) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in state["finished_job"]:
        found.setdefault(row["sequence_id"], []).append(row)
    return found


def _ending(state: State, id: str) -> str | None:
    """How a sequence ended; None: it has not, or is not there."""
    if id in _live(state):
        return None
    rows = _history(state).get(id)
    return None if not rows or rows[-1]["outcome"] == "continued" else str(rows[-1]["outcome"])


@rule
def a_sequence_is_live_or_ended(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    live = _live(after)
    for id, rows in _history(after).items():
        last = rows[-1]["outcome"]
        if (id in live) == (last != "continued"):
            yield f"{id} {'is live and' if id in live else 'is not live, but'} {last}"
        if any(row["outcome"] != "continued" for row in rows[:-1]):
            yield f"{id} ended and went on"


@rule
def history_has_no_gaps(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    history = _history(after)
    for id, rows in history.items():
        if [row["position"] for row in rows] != list(range(len(rows))):
            yield f"{id} has the positions {[row['position'] for row in rows]}"
    for id, row in _live(after).items():
        if row["position"] != len(history.get(id, ())):
            yield f"{id} is at {row['position']} after {len(history.get(id, ()))} job(s)"


@rule
def nothing_that_was_there_has_vanished(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    deleted = {each.id for outcome in outcomes for each in outcome.ended if each.how == "deleted"}
    for id in {*_live(before), *_history(before)} - {*_live(after), *_history(after)} - deleted:
        yield f"{id} is gone"
    for id in deleted & {*_live(after), *_history(after)}:
        yield f"{id} was deleted and is there"


def _waiting(after: State) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The live rows, each with the edges of its current job."""
    live = _live(after)
    for edge in after["job_blocker"]:
        row = live.get(edge["sequence_id"])
        if row is not None and row["position"] == edge["position"]:
            yield row, edge


@rule
def who_waits_counts_what_it_waits_for(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """And nothing is stranded: it waits for unfinished ones, or under `hold` for such as can be retried."""
    live = _live(after)
    count = dict.fromkeys(live, 0)
    for row, edge in _waiting(after):
        ending = _ending(after, edge["blocker_id"])
        if edge["blocker_id"] not in live and ending is None:
            yield f"{row['sequence_id']} waits for {edge['blocker_id']}, which does not exist"
            continue
        policy = row["on_blocker_failure"] or "hold"
        if row["doom"] is not None:
            continue
        open_ = not edge["counted"]
        count[row["sequence_id"]] += open_
        if open_ and (ending == "completed" or (ending is not None and policy == "ignore")):
            yield f"{row['sequence_id']} was not told that {edge['blocker_id']} is {ending}"
        if open_ and ending is not None and policy == "fail":
            yield f"{row['sequence_id']} goes on waiting for {edge['blocker_id']}, which is {ending}"
        if not open_ and ending != "completed" and policy != "ignore":
            yield f"{row['sequence_id']} does not wait for {edge['blocker_id']}, which is {ending or 'unfinished'}"
    for id, row in live.items():
        if row["open_blockers"] != (0 if row["doom"] is not None else count[id]):
            yield f"{id} has open_blockers {row['open_blockers']} and {count[id]} open edge(s)"
        if row["open_blockers"] and row["leased_by"] is not None:
            yield f"{id} runs and waits"


@rule
def who_ran_had_nothing_left_to_wait_for(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    finished = {(row["sequence_id"], row["position"]): row for row in after["finished_job"]}
    for edge in after["job_blocker"]:
        row = finished.get((edge["sequence_id"], edge["position"]))
        if row is not None and row["outcome"] in ("completed", "continued") and row["finished_by"] is not None and not edge["counted"]:
            yield f"{edge['sequence_id']} ran although it waited for {edge['blocker_id']}"


@rule
def blockers_are_watched(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Else the plain lane would finish them and tell nobody."""
    live = _live(after)
    for row, edge in _waiting(after):
        blocker = live.get(edge["blocker_id"])
        if blocker is not None and not edge["counted"] and row["doom"] is None and not blocker["watched"]:
            yield f"{row['sequence_id']} waits for {edge['blocker_id']}, which is not watched"


@rule
def nobody_waits_in_a_ring(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    waits: dict[str, set[str]] = {}
    for row, edge in _waiting(after):
        if not edge["counted"] and row["doom"] is None and _ending(after, edge["blocker_id"]) is None:
            waits.setdefault(row["sequence_id"], set()).add(edge["blocker_id"])
    for id, first in waits.items():
        reached, wave = set[str](), set(first)
        while wave:
            reached |= wave
            wave = {further for each in wave for further in waits.get(each, ())} - reached
        if id in reached:
            yield f"{id} waits for itself"


@rule
def a_key_has_one_unfinished_sequence(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    keys = [(row["sequence_type"], row["key"]) for row in after["live_job"] if row["key"] is not None]
    for key in {key for key in keys if keys.count(key) > 1}:
        yield f"{key} is held more than once"


@rule
def epochs_rise(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A trigger looks at every change of a live row; here, across its lives."""
    earlier = {(row["sequence_id"], row["position"]): row["epoch"] for row in [*before["live_job"], *before["finished_job"]]}
    for table in ("live_job", "finished_job"):
        for row in after[table]:
            was = earlier.get((row["sequence_id"], row["position"]))
            if was is not None and row["epoch"] < was:
                yield f"{row['sequence_id']} was at {was}, is at {row['epoch']}"


@rule
def one_ending_is_claimed_once_and_is_there(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What operations say that they have written. One that was retried or deleted since has left its trace in the log, or none."""
    claimed = [each for outcome in outcomes for each in outcome.ended]
    gone = {each.id for each in claimed if each.how == "deleted"}
    retried = any("retried" in outcome.word for outcome in outcomes)
    history = _history(after)
    for id, position, how, epoch in claimed:
        kept = [row for row in history.get(id, ()) if position in (-1, row["position"])]
        if how not in [row["outcome"] for row in kept] and id not in gone and not (retried and how == "failed"):
            yield f"{id} was {how}, it says, and it is {[row['outcome'] for row in kept]}"
        if any(epoch not in (None, row["epoch"]) for row in kept if row["outcome"] == how):
            yield f"{id} was {how} by the attempt {epoch}, which had lost it"
    for id, position, how, _ in claimed:
        same = [each.how for each in claimed if each.id == id and each.position == position and each.how != "deleted"]
        if len(same) > 1 and not (retried and "failed" in same) and how not in ("deleted", "cancelled"):  # who cancels hears how it stands
            yield f"{id} at {position} ended {len(same)} times: {', '.join(same)}"


@rule
def no_event_is_missed(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What was sent is there as long as its job's sequence is live, and nobody sleeps beside it; what was kept is there as well."""
    for id, row in _live(after).items():
        memo: Mapping[str, Any] = row["memo"] or {}
        if memo.get("waiting") in memo.get("events", {}) and row["leased_by"] is None and str(row["run_at"]).startswith("9999"):
            yield f"{id} waits for {memo['waiting']!r}, which has come"
        words = [outcome.word for outcome in outcomes]
        if id == "B" and "sent" in words and "go" not in memo.get("events", {}):
            yield f"{id} was sent an event, it says, and has none"
        if id == "B" and "kept" in words and row["position"] == 0 and "one" not in memo.get("steps", {}):
            yield f"{id} has kept a step, it says, and has none"


@rule
def a_start_answers_with_what_is_there(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    known = {*_live(after), *_history(after)}
    deleted = {each.id for outcome in outcomes for each in outcome.ended if each.how == "deleted"}
    for id in {id for outcome in outcomes for id, _ in outcome.new} - known - deleted:
        yield f"{id} was answered and is not there"
    answered = {id for outcome in outcomes for id, joined in outcome.new if not joined}
    for id in known - {*_live(before), *_history(before)} - answered:
        yield f"{id} is there, and no start says so"


@rule
def a_lasting_key_is_given_out_once(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A start of scope "all" is new only if no sequence, finished or not, has had its key."""
    deleted = {each.id for outcome in outcomes for each in outcome.ended if each.how == "deleted"}
    for outcome in outcomes:
        for id in [id for id, joined in outcome.new if outcome.word == "started, all" and not joined]:
            key = next((row["key"] for row in [*after["live_job"], *after["finished_job"]] if row["sequence_id"] == id), None)
            others = {row["sequence_id"] for row in [*before["live_job"], *before["finished_job"]] if row["key"] == key and key} - deleted
            if others:
                yield f"{id} was started with the key {key} of {', '.join(sorted(others))}"


@rule
def nobody_is_told_that_what_exists_does_not(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    deleted = any(each.how == "deleted" for outcome in outcomes for each in outcome.ended)
    for outcome in outcomes:
        if not deleted and ("NotFound" in outcome.word or "not_found" in outcome.word or "deleted" in outcome.word.split()[1:]):
            yield f"an operation was answered {outcome.word!r}, and nothing has been deleted"


@rule
def a_ring_is_refused_only_if_it_would_be_one(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    words = [outcome.word for outcome in outcomes]
    if "refused: BlockerCycleError" in words and "waits" not in words:
        yield f"a ring was refused, and nobody waits: {words}"


@rule
def a_job_is_claimed_by_one(before: State, after: State, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Where nothing is given back."""
    claims = [outcome.word.removeprefix("claimed ") for outcome in outcomes if outcome.word.startswith("claimed ")]
    if len(claims) == len(outcomes):
        for id in {id for claim in claims for id in claim if sum(id in each for each in claims) > 1}:
            yield f"{id} was claimed twice"
