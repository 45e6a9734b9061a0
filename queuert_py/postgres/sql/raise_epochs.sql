-- Fence out whoever runs these jobs: their rows are held by this transaction, which ends them or carries them on under the new epoch.
update /* schema */live_job l set epoch = l.epoch + 1
from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid, epoch bigint)
where l.lane = r.lane and l.sequence_id = r.sequence_id and l.epoch = r.epoch
