"""Each defect, the protection against it, how that is taken out, and the test that then fails (test_mutations.py does it)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """In this file of the package, `old`, which is there once, becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutation:
    """defect: what is to be absent. out: the protection that is taken out. test: what fails then, and `shows`: with which words."""

    defect: str
    out: str
    test: str
    shows: str
    changes: tuple[Change, ...]


STRANDED = "two blockers finishing in overlapping transactions strand the job"
EARLY = "a blocker added while its sequence is being continued starts the dependent too early"
TWICE = "concurrent starts with one key insert two"
FIRST_JOB = "scope incomplete looks at the first job only"
CYCLE = "blocker cycles are accepted and hang"
CASCADE = "cascade delete ignores the blockers of continuations"
HANGS = "a handler that returns without completing hangs"
STALE = "ownership is fenced per worker only"
BACKOFF = "worker backoff never resets"
RENEWAL = "one failed renewal kills the attempt"
UNCOUNTED = "a job that kills its process is never counted"
SORTS = "claiming sorts the whole backlog"
EXPIRES = "the reaper measures from the first attempt"
UNCOMPLETES = "a user callback that throws un-completes a finished job"
DELIVERS = "reserving outside a transaction delivers twice"
ARCHIVED = "failed attempts are archived as completed"
PENDING = "run here inserts a pending row that a worker can also claim"
SERIAL = "a concurrency limit that is only a serial batch size"
DEFECTS = {
    **dict.fromkeys((STRANDED, EARLY, TWICE, FIRST_JOB, CYCLE, CASCADE, HANGS, STALE, BACKOFF, RENEWAL, UNCOUNTED, SORTS), "Queuert"),
    **dict.fromkeys((EXPIRES, UNCOMPLETES), "steve"),
    **dict.fromkeys((DELIVERS, ARCHIVED), "gravito"),
    PENDING: "tetrastack",
    SERIAL: "zeke",
}
"""Each with the system that has it, as they stand at the end of the list of features."""

SQL = "postgres/sql"
HERE = "tests/defects"
_RING = "if (yield store.find_cycle(parts, lane_of(id, store.lanes), id)):"
_RECOUNT = """(
        select count(*) from /* schema */job_blocker b
        where b.lane = l.lane and b.sequence_id = l.sequence_id and b.position = l.position
            and not exists (select from /* schema */finished_job f where f.lane = b.blocker_lane and f.sequence_id = b.blocker_id)
    )"""
_SEEN = """    seen = yield store.read_blockers(parts.values())
    standing.update({id: Ended("completed", type_, None) for id, _, outcome, type_, *_ in seen if outcome})
"""

MUTATIONS: tuple[Mutation, ...] = (
    *(
        Mutation(
            STRANDED,
            "open blockers are counted down on the locked row; now they are counted anew, as the statement's snapshot shows them",
            f"{HERE}/test_blockers.py::test_two_blockers_that_finish_in_overlapping_transactions_do_not_strand_the_job[{how}]",
            "both have ended",
            (Change(f"{SQL}/unblock_jobs.sql", "l.open_blockers - w.ended", _RECOUNT),),
        )
        for how in ("plain", "finalize")
    ),
    Mutation(
        EARLY,
        "a sequence with a live row is unfinished; now a job that has ended stands for its sequence",
        f"{HERE}/test_blockers.py::test_a_blocker_that_is_added_while_its_sequence_is_being_continued_is_waited_for_to_the_end",
        "the sequence goes on: it is not done",
        (
            Change(
                "postgres/blocking.py",
                "    standing: dict[str, Ended | None] = dict.fromkeys(locked)\n",
                "    standing: dict[str, Ended | None] = dict.fromkeys(locked)\n" + _SEEN,
            ),
        ),
    ),
    Mutation(
        TWICE,
        "the unique index over keys of live rows",
        f"{HERE}/test_keys.py::test_two_concurrent_starts_with_one_key_do_not_insert_two[commit]",
        "assert 2 == 1",
        (Change("postgres/migrations/0001_foundation.sql", "create unique index live_job_key", "create index live_job_key"),),
    ),
    Mutation(
        FIRST_JOB,
        "the key stays on the live row from job to job",
        "tests/engine/test_dedup.py::test_a_sequence_of_several_jobs_holds_its_key_until_it_ends",
        "AssertionError",
        (Change(f"{SQL}/advance_jobs.sql", "    progress = null, memo", "    key = null, progress = null, memo"),),
    ),
    Mutation(
        CYCLE,
        "the check of the transaction that adds the edges, for a continuation",
        "tests/engine/test_blockers.py::test_a_continuation_that_would_close_a_ring_fails_with_the_reason",
        "ResultTimeoutError",
        (Change("postgres/blocking.py", _RING, _RING.replace(":", " and not which:")),),
    ),
    Mutation(
        CYCLE,
        "the checks of wait_for, in the handler and in the transaction that adds the edges",
        "tests/engine/test_wait_for.py::test_a_ring_is_refused_in_the_handler",
        "ResultTimeoutError",
        (
            Change("runtime/durable.py", "if before is None and await self._keeper.closes_ring(ids):", "if ids is None:"),
            Change("postgres/blocking.py", _RING, _RING.replace(":", " and not which:")),
        ),
    ),
    Mutation(
        CYCLE,
        "the lock under which one transaction at a time looks for a cycle",
        f"{HERE}/test_blockers.py::test_two_sequences_that_begin_to_wait_for_each_other_at_once_do_not_close_a_ring",
        "one of them is refused",
        (Change("postgres/blocking.py", 'store.lock_edges(crc32(f"queuert edges {store.schema}".encode()))', "store.read_blockers([])"),),
    ),
    Mutation(
        CASCADE,
        "what a deletion takes with it is found by the edges of every job of a sequence",
        f"{HERE}/test_blockers.py::test_a_cascading_deletion_sees_the_blockers_of_continuations",
        "AssertionError",
        (
            Change(
                f"{SQL}/find_upstream.sql",
                "on b.lane = up.lane and b.sequence_id = up.sequence_id",
                "on b.lane = up.lane and b.sequence_id = up.sequence_id and b.position = 0",
            ),
        ),
    ),
    Mutation(
        CASCADE,
        "what forbids a deletion is found by the edges of the current job",
        f"{HERE}/test_blockers.py::test_a_cascading_deletion_sees_the_blockers_of_continuations",
        "DID NOT RAISE",
        (Change(f"{SQL}/find_dependents.sql", "and l.position = b.position", "and l.position = b.position and b.position = 0"),),
    ),
    Mutation(
        HANGS,
        "a return is itself what completes",
        f"{HERE}/test_outcomes.py::test_a_handler_that_returns_without_completing_does_not_hang[_prepare_only-completed]",
        "ResultTimeoutError",
        (
            Change(
                "runtime/attempt.py",
                "        if self._connection is None:\n            self.writing = True\n            self.host.decided(self, verdict)\n",
                "        if self._connection is None:\n            self.writing = True\n",
            ),
        ),
    ),
    Mutation(
        STALE,
        "completions match the attempt's epoch; now whatever its worker holds",
        f"{HERE}/test_ownership.py::test_a_stale_attempt_of_the_same_worker_writes_nothing[plain]",
        "the second attempt has it",
        (Change(f"{SQL}/finish_jobs.sql", "where l.epoch = done.epoch and", "where l.leased_by is not null and"),),
    ),
    Mutation(
        STALE,
        "the fence of a transaction, and what is written in it, match the epoch; now whatever its worker holds",
        f"{HERE}/test_ownership.py::test_a_stale_attempt_of_the_same_worker_writes_nothing[finalize]",
        "the second attempt has it",
        (
            Change(f"{SQL}/fence_job.sql", "and l.epoch = %(epoch)s", "and l.leased_by is not null"),
            Change(f"{SQL}/end_jobs.sql", "where l.epoch = done.epoch", "where l.leased_by is not null"),
            Change(f"{SQL}/assert_written.sql", " and f.epoch = %(epoch)s", ""),
        ),
    ),
    Mutation(
        BACKOFF,
        "a part of a worker that has worked for a while begins again with the shortest pause",
        f"{HERE}/test_outcomes.py::test_the_backoff_of_a_worker_is_reset_when_it_has_worked",
        "and begins again after that",
        (Change("runtime/loops.py", "failures = 0 if time.monotonic() - begun > pause else failures + 1", "failures += 1"),),
    ),
    Mutation(
        RENEWAL,
        "a renewal that fails is tried again as long as the lease lasts",
        f"{HERE}/test_ownership.py::test_one_failed_renewal_does_not_kill_the_attempt",
        "lease_lost",
        (
            Change(
                "runtime/leases.py",
                "                tried += 1\n",
                "                tried += 1\n"
                "                for attempt in list(self._held()):\n"
                '                    self._loop.call_soon_threadsafe(self._lost, attempt, "lease_lost")\n',
            ),
        ),
    ),
    Mutation(
        RENEWAL,
        "a row that a renewal has passed by is lost only when its epoch says so",
        f"{HERE}/test_ownership.py::test_a_renewal_that_finds_the_row_locked_does_not_kill_the_attempt",
        "lease_lost",
        (Change("runtime/leases.py", 'if fate == "mine":', "if not fate:"),),
    ),
    Mutation(
        UNCOUNTED,
        "an attempt counts from its claim on",
        "tests/faults/test_ownership.py::test_prefetched_jobs_of_a_dead_worker_go_back_uncharged",
        "AssertionError",
        (Change(f"{SQL}/claim_jobs.sql", "attempt = l.attempt + 1", "attempt = greatest(l.attempt, 1)"),),
    ),
    Mutation(
        UNCOUNTED,
        "the reaper counts a death of the worker that ran it",
        "tests/faults/test_ownership.py::test_a_poison_job_is_dead_after_five_crashes_and_harms_nobody_else",
        "assert 6 <= 5",
        (Change("postgres/rows.py", '"crash":{1 if delay.outcome == "lost" else 0}', '"crash":0'),),
    ),
    Mutation(
        SORTS,
        "the claim reads in the order of the ready index",
        f"{HERE}/test_claiming.py::test_claiming_does_not_sort_the_whole_backlog",
        "by the ready index, in its order",
        (Change(f"{SQL}/claim_jobs.sql", "order by l.run_at, l.sequence_id", "order by l.created_at, l.sequence_id"),),
    ),
    Mutation(
        EXPIRES,
        "a lease lasts from its own claim on",
        f"{HERE}/test_ownership.py::test_a_retry_has_a_lease_of_its_own_however_long_ago_the_first_attempt_began",
        "its lease began with its own attempt",
        (Change(f"{SQL}/claim_jobs.sql", "leased_until = clock_timestamp() + %(lease)s", "leased_until = l.created_at + %(lease)s"),),
    ),
    *(
        Mutation(
            UNCOMPLETES,
            "callbacks run after the commit, and what they raise is nobody's failure",
            f"{HERE}/test_outcomes.py::test_a_users_callback_that_raises_does_not_uncomplete_the_job[on_commit{how}-Broken]",
            "each ran once",
            (
                Change(
                    "runtime/attempt.py",
                    "        try:\n            if isinstance(value, Continuation):\n",
                    "        try:\n            for callback in self.take_callbacks():\n                callback()\n"
                    "            if isinstance(value, Continuation):\n",
                ),
            ),
        )
        for how in ("", " in finalize")
    ),
    Mutation(
        UNCOMPLETES,
        "what an event handler raises goes no further",
        f"{HERE}/test_outcomes.py::test_a_users_callback_that_raises_does_not_uncomplete_the_job[on-Broken]",
        "TimeoutError",
        (
            Change(
                "runtime/dispatch.py",
                "        except (Exception, asyncio.CancelledError):  # a future's",
                "        except ZeroDivisionError:  # a future's",
            ),
        ),
    ),
    Mutation(
        DELIVERS,
        "what is claimed is locked as it is read",
        f"{HERE}/test_claiming.py::test_a_job_that_is_being_claimed_is_not_delivered_twice",
        "delivered once",
        (Change(f"{SQL}/claim_jobs.sql", "        for no key update skip locked\n", ""),),
    ),
    Mutation(
        ARCHIVED,
        "the outcome is the verdict's",
        f"{HERE}/test_outcomes.py::test_failed_attempts_are_not_archived_as_completed",
        "AssertionError",
        (Change(f"{SQL}/end_jobs.sql", "returning l.*, mine.outcome,", "returning l.*, 'completed'::text as outcome,"),),
    ),
    Mutation(
        PENDING,
        "the row is inserted and leased in one transaction",
        f"{HERE}/test_claiming.py::test_what_is_run_here_is_never_pending_for_a_worker_to_claim",
        "no worker sees it",
        (
            Change(
                "postgres/leased.py",
                "            return outcome, await claim.on(connection)",
                "        return outcome, await claim.on(connection)",
            ),
        ),
    ),
    Mutation(
        SERIAL,
        "a worker claims for every slot that is free; now only when all of them are",
        f"{HERE}/test_concurrency.py::test_a_workers_concurrency_is_not_a_batch_size",
        "TimeoutError",
        (
            Change(
                "runtime/claimer.py",
                "        free = concurrency - self._slots.running\n",
                "        if self._slots.running or self._slots.waiting:\n            return 0\n"
                "        free = concurrency - concurrency // 2\n",
            ),
        ),
    ),
    Mutation(
        SERIAL,
        "a worker runs what was claimed only in free slots",
        f"{HERE}/test_concurrency.py::test_a_workers_concurrency_is_not_a_batch_size",
        "AssertionError",
        (
            Change(
                "runtime/worker.py", "while self._waiting and len(self._running) < self.settings.concurrency and", "while self._waiting and"
            ),
        ),
    ),
    *(
        Mutation(
            SERIAL,
            f"map() {what}",
            f"{HERE}/test_concurrency.py::test_the_concurrency_of_map_is_not_a_batch_size",
            shows,
            (Change("engine/works.py", "for _ in range(min(concurrency, len(given))):", f"for _ in range({slots}):"),),
        )
        for what, slots, shows in (
            ("runs as many at once", "1", "TimeoutError"),
            ("runs no more at once", "len(given)", "AssertionError"),
        )
    ),
)
