"""The keeper: a process of its own beside each server, which starts it and stops it when its last client is gone.

Run as a file by the launcher (`python -I -S keeper.py ...`), detached from the terminal; imports nothing of the package.

Three lock files in the server's home say who is there:
- clients.lock: each client holds it shared. The keeper waits for it exclusively, that is for the end of all of them.
- start.lock: held exclusively by a client that attaches, and by the keeper while it stops the server, so that a client
  that arrives as the last one leaves either keeps the server, or waits and starts it anew.
- keeper.lock: held by the keeper while its server runs; inherited locked, so there is never a second one.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType


class Terminated(Exception):  # noqa: N818
    """Somebody asks the keeper itself to end: the machine shuts down."""


def spawn(command: list[str], uid: int, gid: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        if uid != os.geteuid():
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        os.execv(command[0], command)  # noqa: S606
    except BaseException as error:
        os.write(2, f"{command[0]} could not be run: {error}\n".encode())
    finally:
        os._exit(127)


def is_gone(pid: int) -> bool:
    """Of a child, or (for a server taken over from a killed keeper) of any process."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
    except OSError:
        return True
    return False


class Keeper:
    def __init__(self, lock: int, home: str, sockets: str, *, ephemeral: bool) -> None:
        self.lock = lock
        self.sockets = sockets
        self.ephemeral = ephemeral
        self.clients = os.open(f"{home}/clients.lock", os.O_RDWR)
        self.start = os.open(f"{home}/start.lock", os.O_RDWR)
        self.pid = 0

    def watch(self, pid: int, *, child: bool) -> None:
        """Notice the server's end: by signal, or twice a second where it is another's child."""
        self.pid = pid
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self.terminate)
        signal.signal(signal.SIGCHLD, self.look)
        if not child:
            signal.signal(signal.SIGALRM, self.look)
            signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
        self.look(0, None)

    def look(self, _number: int, _frame: FrameType | None) -> None:
        """A server that ended by itself: leave it to the next client. Only an ephemeral one has something to remove."""
        if self.pid and is_gone(self.pid):
            self.pid = 0
            with suppress(OSError):
                os.rmdir(self.sockets)  # empty after an orderly end; after a crash the next server takes it over, address and all
            fcntl.flock(self.lock, fcntl.LOCK_UN)
            if not self.ephemeral:
                sys.exit()

    def terminate(self, _number: int, _frame: FrameType | None) -> None:
        raise Terminated

    def wait_for_the_last(self) -> None:
        """Until no client is left and, start.lock being held, none can come."""
        while True:
            fcntl.flock(self.clients, fcntl.LOCK_EX)
            fcntl.flock(self.clients, fcntl.LOCK_UN)
            fcntl.flock(self.start, fcntl.LOCK_EX)
            try:
                fcntl.flock(self.clients, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(self.start, fcntl.LOCK_UN)
            else:
                fcntl.flock(self.clients, fcntl.LOCK_UN)
                return

    def stop(self) -> None:
        """Fast shutdown; immediate for data that nobody wants, or after a minute."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0)
        first = signal.SIGQUIT if self.ephemeral else signal.SIGINT
        for number, seconds in ((first, 60), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)):
            if self.pid and not is_gone(self.pid):
                os.kill(self.pid, number)
                self.wait(time.monotonic() + seconds)

    def wait(self, deadline: float) -> None:
        while self.pid and time.monotonic() < deadline:
            if is_gone(self.pid):
                self.pid = 0
            else:
                time.sleep(0.002)


def main() -> None:
    lock, home, sockets, running, uid, gid, ephemeral, *command = sys.argv[1:]
    keeper = Keeper(int(lock), home, sockets, ephemeral=ephemeral == "ephemeral")
    if os.fork():  # the launcher waits for this process; the other has no parent that would have to
        os._exit(0)
    os.set_inheritable(keeper.lock, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    keeper.watch(int(running) or spawn(command, int(uid), int(gid)), child=running == "0")
    with suppress(Terminated):
        keeper.wait_for_the_last()
    keeper.stop()
    from shutil import rmtree  # only here: it imports much

    rmtree(sockets, ignore_errors=True)
    if keeper.ephemeral:
        rmtree(home, ignore_errors=True)
    fcntl.flock(keeper.lock, fcntl.LOCK_UN)


main()
