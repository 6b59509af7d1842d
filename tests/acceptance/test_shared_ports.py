"""`progressor-node --processes`: several processes serve one port, and one of them dies."""

from __future__ import annotations

import http.client
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from threading import Event

import pytest
from thrift.Thrift import TException

from progressor import Client, Health
from progressor.rpc import codec
from progressor.rpc.gen.msgpack.ttypes import Value
from progressor.rpc.gen.state_processing import Automaton
from progressor.rpc.gen.state_processing import ttypes as mg
from tests.acceptance.nodes import (
    FREE_PORT,
    NS,
    WOODY_IDS,
    Gates,
    NodeProcess,
    as_toml,
    automaton,
    config,
    is_alive,
    started,
)
from tests.conftest import Database
from tests.eventually import eventually

ECHO = "shared/echo"


@pytest.fixture
def gates(tmp_path: Path) -> Gates:
    return Gates(tmp_path)


@pytest.fixture
def starting(database: Database, tmp_path: Path) -> Iterator[NodeProcess]:
    settings = config(database.conninfo, tmp_path)
    settings["listen"]["thrift"] = FREE_PORT
    settings["progressor"]["namespaces"][ECHO] = {"processor": {"client": "echo"}, "worker_pool_size": 4}
    file = tmp_path / "sys.toml"
    file.write_text(as_toml(settings))
    with started(tmp_path / "log", "--config", file, "--processes", "2") as fleet:
        yield fleet


@pytest.fixture
def fleet(starting: NodeProcess) -> NodeProcess:
    starting.wait_ready()
    return starting


def machine(name: str, ns: str = ECHO) -> mg.MachineDescriptor:
    return mg.MachineDescriptor(ns, mg.Reference(id=name), mg.HistoryRange())


def connect(fleet: NodeProcess) -> http.client.HTTPConnection:
    """One that stays open."""
    connection = http.client.HTTPConnection(fleet.url.removeprefix("http://"), timeout=30)
    connection.connect()
    return connection


def ask(connection: http.client.HTTPConnection, name: str, ns: str = ECHO) -> None:
    call = codec.encode_message("Call", codec.CALL, 0, Automaton.Call_args(machine(name, ns), Value(bin=b"x")))
    connection.request("POST", "/v1/automaton", call, {"content-type": "application/x-thrift", **WOODY_IDS})


def is_answered(connection: http.client.HTTPConnection, name: str) -> bool:
    """Whether a call is answered over a connection that has been open before."""
    try:
        ask(connection, name)
        with connection.getresponse() as answer:
            answer.read()
            return answer.status == 200 and answer.headers["woody.error-class"] is None
    except (ConnectionError, http.client.HTTPException):
        return False


ESTABLISHED, LISTENING = "01", "0A"
"""How /proc/net/tcp writes states."""


def others(fleet: NodeProcess, pid: int, state: str = ESTABLISHED) -> set[int]:
    """The ports at the other end of the connections that a process has from the fleet's port."""
    sockets = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            sockets.add(str(file.readlink()))
    here = int(fleet.url.rpartition(":")[2])
    found = set()
    for _, local, remote, state_, *rest in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:]):
        if state_ == state and int(local.partition(":")[2], 16) == here and f"socket:[{rest[5]}]" in sockets:
            found.add(int(remote.partition(":")[2], 16))
    return found


def alive(fleet: NodeProcess) -> list[int]:
    return [pid for pid in fleet.engine_processes() if is_alive(pid)]


def own_port(connection: http.client.HTTPConnection) -> int:
    port: int = connection.sock.getsockname()[1]
    return port


def spread(fleet: NodeProcess, stack: ExitStack) -> list[http.client.HTTPConnection]:
    """Connections of which each process has accepted some."""
    connections: list[http.client.HTTPConnection] = []

    def is_spread() -> bool:
        connections.append(stack.enter_context(closing(connect(fleet))))
        ports = set(map(own_port, connections))
        return all(len(ports & others(fleet, pid)) > 1 for pid in alive(fleet))

    eventually(is_spread, timeout=30)
    return connections


def test_who_connects_before_a_process_is_there_is_served_when_it_is(starting: NodeProcess) -> None:
    eventually(lambda: "/metrics" in starting.errors, timeout=30)

    def start(name: str) -> None:
        with automaton(starting) as machines:
            machines.Start(ECHO, name, Value(bin=b"x"))

    with ThreadPoolExecutor(8) as callers:
        list(callers.map(start, map(str, range(8))))


def test_every_process_serves_the_automaton_and_speaks_for_all(fleet: NodeProcess) -> None:
    with automaton(fleet) as machines, ExitStack() as stack:
        machines.Start(ECHO, "m", Value(bin=b"x"))
        for connection in spread(fleet, stack):
            assert is_answered(connection, "m")
            connection.request("GET", "/health")
            with connection.getresponse() as answer:
                assert answer.status == 200
                assert b"process 0" in (body := answer.read())
                assert b"process 1" in body


def test_the_native_service_speaks_for_all_too(fleet: NodeProcess) -> None:
    for url in (fleet.url, fleet.thrift_url):
        with Client(url) as client:
            status, details = client.health_check([ECHO])
        assert status is Health.PASSING
        namespaces = {name: list(found["details"]) for name, found in details.items()}
        assert namespaces == {"process 0": [ECHO], "process 1": [ECHO]}


def test_a_process_that_is_killed_takes_only_its_own_connections_with_it(fleet: NodeProcess) -> None:
    with automaton(fleet) as machines, ExitStack() as stack:
        machines.Start(ECHO, "m", Value(bin=b"x"))
        connections = spread(fleet, stack)
        assert all(is_answered(connection, "m") for connection in connections)
        victim = fleet.engine_processes()[0]
        lost = others(fleet, victim)
        os.kill(victim, signal.SIGKILL)
        answered = {own_port(connection): is_answered(connection, "m") for connection in connections}
        assert answered == {port: port not in lost for port in answered}
        machines.Call(machine("m"), Value(bin=b"new connection"))
        eventually(lambda: len(alive(fleet)) == 2)
        assert all(is_answered(connection, "m") for connection in spread(fleet, stack))  # the new one serves too


def test_calls_while_a_process_is_killed_are_done_once_or_fail(fleet: NodeProcess) -> None:
    """An answer is durable, and one death costs a caller one answer."""
    over = Event()

    def keep_calling(name: str) -> tuple[int, int]:
        done = failed = 0
        with automaton(fleet) as machines:
            machines.Start(ECHO, name, Value(bin=b"x"))
            while not over.is_set():
                try:
                    machines.Call(machine(name), Value(bin=str(done).encode()))
                    done += 1
                except mg.MachineFailed:  # its step was in the hands of the dead
                    machines.SimpleRepair(ECHO, mg.Reference(id=name))
                except (
                    TException,
                    ConnectionError,
                    http.client.HTTPException,
                    EOFError,
                ):  # an empty body: woody's errors
                    failed += 1
        return done, failed

    with ThreadPoolExecutor(8) as callers:
        calls = {name: callers.submit(keep_calling, name) for name in map(str, range(8))}
        counted = fleet.metric("progressor_request_duration_ms_count")
        eventually(lambda: fleet.metric("progressor_request_duration_ms_count") > counted + 50)
        os.kill(fleet.engine_processes()[0], signal.SIGKILL)
        eventually(lambda: "starting again" in fleet.errors)
        eventually(lambda: fleet.get("/health").status == 200, timeout=30)
        over.set()
        with automaton(fleet) as machines:
            for name, call in calls.items():
                done, failed = call.result(60)
                history = [event.data.bin for event in machines.GetMachine(machine(name)).history]
                assert done > 0
                assert failed <= 1
                assert set(history) >= {str(n).encode() for n in range(done)}


def test_a_process_that_drains_leaves_new_connections_to_the_others(fleet: NodeProcess, gates: Gates) -> None:
    with automaton(fleet) as machines, closing(connect(fleet)) as held:
        machines.Start(ECHO, "m", Value(bin=b"x"))
        machines.Start(NS, "slow", Value(bin=b"x"))
        gates.hold("slow")
        ask(held, "slow", NS)
        gates.await_step("slow")
        (drained,) = (pid for pid in alive(fleet) if own_port(held) in others(fleet, pid))
        os.kill(drained, signal.SIGTERM)
        eventually(lambda: not others(fleet, drained, LISTENING))
        for _ in range(20):
            machines.Call(machine("m"), Value(bin=b"x"))
        gates.open("slow")
        with held.getresponse() as answer:
            assert answer.status == 200
        eventually(lambda: len(fleet.engine_processes()) == 3)


def test_a_stop_refuses_who_connects_and_answers_who_waits(fleet: NodeProcess, gates: Gates) -> None:
    with automaton(fleet) as machines, closing(connect(fleet)) as held:
        machines.Start(NS, "slow", Value(bin=b"x"))
        gates.hold("slow")
        ask(held, "slow", NS)
        gates.await_step("slow")
        fleet.send(signal.SIGTERM)
        eventually(lambda: fleet.refuses_connections)
        gates.open("slow")
        with held.getresponse() as answer:
            assert answer.status == 200
        assert fleet.wait() == 0
