"""The only starter of tasks and threads: workers, attempts, leases, waiters."""
