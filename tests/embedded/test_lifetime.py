"""Who keeps a server running, and what survives whose death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg

from queuert_py.embedded import open_server
from queuert_py.embedded.launcher import Postmaster

from .conftest import (
    CLIENT,
    Client,
    ask,
    client,
    do,
    environment,
    is_gone,
    keeper,
    kill_all,
    postmaster,
    sockets,
    until,
    until_gone,
)


def test_two_processes_share_a_server_and_its_data_survives_it(project: Path) -> None:
    with client(project) as one, client(project) as other:
        assert (one.dsn, one.data) == (other.dsn, other.data)
        do(one.dsn, "create table t as select 42 as a")
        server = postmaster(one.data)
        one.end()
        assert ask(other.dsn, "select a from t") == 42
        other.end()
        until_gone(server)
    until(lambda: not sockets(other.dsn).exists(), "its socket folder to be removed")
    with open_server(project) as again:
        assert ask(again.dsn, "select a from t") == 42


def test_the_last_to_close_stops_the_server(project: Path) -> None:
    one, other = open_server(project), open_server(project)
    pid = postmaster(one.data)
    one.close()
    assert not is_gone(pid)
    other.close()
    until_gone(pid)


def test_many_processes_that_start_at_once_get_one_server(fresh_project: Path) -> None:
    with ExitStack() as stack:
        with ThreadPoolExecutor(8) as pool:

            def start(_: int) -> Client:
                return stack.enter_context(client(fresh_project))

            clients = [*pool.map(start, range(8))]
        assert len({each.dsn for each in clients}) == 1
        assert [ask(each.dsn, "select 1") for each in clients] == [1] * 8


def test_a_hold_is_good_whoever_leaves_meanwhile(project: Path) -> None:
    """The last one leaves as the next one comes, over and over."""

    def come_and_go(_: int) -> object:
        with open_server(project) as server:
            return ask(server.dsn, "select 1")

    with ThreadPoolExecutor(3) as pool:
        assert [*pool.map(come_and_go, range(60))] == [1] * 60


def test_a_killed_client_takes_its_ephemeral_server_along() -> None:
    with client() as victim:
        server, its_keeper, socket_folder = postmaster(victim.data), keeper(victim.data), sockets(victim.dsn)
        victim.kill()
        until_gone(server, its_keeper)
    assert not victim.data.parent.exists()
    assert not socket_folder.exists()


def test_a_client_that_ends_without_close_does_too() -> None:
    with client() as careless:
        server, its_keeper = postmaster(careless.data), keeper(careless.data)
        careless.end()
        until_gone(server, its_keeper)
    assert not careless.data.parent.exists()


def test_a_killed_server_is_back_at_the_same_address(project: Path) -> None:
    with open_server(project) as server:
        do(server.dsn, "create table t as select 42 as a")
        its_keeper = keeper(server.data)
        kill_all(postmaster(server.data))
        with open_server(project) as again:
            until_gone(its_keeper)  # there is another now
            assert again.dsn == server.dsn
            assert ask(server.dsn, "select a from t") == 42


def test_a_server_killed_under_its_sessions_is_back(project: Path) -> None:
    with open_server(project) as server, closing(psycopg.connect(server.dsn)):
        kill_all(postmaster(server.data))
        with open_server(project) as again:
            assert ask(again.dsn, "select 1") == 1


def test_all_killed_at_once_leaves_data_to_open_again(project: Path) -> None:
    with client(project) as victim:
        do(victim.dsn, "create table t as select 42 as a")
        kill_all(keeper(victim.data), postmaster(victim.data))
        victim.kill()
    with open_server(project) as again:
        assert ask(again.dsn, "select a from t") == 42
        assert again.dsn == victim.dsn


def test_all_killed_and_the_socket_folder_swept_away(project: Path) -> None:
    with client(project) as victim:
        kill_all(keeper(victim.data), postmaster(victim.data))
        victim.kill()
        subprocess.run(["rm", "-r", sockets(victim.dsn)], check=True)
    with open_server(project) as again:
        assert ask(again.dsn, "select 1") == 1


def test_a_dead_servers_number_may_be_anothers(project: Path) -> None:
    with client(project) as victim:
        owner = victim.data.stat().st_uid if os.geteuid() == 0 else None
        kill_all(keeper(victim.data), postmaster(victim.data))
        victim.kill()
    with subprocess.Popen(["sleep", "60"], user=owner) as stranger:
        for path in (victim.data / "postmaster.pid", sockets(victim.dsn) / ".s.PGSQL.5432.lock"):
            path.write_text("\n".join([str(stranger.pid), *path.read_text().splitlines()[1:]]) + "\n")
        with open_server(project) as again:
            assert ask(again.dsn, "select 1") == 1
        stranger.kill()


def test_a_killed_keepers_server_is_taken_over_and_stopped_in_the_end(project: Path) -> None:
    with client(project) as first:
        server = postmaster(first.data)
        kill_all(keeper(first.data))
        with open_server(project) as second:
            assert (second.dsn, postmaster(second.data)) == (first.dsn, server)
            first.end()
            assert ask(second.dsn, "select 1") == 1
        until_gone(server)
        until(lambda: not sockets(first.dsn).exists(), "its socket folder to be removed")


def test_a_server_taken_over_that_dies_is_noticed(project: Path) -> None:
    with client(project) as first:
        kill_all(keeper(first.data))
        with open_server(project):
            kill_all(postmaster(first.data))
            with open_server(project) as third:
                assert ask(third.dsn, "select 1") == 1


def test_a_keeper_told_to_end_stops_its_server_in_good_order(project: Path) -> None:
    with open_server(project) as server:
        pid, its_keeper = postmaster(server.data), keeper(server.data)
        os.kill(its_keeper, signal.SIGTERM)
        until_gone(pid, its_keeper)
        assert Postmaster.of(server.data) is None
        with open_server(project) as again:
            assert ask(again.dsn, "select 1") == 1


def test_an_interrupt_from_the_terminal_does_not_reach_the_server(project: Path) -> None:
    with open_server(project) as server:
        pass
    with client(project) as starter, open_server(project) as server:
        pid = postmaster(server.data)
        os.killpg(starter.process.pid, signal.SIGINT)
        starter.process.wait(60)
        assert ask(server.dsn, "select 1") == 1
        assert postmaster(server.data) == pid


def test_the_keeper_does_not_hold_the_output_of_who_started_it(project: Path) -> None:
    with client(project) as starter, open_server(project) as server:
        assert starter.process.stdin is not None
        starter.process.stdin.close()
        assert starter.process.stdout is not None
        assert starter.process.stdout.read() == ""  # its end is seen although the server goes on
        assert ask(server.dsn, "select 1") == 1


def test_a_child_that_is_run_meanwhile_does_not_keep_the_server() -> None:
    script = CLIENT.replace(
        "sys.stdin.read()", "import subprocess; print(subprocess.Popen(['sleep', '60'], close_fds=False).pid, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        _, data, child = (process.stdout.readline().strip() for _ in range(3))
        try:
            until(lambda: not Path(data).exists(), "the end of the server")
        finally:
            os.kill(int(child), signal.SIGKILL)


FORKING = """
import os, sys
from queuert_py.embedded import open_server
with open_server(ephemeral=True) as server:
    if os.fork() == 0:
        server.close()
        os._exit(0)
    os.wait()
    print((server.data / "postmaster.pid").exists())
print(server.data.exists())
"""


def test_a_forked_child_cannot_give_up_its_parents_hold() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", FORKING], capture_output=True, text=True, env=environment(), check=False)
    assert (done.stdout.split(), done.stderr) == (["True", "False"], "")
