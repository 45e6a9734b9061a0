"""The demo's job types. A sequence per file: `read`, then `analyse`, then `store`; and one `report` when all are there.

They are declared on a registry, which needs no database: demo_app.py mounts it on an engine.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import hashlib
import os
from pathlib import Path

from pydantic import BaseModel

from queuert_py import Continuation, Job, JobTypes, continue_with

jobs = JobTypes()
TABLE = """
create table demo_file (path text, digest text, bytes bigint, lines bigint, words bigint, definitions bigint, stored_by integer)
"""


class File(BaseModel):
    folder: str
    path: str


class Content(BaseModel):
    folder: str
    path: str
    digest: str
    bytes: int


class Facts(BaseModel):
    path: str
    digest: str
    bytes: int
    lines: int
    words: int
    definitions: int


class Stored(BaseModel):
    path: str
    lines: int


class Changed(BaseModel):
    """Somebody has changed or removed the file while the demo ran: it does not count."""

    path: str


class Folder(BaseModel):
    folder: str


class Report(BaseModel):
    files: int
    bytes: int
    lines: int
    words: int
    definitions: int
    most_lines: str | None
    most_definitions: str | None


@jobs.job_type(max_attempts=3, backoff=0.2)
async def read(job: Job[File]) -> Changed | Continuation[Changed | Stored]:
    """Read the file; what follows checks by the hash that it works on the same bytes."""
    file = job.input
    data = await bytes_of(file.folder, file.path)
    if data is None:
        return Changed(path=file.path)
    digest = hashlib.sha256(data).hexdigest()
    return continue_with(analyse, Content(folder=file.folder, path=file.path, digest=digest, bytes=len(data)))


@jobs.job_type(internal=True, max_attempts=3, backoff=0.2)
async def analyse(job: Job[Content]) -> Changed | Continuation[Stored]:
    """Count lines, words and, in Python, definitions."""
    content = job.input
    data = await bytes_of(content.folder, content.path)
    if data is None or hashlib.sha256(data).hexdigest() != content.digest:
        return Changed(path=content.path)
    text = data.decode("utf-8", "replace")
    definitions = await asyncio.to_thread(count_definitions, text) if content.path.endswith(".py") else 0
    known = content.model_dump(exclude={"folder"})
    return continue_with(store, Facts(**known, lines=len(text.splitlines()), words=len(text.split()), definitions=definitions))


@jobs.job_type(internal=True)
async def store(job: Job[Facts]) -> Stored:
    """Write the row in the transaction that also completes the job: it is there once, or the job runs again."""
    async with job.finalize() as tx:
        await tx.execute(
            "insert into demo_file values (%(path)s, %(digest)s, %(bytes)s, %(lines)s, %(words)s, %(definitions)s, %(stored_by)s)",
            {**job.input.model_dump(), "stored_by": os.getpid()},
        )
    return Stored(path=job.input.path, lines=job.input.lines)


@jobs.job_type
async def report(job: Job[Folder]) -> Report:
    """Sum up what the others stored."""
    async with job.prepare() as tx:
        cursor = await tx.execute(
            """
            select count(*), coalesce(sum(bytes), 0), coalesce(sum(lines), 0), coalesce(sum(words), 0), coalesce(sum(definitions), 0),
                (array_agg(path order by lines desc, path))[1],
                (array_agg(path order by definitions desc, path) filter (where definitions > 0))[1]
            from demo_file
            """
        )
        row = await cursor.fetchone()
    return Report(**dict(zip(Report.model_fields, row or (), strict=True)))


async def bytes_of(folder: str, path: str) -> bytes | None:
    """What a file holds; None if it is not there (any more)."""
    with contextlib.suppress(OSError):
        return await asyncio.to_thread(Path(folder, path).read_bytes)
    return None


def count_definitions(text: str) -> int:
    """Functions and classes; 0 in what does not parse."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 0
    return sum(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for node in ast.walk(tree))
