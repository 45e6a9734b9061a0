-- Sequences with all that is known of them. The edges of others to them stay: they say what those waited for.
with given as materialized (
    select r.lane, r.sequence_id from jsonb_to_recordset(%(rows)s::jsonb) as r (lane smallint, sequence_id uuid)
), live as (
    delete from /* schema */live_job l using given g where l.lane = g.lane and l.sequence_id = g.sequence_id
    returning l.sequence_id
), finished as (
    delete from /* schema */finished_job f using given g where f.lane = g.lane and f.sequence_id = g.sequence_id
    returning f.sequence_id
), logged as (
    delete from /* schema */attempt_log a using given g where a.lane = g.lane and a.sequence_id = g.sequence_id
), edges as (
    delete from /* schema */job_blocker b using given g where b.lane = g.lane and b.sequence_id = g.sequence_id
)
select sequence_id::text from live
union
select sequence_id::text from finished
