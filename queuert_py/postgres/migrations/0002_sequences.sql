-- Blockers with their policies, deadlines, what a failed job had memoised.

alter table /* schema */live_job
add column on_blocker_failure text check (on_blocker_failure in ('fail', 'ignore')),
add column doom jsonb,
add column deadline_at timestamptz;

create index live_job_limit on /* schema */live_job (lane, least(expires_at, deadline_at))
where leased_by is null and (expires_at is not null or deadline_at is not null);

alter table /* schema */finished_job
add column on_blocker_failure text,
add column deadline_at timestamptz,
add column memo jsonb;

-- counted: a dependent that ignores failures has been told of this one's; should the blocker be retried, it is not told again.
alter table /* schema */job_blocker add column counted boolean not null default false;
