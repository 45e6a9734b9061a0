"""The phases of a handler, all of them: every state with every event."""

from __future__ import annotations

from typing import get_args

import pytest

from queuert_py.decisions.phases import Kind, State, ended, holds_transaction, opened, undone
from queuert_py.errors import PhaseError

STATES: tuple[State, ...] = get_args(State)
KINDS: tuple[Kind, ...] = get_args(Kind)

OPENED: dict[tuple[State, Kind], State] = {
    ("ready", "prepare"): "preparing",
    ("ready", "finalize"): "finalizing",
    ("ready", "atomic"): "atomic",
    ("last", "finalize"): "finalizing",
}
ENDED: dict[State, State] = {"preparing": "ready", "finalizing": "sealed", "atomic": "sealed"}
UNDONE: dict[State, State] = {"preparing": "ready", "finalizing": "last", "atomic": "last", "sealed": "spent"}
UNDONE_AGAIN: dict[State, State] = {"preparing": "ready", "finalizing": "spent", "atomic": "spent", "sealed": "spent"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", STATES)
def test_opening_a_phase(state: State, kind: Kind) -> None:
    if (state, kind) in OPENED:
        assert opened(state, kind) == OPENED[state, kind]
        return
    with pytest.raises(PhaseError) as refused:
        opened(state, kind)
    assert str(refused.value).startswith(f"{kind}() cannot be opened here: ")
    assert len(str(refused.value)) > 50, "it says why, and what to do"
    assert refused.value.details == {"state": state, "kind": kind}


@pytest.mark.parametrize("state", STATES)
def test_ending_a_block(state: State) -> None:
    if state in ENDED:
        assert ended(state) == ENDED[state]
    else:
        with pytest.raises((PhaseError, KeyError)):
            ended(state)


@pytest.mark.parametrize("state", STATES)
def test_an_exception_in_a_block(state: State) -> None:
    if state in UNDONE:
        assert undone(state, again=False) == UNDONE[state]
        assert undone(state, again=True) == UNDONE_AGAIN[state]
    else:
        with pytest.raises((PhaseError, KeyError)):
            undone(state, again=False)


@pytest.mark.parametrize("state", STATES)
def test_which_states_hold_the_transaction_that_completes_the_job(state: State) -> None:
    assert holds_transaction(state) is (state in ("finalizing", "atomic", "sealed"))


def test_every_state_but_spent_leads_somewhere_and_every_state_is_reached() -> None:
    reached = {"ready", *OPENED.values(), *ENDED.values(), *UNDONE.values(), *UNDONE_AGAIN.values()}
    assert reached == set(STATES)
    leaves = {state for state, _ in OPENED} | ENDED.keys() | UNDONE.keys()
    assert set(STATES) - leaves == {"spent"}


def test_the_walk_of_a_handler_that_prepares_twice_and_finalizes() -> None:
    state: State = "ready"
    for _ in range(2):
        state = ended(opened(state, "prepare"))
    assert ended(opened(state, "finalize")) == "sealed"


def test_the_walk_of_a_handler_that_finalizes_again_after_an_exception() -> None:
    state = undone(opened("ready", "finalize"), again=False)
    assert ended(opened(state, "finalize")) == "sealed"
    assert undone(opened(state, "finalize"), again=True) == "spent"
