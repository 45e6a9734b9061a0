-- A claim whose answer was lost: give its jobs back, uncharged.
with mine as materialized (
    select l.lane, l.sequence_id
    from /* schema */live_job l
    where l.lane = any(%(lanes)s::smallint[]) and l.leased_by = %(worker)s and l.claim_token = %(token)s
    order by l.lane, l.sequence_id
    for no key update
)
update /* schema */live_job l
set leased_by = null, leased_until = null, claim_token = null, begun = false, epoch = l.epoch + 1, attempt = l.attempt - 1
from mine
where l.lane = mine.lane and l.sequence_id = mine.sequence_id
returning l.sequence_id
