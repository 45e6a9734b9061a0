"""The phases of a handler: which may be opened when. Everything that affects them is in this table.

`ready` nothing is open; `preparing`, `finalizing`, `atomic` a block is open; `sealed` the block of finalize or atomic has ended and its
transaction waits for the handler's return; `last` a finalize was rolled back and the handler went on; `spent` so was the second.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from queuert_py.errors import PhaseError

State: TypeAlias = Literal["ready", "preparing", "finalizing", "atomic", "sealed", "last", "spent"]
Kind: TypeAlias = Literal["prepare", "finalize", "atomic"]

_OPEN: dict[tuple[State, Kind], State] = {
    ("ready", "prepare"): "preparing",
    ("ready", "finalize"): "finalizing",
    ("ready", "atomic"): "atomic",
    ("last", "finalize"): "finalizing",
}
_END: dict[State, State] = {"preparing": "ready", "finalizing": "sealed", "atomic": "sealed"}
_UNDO: dict[State, State] = {"preparing": "ready", "finalizing": "last", "atomic": "last", "sealed": "spent"}
_WHY: dict[State, str] = {
    "preparing": "a prepare block is open: let it end first",
    "finalizing": "a finalize block is open: let it end first",
    "atomic": "an atomic block is open: prepare and finalize are both in it",
    "sealed": "the transaction of finalize (or atomic) is waiting for the handler's return: return the output now",
    "last": "after a rolled back finalize only finalize may be opened, once more",
    "spent": "finalize was rolled back twice: return, or raise",
}


def opened(state: State, kind: Kind) -> State:
    """The state after opening a phase. PhaseError, and no change, where it may not be opened."""
    try:
        return _OPEN[state, kind]
    except KeyError:
        raise PhaseError(f"{kind}() cannot be opened here: {_WHY[state]}.", state=state, kind=kind) from None


def ended(state: State) -> State:
    """The state after the block has ended well."""
    return _END[state]


def undone(state: State, *, again: bool) -> State:
    """The state after an exception has left the block. `again`: this was the handler's second finalize."""
    return "spent" if again and state != "preparing" else _UNDO[state]


def holds_transaction(state: State) -> bool:
    """Is the transaction that completes the job open?"""
    return state in ("finalizing", "atomic", "sealed")
