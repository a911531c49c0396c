"""The parent process: starts, restarts, drains and replaces its children. These are stubs."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from penstock.app.cli.main import command_line

from .conftest import Server, stub_server


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def reload(server: Server) -> Result:
    server.connect().close()
    where = (
        ["--uds", server.address]
        if isinstance(server.address, str)
        else ["--port", str(server.address[1])]
    )
    return CliRunner().invoke(command_line, ["reload", *where])


@pytest.mark.parametrize("balance", ["even", "kernel"])
def test_a_server_over_its_life(tmp_path: Path, balance: str) -> None:
    """One server for many questions: a start takes longer than all of them."""
    (tmp_path / "release").write_text("one")
    host = "::1" if balance == "kernel" and has_ipv6() else "127.0.0.1"
    with stub_server(tmp_path, balance=balance, host=host) as server, ExitStack() as stack:
        server.ready()
        clients = [stack.enter_context(server.connect()) for _ in range(8)]
        answers = [client.ask() for client in clients]
        assert {release for _, _, release in answers} == {"one"}
        if balance == "even":
            assert sorted(Counter(front for front, _, _ in answers).values()) == [4, 4]

        # signals of the whole group are left to the parent
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(answers[0][1], number)
        assert clients[0].ask() == answers[0]

        # a front dies: its connections end, the others notice nothing, and it comes again
        front, pid, _ = answers[0]
        os.kill(pid, signal.SIGKILL)
        server.wait_for(f"{front} (process {pid}): it was ended by SIGKILL; restarting at once")
        for client, answer in zip(clients, answers, strict=True):
            if answer[1] == pid:
                assert client.is_closed()
            else:
                assert client.ask() == answer
        others = {pid for _, pid, _ in answers} - {pid}
        assert pid not in {server.ask()[1] for _ in range(8)}  # no connection waits for the dead

        server.wait_for("): ready again")

        # a new release that can't start changes nothing
        server.tell("release", "two")
        server.tell("models", "fails")
        failed = reload(server)
        assert failed.exit_code == 1 and "start: no such file" in failed.stdout
        assert {server.ask()[2] for _ in range(8)} == {"one"}
        server.wait_for("the old processes go on: the new ones can't start: no such file")

        # one that can replaces all: open connections end with their next answer
        server.tell("models", "")
        kept = [client for client, answer in zip(clients, answers, strict=True) if answer[1] != pid]
        server.signal(signal.SIGHUP)
        server.wait_for("the new processes take all connections from now on")
        for client in kept:
            while not client.closes:  # the order to end is on its way
                assert client.ask()[2] == "one"
            assert client.is_closed()
        server.wait_for("the old processes have ended")
        assert {server.ask()[2] for _ in range(8)} == {"two"}

        server.signal(signal.SIGUSR1)
        report = server.wait_for("report: 2 front processes")
        pids = [int(pid) for pid in re.findall(r"process (\d+)", report)]
        assert len(pids) == 3 and not others & set(pids)

        server.signal(signal.SIGTERM)
        assert server.end() == 0
        for each in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(each, 0)


def test_the_model_process_is_restarted_and_all_end_with_their_parent(server: Server) -> None:
    server.ready()
    server.signal(signal.SIGUSR1)
    pid = re.search(r"models: process (\d+)", server.wait_for("report:"))
    assert pid is not None
    front = server.ask()
    server.tell("models", "dies")
    os.kill(int(pid[1]), signal.SIGKILL)
    server.wait_for("models (process", 2)
    assert "restarting in 1 s" in server.wait_for("restarting in 1 s")
    assert server.ask()[0] != front[0]  # the other's turn: fronts go on without it
    server.process.kill()
    server.end()  # no process holds its standard error any more


@pytest.mark.parametrize("who", ["models", "fronts"])
def test_children_that_cannot_start_end_the_server(tmp_path: Path, who: str) -> None:
    (tmp_path / who).write_text("fails")
    with stub_server(tmp_path) as server:
        assert server.end() == 1
        assert "the server can't start: no such file\n" in server.log


def test_wrong_files_are_told_as_by_one_process(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("wrong")
    with stub_server(tmp_path) as server:
        assert server.end() == 1
        assert server.log.endswith("x.toml: no node\ny.toml: no name\nEND")


def test_a_reload_that_hangs_gives_way_to_the_next_one(tmp_path: Path) -> None:
    with stub_server(tmp_path, uds=tmp_path / "socket") as server:
        server.ready()
        server.tell("models", "hangs")
        server.signal(signal.SIGHUP)
        server.wait_for("models hangs")
        server.tell("models", "")
        done = reload(server)
        assert done.exit_code == 0, done.output
        assert "the new ones can't start: a newer reload began" in server.log
        for fate in ("hangs", "unprepared"):
            server.tell("fronts", fate)
            server.signal(signal.SIGHUP)
            server.wait_for(f"front 1 {fate}")
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    assert server.log.count("the new processes take all connections") == 1
    assert not (tmp_path / "socket").exists()


def test_a_second_signal_ends_all_processes_at_once(tmp_path: Path) -> None:
    with stub_server(tmp_path, drain_timeout=60) as server:
        server.ready()
        _, pid, _ = server.ask()
        server.tell("models", "hangs")
        server.signal(signal.SIGHUP)
        server.wait_for("models hangs")
        os.kill(pid, signal.SIGSTOP)  # so that it does not end
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGINT)
        assert server.end() in (-signal.SIGINT, -signal.SIGTERM)


def test_no_connection_is_lost_while_a_front_does_not_run(tmp_path: Path) -> None:
    """It is stopped, and gets connections that it never takes; then it dies."""
    with stub_server(tmp_path) as server, ExitStack() as stack:
        server.ready()
        stopped = server.ask()[1]
        os.kill(stopped, signal.SIGSTOP)
        clients = [stack.enter_context(server.connect()) for _ in range(8)]
        for client in clients:
            client.send()
        os.kill(stopped, signal.SIGKILL)
        assert stopped not in {client.receive()[1] for client in clients}


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with stub_server(tmp_path, port=port, balance="kernel") as server:
            assert server.end() == 1
            assert f"port {port} of 127.0.0.1 is taken" in server.log
