-- Jobs that have failed where nobody could answer that: they wait to be claimed once more, by a worker that knows their type and buries
-- them. They do not run again.
update /* schema */live_job l
set doom = r.doom, epoch = l.epoch + 1, leased_by = null, leased_until = null, claim_token = null, begun = false,
    open_blockers = 0, run_at = clock_timestamp(), crash_count = l.crash_count + r.crash
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid, epoch bigint, doom jsonb, crash integer)
where l.lane = r.lane and l.sequence_id = r.sequence_id and l.epoch = r.epoch
returning l.lane, l.queue, l.priority, l.type
