-- What became of attempts, by their epoch: still theirs, written by them, or why not.
select held.sequence_id::text, held.epoch, case
    when l.epoch = held.epoch and l.leased_by is not null then 'mine'
    when f.epoch = held.epoch then 'written'
    when f.outcome = 'cancelled' then 'cancelled'
    when f.outcome is not null then 'completed_elsewhere'
    when l.epoch is not null then 'lease_lost'
    else 'deleted'
end
from jsonb_to_recordset(%(rows)s::jsonb) as held (lane smallint, sequence_id uuid, position integer, epoch bigint)
left join /* schema */live_job l on l.lane = held.lane and l.sequence_id = held.sequence_id
left join /* schema */finished_job f
    on f.lane = held.lane and f.sequence_id = held.sequence_id and f.position = held.position
