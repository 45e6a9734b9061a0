"""queuert_py: typed workflows on PostgreSQL. A job type is a handler with a pydantic input and output; a sequence is a chain of jobs."""

__version__ = "0.1.0"

from queuert_py.decisions.backoff import exponential
from queuert_py.dependencies import Depends
from queuert_py.engine import Engine
from queuert_py.job import Database, Job, SyncJob
from queuert_py.job_types import InternalJobType, JobType, JobTypes, continue_with
from queuert_py.joining import join
from queuert_py.runtime.worker import Worker
from queuert_py.sequence import Blocker, JobSequence
from queuert_py.values import Continuation, Dedup, Fail, Request, Retry, Snooze

__all__ = [
    "Blocker",
    "Continuation",
    "Database",
    "Dedup",
    "Depends",
    "Engine",
    "Fail",
    "InternalJobType",
    "Job",
    "JobSequence",
    "JobType",
    "JobTypes",
    "Request",
    "Retry",
    "Snooze",
    "SyncJob",
    "Worker",
    "continue_with",
    "exponential",
    "join",
]
