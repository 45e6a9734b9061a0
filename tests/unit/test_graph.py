"""Blockers before dependents, and what a deletion may take."""

from __future__ import annotations

import itertools

import pytest

from queuert_py.decisions.graph import Edge, deletable, levels
from queuert_py.decisions.judge import unrun

CHAIN: list[Edge] = [("a", "b"), ("b", "c"), ("a", "c")]


@pytest.mark.parametrize("order", list(itertools.permutations("abcd")))
def test_blockers_come_before_their_dependents_whatever_the_order(order: tuple[str, ...]) -> None:
    layers = levels(order, CHAIN)
    assert [sorted(layer) for layer in layers] == [["a", "d"], ["b"], ["c"]]
    assert [id for id in order if id in layers[0]] == layers[0], "within a layer the order stays"


def test_edges_to_others_and_to_itself_do_not_count_and_a_ring_ends() -> None:
    assert levels(["a"], [("x", "a"), ("a", "y"), ("a", "a")]) == [["a"]]
    assert levels(["a", "b"], [("a", "b"), ("b", "a")]) == [["a", "b"]]
    assert levels([], CHAIN) == []


def test_what_is_wanted_is_refused_if_somebody_outside_needs_it() -> None:
    assert deletable(["a"], [], [("a", "b")]) == (["a"], [("a", "b")])
    assert deletable(["a", "b"], [], [("a", "b")]) == (["a", "b"], [])


def test_a_candidate_that_is_needed_stays_and_so_does_what_it_needs() -> None:
    dependents = [("deep", "middle"), ("middle", "top"), ("middle", "other")]
    assert deletable(["top"], ["middle", "deep"], dependents) == (["top"], [])
    assert deletable(["top"], ["middle", "deep"], dependents[:2]) == (["top", "middle", "deep"], [])
    assert deletable([], ["middle", "deep"], dependents[:2]) == ([], [])


def test_a_doom_carries_its_reason_and_is_a_failed_blocker_without_one() -> None:
    for doom, reason in (('{"type": "X"}', "blocker_failed"), ('{"type": "X", "reason": "poison"}', "poison")):
        ending = unrun(expired=True, deadline=0.0, doom=doom)
        assert ending is not None
        assert (ending.outcome, ending.reason, ending.error) == ("failed", reason, '{"type":"X"}')
