"""The demo as an app: `queuert worker queuert_py.cli.demo_app:engine`, with the database in QUEUERT_DSN."""

from queuert_py import Engine
from queuert_py.cli.demo_jobs import jobs

engine = Engine(None, jobs)
