-- A running job waits for blockers before it goes on: its lease and its attempt are given back.
update /* schema */live_job l
set leased_by = null, leased_until = null, claim_token = null, begun = false, epoch = l.epoch + 1, attempt = l.attempt - 1,
    open_blockers = r.open_blockers, blocker_count = l.blocker_count + r.blocker_count, doom = r.doom, run_at = clock_timestamp(),
    on_blocker_failure = r.on_blocker_failure, expires_at = null,
    memo = jsonb_set(coalesce(l.memo - array['waiting', 'sleeping'], '{}'), '{waits}', coalesce(l.memo -> 'waits', '{}') || jsonb_build_object(r.name, r.ids))
from jsonb_to_recordset(%(rows)s::jsonb) as r (
    lane smallint, sequence_id uuid, epoch bigint, open_blockers integer, blocker_count integer, on_blocker_failure text, doom jsonb,
    name text, ids jsonb
)
where l.lane = r.lane and l.sequence_id = r.sequence_id and l.epoch = r.epoch and l.leased_by is not null
returning l.lane, l.queue, l.priority, l.type, l.open_blockers = 0
