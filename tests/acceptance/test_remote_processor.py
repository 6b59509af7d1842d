"""Processors in another process: a counter whose processor dies and comes back, and what a bad one makes of a step."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from progressor import ConfigError, Event, Intent, ProcessorError, Remove, SetTimer, StepRequest, UnsetTimer, now, terms
from progressor import TransientError as Transient
from progressor.model import Process, TaskType
from progressor.processor import resolve
from progressor.rpc import codec, woody
from progressor.rpc.gen.base.ttypes import Timer
from progressor.rpc.gen.msgpack.ttypes import Value
from progressor.rpc.gen.state_processing import Processor as Generated
from progressor.rpc.gen.state_processing import ttypes as mg
from progressor.rpc.processor_server import serving
from progressor.rpc.remote import _action as remote_action
from tests.acceptance.nodes import FREE_PORT, WOODY_IDS, NodeProcess, as_toml, automaton, config, started
from tests.acceptance.slow import dripping
from tests.conftest import Database
from tests.eventually import eventually

NS = "payments/remote"


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def processor_process(processor: str, port: int, **options: Any) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "progressor.rpc.processor_server", processor, "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen([*command, "--options", json.dumps(options)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"http://127.0.0.1:{port}/v1/processor\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def node(port: int, database: Database, tmp_path: Any) -> Iterator[NodeProcess]:
    settings = config(database.conninfo, tmp_path, http=FREE_PORT)
    options = {"url": f"http://127.0.0.1:{port}/v1/processor", "timeout": 5}
    settings["progressor"]["namespaces"][NS] = {
        "processor": {"client": "thrift", "options": options},
        "worker_pool_size": 2,
        "task_scan_timeout": 0.5,
        "retry_policy": {"initial_timeout": 0.1, "backoff_coefficient": 1, "max_attempts": 1000},
    }
    file = tmp_path / "sys.toml"
    file.write_text(as_toml(settings))
    with started(tmp_path / "log", "--config", file) as node:
        node.wait_ready()
        yield node


def test_a_counter_whose_processor_dies_and_comes_back(node: NodeProcess, port: int) -> None:
    with automaton(node) as client:
        machine = mg.MachineDescriptor(NS, mg.Reference(id="p1"), mg.HistoryRange())

        def count() -> int:
            return int(client.GetMachine(machine).aux_state.data.bin)

        def retries() -> float:
            found = [
                line for line in node.get("/metrics").body.splitlines() if line.startswith("progressor_retries_total")
            ]
            return sum(float(line.split()[-1]) for line in found)

        with processor_process("counter", port, tick=0.1) as processor:
            client.Start(NS, "p1", Value(bin=b"7"))
            eventually(lambda: count() > 7)
            processor.kill()
            processor.wait()
        eventually(lambda: retries() > 0)
        assert client.GetMachine(machine).status.working is not None
        before = count()
        with processor_process("counter", port, tick=0.1):
            eventually(lambda: count() > before)


def test_a_call_of_a_processor_has_the_deadline_of_its_step_and_the_trace_of_its_cause(
    database: Database, tmp_path: Path
) -> None:
    settings = config(database.conninfo, tmp_path)
    with serving("tests.acceptance.test_remote_processor:step") as url:
        for name, timeout, step_timeout in (("patient", 5, 60), ("hurried", 60, 3)):
            settings["progressor"]["namespaces"][name] = {
                "processor": {"client": "thrift", "options": {"url": url, "timeout": timeout}},
                "process_step_timeout": step_timeout,
            }
        file = tmp_path / "sys.toml"
        file.write_text(as_toml(settings))
        headers = {"woody.meta.user-identity.id": "me", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
        with started(tmp_path / "log", "--config", file) as node:
            node.wait_ready()
            with automaton(node, **headers) as client:
                for name, most in (("patient", 5), ("hurried", 3)):
                    machine = mg.MachineDescriptor(name, mg.Reference(id="p"), mg.HistoryRange())
                    client.Start(name, "p", Value(bin=b""))
                    assert 0 < float(client.Call(machine, Value(bin=b"seconds left")).bin) <= most
                    cause = woody.from_context(client.Call(machine, Value(bin=b"context")).bin)
                    assert (cause.trace_id, cause.meta) == (WOODY_IDS["woody.trace-id"], {"user-identity.id": "me"})
                    assert cause.traceparent == headers["traceparent"]


# One step at a time, without a node


def step(request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:  # noqa: C901 - one for each case
    """What the tests serve: does what its arguments name."""
    told = request.args.decode()
    match told:
        case "events":
            return Intent([Event(b"1", {"format_version": 3}), Event(b"2")], aux_state=b"aux", response=b"yes")
        case "timer":
            return Intent(action=SetTimer(now()))
        case "remove later":
            return Intent(action=SetTimer(now(), remove=True))
        case "unset":
            return Intent(action=UnsetTimer())
        case "remove":
            return Intent(action=Remove())
        case "history":
            seen = ",".join(event.payload.decode() for event in request.process.history)
            return Intent(response=f"{seen} {(request.process.aux_state or b'').decode()}".encode())
        case "context":
            return Intent(response=context)
        case "seconds left":
            assert request.deadline is not None
            return Intent(response=str((request.deadline - now()).total_seconds()).encode())
        case "request":
            return Intent(response=f"{request.task_id} {request.attempt} {request.process.metadata}".encode())
        case "metadata":
            return Intent(metadata={"status": "paid"})
        case "transient":
            raise Transient("later")
        case "business":
            raise ProcessorError("never")
    return Intent(response=request.task_type.encode())


@pytest.fixture(scope="module")
def remote() -> Iterator[Callable[..., Intent]]:
    with serving("tests.acceptance.test_remote_processor:step") as url:
        processor = resolve("thrift", {"url": url, "timeout": 5})

        def run(
            args: bytes, task: TaskType = TaskType.CALL, process: Process | None = None, context: bytes = b""
        ) -> Intent:
            return processor(StepRequest(task, args, process or Process("p"), "ns"), context)

        yield run


def test_results(remote: Callable[..., Intent]) -> None:
    assert remote(b"events") == Intent([Event(b"1", {"format_version": 3}), Event(b"2")], b"aux", None, b"yes")
    timer, later = remote(b"timer").action, remote(b"remove later").action
    assert isinstance(timer, SetTimer)
    assert isinstance(later, SetTimer)
    assert (timer.remove, later.remove) == (False, True)
    assert abs((timer.at - now()).total_seconds()) < 60
    assert [remote(args).action for args in (b"unset", b"remove", b"")] == [UnsetTimer(), Remove(), None]


def test_what_the_other_side_sees(remote: Callable[..., Intent]) -> None:
    events = [Event(b"a", event_id=1, timestamp=now()), Event(b"b", {"format": 1}, 2, now())]
    assert remote(b"history", process=Process("p", aux_state=b"state", history=events)).response == b"a,b state"
    assert remote(b"history").response == b" "
    for task in (TaskType.CALL, TaskType.REPAIR):
        assert remote(b"", task).response == task.encode()
    for task in (TaskType.INIT, TaskType.NOTIFY, TaskType.TIMEOUT):
        assert remote(b"", task).response is None
    assert b"woody" in (remote(b"context").response or b"")


@pytest.mark.parametrize("task", [TaskType.INIT, TaskType.CALL, TaskType.REPAIR, TaskType.NOTIFY])
def test_errors(remote: Callable[..., Intent], task: TaskType) -> None:
    with pytest.raises(Transient, match="resource unavailable: later"):
        remote(b"transient", task)
    with pytest.raises(ProcessorError, match="never") as failed:
        remote(b"business", task)
    assert not isinstance(failed.value, Transient)


def test_what_the_protocol_does_not_carry(remote: Callable[..., Intent]) -> None:
    assert remote(b"request", process=Process("p", metadata={"a": 1})).response == b"0 1 None"
    with pytest.raises(ProcessorError, match=r"result unexpected: .* leave Intent\.metadata out"):
        remote(b"metadata")


def test_a_context_that_http_cannot_carry_whole_breaks_nothing(remote: Callable[..., Intent]) -> None:
    user = "Иван".encode()

    def told(meta: dict[str, terms.Plain]) -> Mapping[str, str]:
        context = terms.encode({"woody": [1, ["span", "trace", "parent"], meta], "otel": []})
        return woody.from_context(remote(b"context", context=context).response or b"").meta

    assert told({"user": user.decode("latin-1"), "a b": "x", "c": "x\r\ny"}) == {"user": user.decode("latin-1")}


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "progressor.rpc.processor_server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_server_that_cannot_listen_has_failed(port: int) -> None:
    with closing(socket.create_server(("127.0.0.1", port))):
        done = serve("echo", "--listen", f"127.0.0.1:{port}")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"processor_server: cannot listen on 127.0.0.1:{port}: " in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [["nobody:Nothing"], ["echo", "--listen", "x"], ["echo", "--listen", "a..b:1"], ["echo", "--options", "[]"]],
)
def test_a_server_that_is_used_wrongly_says_so(wrong: list[str]) -> None:
    done = serve(*wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert wrong[-1] in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "beginning", [b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"]
)
def test_an_answer_that_never_ends(beginning: bytes) -> None:
    with dripping(beginning) as port, pytest.raises(Transient, match="result unknown"):
        resolve("thrift", {"url": f"http://127.0.0.1:{port}/", "timeout": 0.5})(
            StepRequest(TaskType.CALL, b"", Process("p"), "ns"), b""
        )


def reply(success: bool = True, seqid: int = 0) -> bytes:
    result = mg.CallResult(Value(bin=b""), mg.MachineStateChange(), mg.ComplexAction()) if success else None
    return codec.encode_message("ProcessCall", codec.REPLY, seqid, Generated.ProcessCall_result(result))


ANSWERS: Mapping[str, tuple[int, Mapping[str, str], bytes, type[ProcessorError] | None]] = {
    "good": (200, {}, reply(), None),
    "garbage": (200, {}, b"garbage", ProcessorError),
    "empty": (200, {}, b"", ProcessorError),
    "sequence": (200, {}, reply(seqid=5), ProcessorError),
    "no result": (200, {}, reply(success=False), ProcessorError),
    "trailing": (200, {}, reply() + b"\0", ProcessorError),
    "500": (500, {}, b"", ProcessorError),
    "302": (302, {"location": "/"}, b"", ProcessorError),
    "503": (503, {}, b"", Transient),
    "504": (504, {"woody.error-class": "Result Unexpected"}, b"", Transient),
    "502": (502, {}, b"", ProcessorError),
    "502 unknown": (502, {"woody.error-class": "result unknown"}, b"", Transient),
    "502 unavailable": (502, {"woody.error-class": "Resource Unavailable"}, b"", Transient),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_answers_mean(case: str) -> None:
    status, headers, body, expected = ANSWERS[case]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["accept"] == self.headers["content-type"] == "application/x-thrift"
            assert self.headers["woody.deadline"].endswith("Z")
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        # The number is how often it looks whether it should end.
        Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        processor = resolve("thrift", {"url": f"http://127.0.0.1:{server.server_port}/", "timeout": 5})
        request = StepRequest(TaskType.CALL, b"", Process("p"), "ns")
        if expected is None:
            assert processor(request, b"").response == b""
        else:
            with pytest.raises(ProcessorError) as failed:
                processor(request, b"")
            assert type(failed.value) is expected
        server.shutdown()


def test_a_timer_that_is_no_time_is_a_business_error_that_shows_it() -> None:
    timer = mg.TimerAction(set_timer=mg.SetTimerAction(timer=Timer(deadline="soon")))
    with pytest.raises(ProcessorError, match=r"^result unexpected: bad timer: no RFC 3339 time: soon$"):
        remote_action(mg.ComplexAction(timer=timer))


def test_a_step_without_time_left_is_not_called() -> None:
    request = StepRequest(TaskType.CALL, b"", Process("p"), "ns", deadline=now())
    with pytest.raises(Transient, match="resource unavailable: deadline reached"):
        resolve("thrift", {"url": "http://127.0.0.1:1/"})(request, b"")


def test_nobody_there_and_nobody_answering(port: int) -> None:
    request = StepRequest(TaskType.CALL, b"", Process("p"), "ns")
    options = {"url": f"http://127.0.0.1:{port}/", "timeout": 0.3}
    with pytest.raises(Transient, match="resource unavailable"):
        resolve("thrift", options)(request, b"")
    with closing(socket.create_server(("127.0.0.1", port))), pytest.raises(Transient, match="result unknown"):
        resolve("thrift", options)(request, b"")


@pytest.mark.parametrize(
    "options",
    [{}, {"url": "ftp://x"}, {"url": "http://x", "timeout": "1"}, {"url": "http://x", "dialect": "x"}, {"URL": ""}],
)
def test_wrong_options_are_named(options: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"url|timeout|dialect"):
        resolve("thrift", options)
