-- The position of a sequence's current job, if it has not ended.
select position from /* schema */live_job where lane = %(lane)s::smallint and sequence_id = %(sequence_id)s::uuid
