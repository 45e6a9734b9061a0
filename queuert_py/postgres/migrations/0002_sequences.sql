-- Blockers with their policies, deadlines, what a failed job had memoised.

alter table /* schema */live_job
add column on_blocker_failure text check (on_blocker_failure in ('fail', 'ignore')),
add column doom jsonb,
add column deadline_at timestamptz;

create index live_job_limit on /* schema */live_job (lane, least(expires_at, deadline_at))
where leased_by is null and (expires_at is not null or deadline_at is not null);

create index live_job_doomed on /* schema */live_job (lane, type) where doom is not null;
alter table /* schema */finished_job
add column on_blocker_failure text,
add column memo jsonb,
add column deadline_at timestamptz;

-- reason: why the job failed for good with this attempt: watchers are told from here, for retries take the failed row away.
alter table /* schema */attempt_log add column reason text;

-- counted: the dependent has been told that this one has ended; should the blocker be retried, it is not told again.
alter table /* schema */job_blocker add column counted boolean not null default false;

-- What handlers have started, by the root of their tree: rows that were started from outside are in no entry.
create index live_job_tree on /* schema */live_job (lane, root_id) where root_id <> sequence_id;

-- Jobs whose stored input was refused: looked through by a worker that starts with another model.
create index finished_job_invalid on /* schema */finished_job (lane, type) where outcome = 'failed' and reason = 'validation';

-- What was just written is read often (watchers): autovacuum sums up new ranges of history within a minute or so.
alter index /* schema */finished_job_time set (autosummarize = on);

alter index /* schema */attempt_log_time set (autosummarize = on);

-- For looking. Each costs only the rows that have what it is for. BRIN: less than 1 us a job; the same on live_job took 5 (of 40), so
-- unfinished work is read along its key where type, queue or time of creation are asked for.
create index live_job_blocked on /* schema */live_job (lane, sequence_id) where open_blockers > 0;

create index live_job_correlation on /* schema */live_job (lane, correlation_id) where correlation_id is not null;

create index live_job_tags on /* schema */live_job using gin (tags) where tags is not null;

create index finished_job_correlation on /* schema */finished_job (lane, correlation_id) where correlation_id is not null;

create index finished_job_tags on /* schema */finished_job using gin (tags) where tags is not null;

create index finished_job_tree on /* schema */finished_job (lane, root_id) where root_id <> sequence_id;

create index finished_job_stopped on /* schema */finished_job (lane, outcome, finished_at) where outcome in ('cancelled', 'expired');

create index finished_job_kind on /* schema */finished_job using brin (
    sequence_type text_bloom_ops (n_distinct_per_range = 64), type text_bloom_ops (n_distinct_per_range = 64),
    queue text_bloom_ops (n_distinct_per_range = 64), finished_by text_bloom_ops (n_distinct_per_range = 64), sequence_created_at
) with (autosummarize = on);

-- As before, with what a look wants to know besides; the progress of what has completed is 100.
create or replace view /* schema */job as
select
    lane, sequence_id, position, job_id, root_id, origin_id, sequence_type, type,
    case
        when leased_by is not null then 'running'
        when open_blockers > 0 then 'blocked'
        when run_at > clock_timestamp() then 'scheduled'
        else 'pending'
    end as status,
    null::text as reason,
    queue, priority, run_at, input, null::jsonb as output, null::text as output_type, attempt, crash_count, key, correlation_id, tags,
    last_error, progress, open_blockers, blocker_count, created_at, sequence_created_at,
    case when leased_by is not null then leased_at end as started_at, null::timestamptz as finished_at, leased_by as worker, expires_at, deadline_at
from /* schema */live_job
union all
select
    lane, sequence_id, position, job_id, root_id, origin_id, sequence_type, type, outcome, reason, queue, priority, run_at, input, output,
    output_type, attempt, crash_count, key, correlation_id, tags, last_error,
    case when outcome in ('completed', 'continued') then '{"percent": 100}'::jsonb end,
    0, blocker_count, created_at, sequence_created_at, started_at, finished_at, finished_by, null, null
from /* schema */finished_job;

create or replace view /* schema */sequence as
select
    last.lane,
    last.sequence_id,
    last.sequence_type as type,
    last.status,
    last.reason,
    last.key,
    last.correlation_id,
    last.tags,
    last.root_id,
    last.position + 1 as steps,
    last.type as current_type,
    last.attempt,
    case
        when last.position = 0 then last.input
        else (
            select first.input
            from /* schema */finished_job first
            where first.lane = last.lane and first.sequence_id = last.sequence_id and first.position = 0
        )
    end as input,
    last.output,
    last.output_type,
    last.last_error,
    last.progress,
    last.run_at,
    last.sequence_created_at as created_at,
    last.finished_at,
    last.worker,
    last.queue,
    last.priority,
    last.open_blockers,
    last.started_at,
    last.expires_at,
    last.deadline_at
from /* schema */job last
where last.status <> 'continued';

-- Starts a sequence from SQL: in triggers, and in languages without this package. The input is checked when a worker takes it up. A key
-- finds the unfinished sequence that holds it. It runs with its caller's rights: usage of the schema, select and insert on live_job,
-- select on setting; or `alter function … security definer`, where callers shall have none of these.
create function /* schema */start_sequence(
    type text,
    input jsonb,
    key text default null,
    delay interval default null,
    queue text default 'default',
    priority integer default 0,
    correlation_id text default null,
    tags text[] default null,
    max_attempts integer default null
) returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    channel constant text := 'queuert_' || trim(both '".' from '/* schema */');
    lanes constant integer := (select value::integer from /* schema */setting where name = 'lanes');
    named constant bytea := convert_to(start_sequence.type || E'\n' || start_sequence.key, 'UTF8');
    crcs constant bigint[] := '{0,498536548,997073096,651767980,1994146192,1802195444,1303535960,1342533948,
        3988292384,4027552580,3604390888,3412177804,2607071920,2262029012,2685067896,3183342108}';
    crc bigint := 4294967295;
    bytes bytea := uuid_send(gen_random_uuid());
    new_id uuid;
    found_id uuid;
    its_lane smallint;
begin
    if coalesce(start_sequence.type, '') = '' or octet_length(start_sequence.type) > 200 or start_sequence.input is null then
        raise exception 'start_sequence: a type (1 to 200 bytes) and an input are needed' using errcode = '22023';
    elsif octet_length(start_sequence.key) not between 1 and 512 or octet_length(start_sequence.correlation_id) not between 1 and 512 then
        raise exception 'start_sequence: key and correlation_id have 1 to 512 bytes' using errcode = '22023';
    elsif coalesce(start_sequence.queue, '') = '' or octet_length(start_sequence.queue) > 40 then
        raise exception 'start_sequence: a queue has 1 to 40 bytes' using errcode = '22023';
    elsif start_sequence.priority is null or start_sequence.priority not between -32767 and 32767 then
        raise exception 'start_sequence: priority is from -32767 to 32767' using errcode = '22023';
    elsif start_sequence.max_attempts < 1 or start_sequence.delay not between interval '0' and interval '36500 days' then
        raise exception 'start_sequence: max_attempts is at least 1, delay not negative, at most 36500 days' using errcode = '22023';
    elsif array_ndims(start_sequence.tags) > 1
        or exists (select from unnest(start_sequence.tags) tag where coalesce(octet_length(tag), 0) not between 1 and 200)
    then
        raise exception 'start_sequence: tags are a list of words of 1 to 200 bytes' using errcode = '22023';
    end if;
    -- A UUIDv7: milliseconds, the version, and what was random already.
    bytes := overlay(bytes placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6);
    bytes := set_byte(bytes, 6, get_byte(bytes, 6) & 15 | 112);
    if named is not null and lanes > 1 then  -- the lane of a key: zlib's CRC-32 of type and key, by half bytes
        for at in 0 .. octet_length(named) - 1 loop
            crc := crc # get_byte(named, at);
            crc := crcs[(crc & 15) + 1] # (crc >> 4);
            crc := crcs[(crc & 15) + 1] # (crc >> 4);
        end loop;
        bytes := set_byte(bytes, 15, ((crc # 4294967295) % lanes)::integer);
    end if;
    new_id := encode(bytes, 'hex')::uuid;
    its_lane := get_byte(bytes, 15) % lanes;
    while found_id is null loop  -- once, unless the holder of the key ends between the two statements
        insert into /* schema */live_job as job (
            lane, sequence_id, job_id, root_id, sequence_type, type, queue, priority, run_at, input, key, correlation_id, tags, max_attempts
        )
        values (
            its_lane, new_id, new_id, new_id, start_sequence.type, start_sequence.type, start_sequence.queue, start_sequence.priority,
            clock_timestamp() + coalesce(start_sequence.delay, interval '0'), start_sequence.input, start_sequence.key,
            start_sequence.correlation_id, nullif(start_sequence.tags, '{}'), start_sequence.max_attempts
        )
        on conflict do nothing
        returning job.sequence_id into found_id;
        if found_id is null then
            select job.sequence_id into found_id
            from /* schema */live_job job
            where job.lane = its_lane and job.sequence_type = start_sequence.type and job.key = start_sequence.key;
        end if;
    end loop;
    if found_id = new_id then
        perform pg_notify(channel, format('q:%s:%s:%s', its_lane, start_sequence.priority, start_sequence.queue));
    end if;
    return found_id;
end
$$;
