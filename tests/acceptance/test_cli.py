"""The command `progressor` against a real node: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from progressor.storage.embedded import EmbeddedPostgres
from tests.acceptance.nodes import FREE_PORT, NS, ROOT, NodeProcess, as_toml, config, started
from tests.acceptance.test_remote_processor import free_port
from tests.conftest import Database, fresh_database
from tests.eventually import eventually

DOCUMENT = ROOT / "docs" / "cli.md"
READS = tuple(f"progressor {verb} default/echo" for verb in ("get", "trace", "list", "health", "top"))
TALK, ECHO = "cli/talk", "default/echo"
COMMAND = (sys.executable, "-W", "error", "-m", "progressor.cli")
new_id = (f"p{n}" for n in count(1)).__next__


@pytest.fixture(scope="module")
def node(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    directory = tmp_path_factory.mktemp("cli")
    with fresh_database(postgres_server) as database:
        settings = config(database.conninfo, directory)
        settings["progressor"]["node_name"] = "db-1"
        settings["listen"] |= {"thrift": FREE_PORT, "native": {"secret": "open-sesame"}}
        for name, client in ((TALK, "tests.acceptance.processors:talk"), (ECHO, "echo")):
            settings["progressor"]["namespaces"][name] = {"processor": {"client": client}, "worker_pool_size": 3}
        file = directory / "sys.toml"
        file.write_text(as_toml(settings))
        with started(directory / "log", "--config", file) as node:
            node.wait_ready()
            yield node
            assert "Traceback" not in node.errors


class Command:
    """`progressor` with the address of a node and its secret in the environment."""

    def __init__(self, url: str, **environment: str) -> None:
        self.environment = {"PROGRESSOR_URL": url, "PROGRESSOR_SECRET": "open-sesame", **environment}

    def __call__(self, *arguments: str, stdin: bytes = b"", status: int = 0) -> str:
        """What it prints on standard output."""
        return self.run(*arguments, stdin=stdin, status=status).stdout.decode()

    def error(self, *arguments: str, status: int, stdin: bytes = b"") -> str:
        done = self.run(*arguments, stdin=stdin, status=status)
        assert done.stdout == b""
        assert b"Traceback" not in done.stderr
        return done.stderr.decode()

    def json(self, *arguments: str, status: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", status=status))

    def run(self, *arguments: str, stdin: bytes, status: int) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=ROOT, env=self._env, input=stdin, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == status, done
        return done

    def redirected(self, how: str, *arguments: str, status: int) -> str:
        """What it says on standard error when a shell redirects its input or output."""
        done = subprocess.run(
            ["/bin/sh", "-c", f'"$@" {how}', "sh", *COMMAND, *arguments],
            cwd=ROOT, env=self._env, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (status, b""), done
        assert b"Traceback" not in done.stderr
        return done.stderr.decode()

    def begin(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*COMMAND, *arguments], cwd=ROOT, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    @property
    def _env(self) -> Mapping[str, str]:
        return {**os.environ, **self.environment}


@pytest.fixture(scope="module")
def progressor(node: NodeProcess) -> Command:
    return Command(node.url)


@pytest.mark.parametrize("port", ["http", "thrift"])
def test_a_process_from_its_init_to_its_removal(node: NodeProcess, port: str) -> None:
    progressor, name = Command(node.url if port == "http" else node.thrift_url), new_id()
    assert progressor("init", ECHO, name, "hello") == "hello\n"
    assert progressor("call", ECHO, name, "again", "--timeout", "20") == "again\n"
    assert progressor("call", ECHO, name) == "\n"
    int(progressor("notify", ECHO, name, "news"))
    shown = eventually(lambda: found if "news" in (found := progressor("get", ECHO, name)) else "")
    assert f"process     {name}\nstatus      running" in shown
    assert [line.split()[0] for line in shown.partition("EVENT")[2].splitlines()[1:]] == ["1", "2", "3"]
    assert "hello" in shown
    trace = progressor("trace", ECHO, name).splitlines()
    assert trace[0].split()[:3] == ["TASK", "TYPE", "STATUS"]
    assert [line.split()[1:3] for line in trace[1:3]] == [["init", "finished"], ["call", "finished"]]
    assert progressor("list", ECHO, "--prefix", name, "--status", "running").splitlines()[1].split()[0] == name
    assert progressor("remove", ECHO, name) == ""
    assert progressor.error("get", ECHO, name, status=1) == "progressor: process not found\n"


def test_ranges_of_histories(progressor: Command) -> None:
    name = new_id()
    progressor("init", TALK, name, '{"events": 5}')
    for arguments, ids in (
        (["--offset", "1", "--limit", "2"], [2, 3]),
        (["--backward", "--limit", "1"], [5]),
        (["--limit", "0"], []),
    ):
        found = progressor.json("get", TALK, name, *arguments)
        assert [event["event_id"] for event in found["history"]] == ids
    assert progressor("call", TALK, name, '{"echo": true}', "--offset", "3") == "4,5\n"


def test_bytes_from_files_and_standard_input_and_back(progressor: Command, tmp_path: Path) -> None:
    name, file = new_id(), tmp_path / "args"
    progressor("init", ECHO, name)
    file.write_bytes(b"\xff\0")
    assert progressor("call", ECHO, name, f"@{file}") == "base64:/wA=\n"
    assert progressor("call", ECHO, name, "base64:/wA=") == "base64:/wA=\n"
    assert progressor("call", ECHO, name, "-", stdin="línea\n".encode()) == "línea\n\n"
    assert progressor("call", ECHO, name, "text:@home") == "@home\n"
    assert progressor.json("call", ECHO, name, "base64:/wA=")["response"] == {"base64": "/wA="}
    assert progressor.json("call", ECHO, name, "x")["response"] == {"text": "x"}
    assert "\x1b" not in progressor("call", ECHO, name, "a\x1b[31mb")
    assert "\x1b" not in progressor("get", ECHO, name)


def test_a_terminal_that_shows_ascii_only(progressor: Command) -> None:
    ascii_only = Command(progressor.environment["PROGRESSOR_URL"], PYTHONIOENCODING="ascii")
    name = new_id()
    assert ascii_only("init", ECHO, name, "línea") == "l\\xednea\n"
    assert "l\\xednea" in ascii_only("get", ECHO, name)


def test_failure_and_repair(progressor: Command) -> None:
    name = new_id()
    progressor("init", TALK, name, '{"events": 1}')
    assert progressor.error("simple-repair", TALK, name, status=1) == "progressor: process is running\n"
    assert progressor.error("call", TALK, name, '{"fail": "no money"}', status=1) == "progressor: no money\n"
    assert "detail          no money\n" in progressor("get", TALK, name)
    assert "error: no money" in progressor("trace", TALK, name)
    error = json.loads(progressor.error("call", TALK, name, "--json", status=1))
    assert error == {"error": "ProcessInError", "message": "process is error"}
    assert progressor("repair", TALK, name, '{"echo": true}') == "1\n"
    progressor.error("call", TALK, name, '{"fail": "again"}', status=1)
    assert progressor("simple-repair", TALK, name) == ""


def test_requests_with_one_key_have_one_effect(progressor: Command) -> None:
    name = new_id()
    progressor("init", ECHO, name)
    first = progressor.json("call", ECHO, name, "x", "--idempotency-key", name)
    assert progressor.json("call", ECHO, name, "x", "--idempotency-key", name)["task_id"] == first["task_id"]
    assert progressor.json("get", ECHO, name)["last_event_id"] == 1
    assert "idempotency key" in progressor.error("call", ECHO, name, "y", "--idempotency-key", name, status=1)


def test_a_process_is_copied(progressor: Command, tmp_path: Path) -> None:
    name, copy, file = new_id(), new_id(), tmp_path / "process.json"
    progressor("init", TALK, name, '{"events": 2, "aux": "state"}')
    progressor("call", TALK, name, "base64:/w==")
    file.write_text(progressor("get", TALK, name, "--json"))
    progressor("put", TALK, copy, str(file), "--timer", "2100-01-01T00:00:00Z", "--remove")
    original, copied = (progressor.json("get", TALK, each) for each in (name, copy))
    for found in (original, copied):
        del found["process_id"]
        for event in found["history"]:
            del event["task_id"]
    assert copied == original
    assert [unit["task_type"] for unit in progressor.json("trace", TALK, copy)] == ["init", "remove"]
    assert progressor.error("put", TALK, copy, str(file), status=1) == "progressor: process already exists\n"


def test_pages(progressor: Command) -> None:
    prefix = new_id()
    for n in range(3):
        progressor("init", ECHO, f"{prefix} {n}")
    first = progressor.json("list", ECHO, "--prefix", f"{prefix} ", "--limit", "2")
    assert [item["process_id"] for item in first["items"]] == [f"{prefix} 0", f"{prefix} 1"]
    last = progressor.json("list", ECHO, "--prefix", f"{prefix} ", "--cursor", first["cursor"])
    assert ([item["process_id"] for item in last["items"]], last["cursor"]) == ([f"{prefix} 2"], None)
    assert progressor.json("list", ECHO, "--created-from", "2100-01-01T00:00:00Z")["items"] == []


def test_health(progressor: Command) -> None:
    assert progressor("health", ECHO, TALK).startswith("passing\n")
    details = progressor.json("health", ECHO)["details"][ECHO]
    assert (details["problems"], details["workers"]) == ([], 3)
    assert progressor.error("health", "no/where", status=1) == "progressor: namespace not found\n"


def test_top(progressor: Command) -> None:
    progressor("init", ECHO, new_id(), "x")
    look = progressor.json("top", ECHO, TALK, "--once")
    assert look["details"][ECHO]["totals"]["steps"] >= 1
    shown = progressor("top", ECHO, TALK, "--once").splitlines()
    assert shown[0].endswith("passing")
    assert [line.split()[0] for line in shown[3:5]] == [ECHO, TALK]
    assert shown[-2].startswith("LEASE OF")
    assert 0 < float(shown[-1].split()[-1]) <= 2


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What is started in the background of a script ignores SIGINT, and so does all that it starts, unless told."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_top_looks_again_and_again_until_it_is_interrupted(progressor: Command) -> None:
    with progressor.begin("top", ECHO, "--interval", "0.05") as live:
        assert live.stdout is not None
        assert live.stderr is not None
        looks = 0
        while looks < 3:
            looks += live.stdout.readline().startswith(b"NAMESPACE")
        live.send_signal(signal.SIGINT)
        live.stdout.read()
        assert (live.wait(), live.stderr.read()) == (130, b"")


def test_wrong_usage(progressor: Command) -> None:
    assert "invalid choice: 'destroy'" in progressor.error("destroy", ECHO, "p", status=2)
    assert "url: expected one of thrift://" in progressor.error("get", ECHO, "p", "--url", "ftp://x", status=2)


@pytest.mark.parametrize("scheme", ["http", "thrift"])
def test_nobody_there(scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{free_port()}"
    told = Command(url).error("get", "ns", "p", status=3)
    assert told == f"progressor: cannot connect to {url}: Connection refused\n"


def test_a_wrong_secret_and_one_in_a_file(progressor: Command, tmp_path: Path) -> None:
    wrong = Command(progressor.environment["PROGRESSOR_URL"], PROGRESSOR_SECRET="guess")
    assert wrong.error("health", ECHO, status=1) == "progressor: access denied: wrong secret\n"
    file = tmp_path / "secret"
    file.write_text("open-sesame\n")
    assert wrong("health", ECHO, "--secret-file", str(file)).startswith("passing")


@pytest.mark.parametrize("port", ["http", "thrift"])
def test_certificates(database: Database, certificates: Path, tmp_path: Path, port: str) -> None:
    settings = config(database.conninfo, tmp_path)
    files = {"certificate": "node.pem", "key": "node.key", "client_ca": "ca.pem"}
    settings["listen"] |= {"thrift": FREE_PORT, "tls": {key: str(certificates / name) for key, name in files.items()}}
    file = tmp_path / "sys.toml"
    file.write_text(as_toml(settings))
    ours = {"CA": "ca.pem", "CERTIFICATE": "client.pem", "KEY": "client.key"}
    with started(tmp_path / "log", "--config", file) as node:
        node.wait_ready()
        url = node.url if port == "http" else node.thrift_url
        known = Command(url, **{f"PROGRESSOR_{name}": str(certificates / file) for name, file in ours.items()})
        assert known("health", NS) == "passing\n"
        assert "certificate verify failed" in Command(url).error("health", NS, status=3)
        Command(url, PROGRESSOR_CA=str(certificates / "ca.pem")).error("health", NS, status=3)


def test_a_reader_that_has_enough(progressor: Command) -> None:
    name = new_id()
    progressor("init", TALK, name, '{"events": 3000}')
    with progressor.begin("get", TALK, name) as full:
        assert full.stdout is not None
        assert full.stderr is not None
        full.stdout.readline()
        full.stdout.close()
        assert (full.wait(), full.stderr.read()) == (141, b"")


@pytest.mark.parametrize("verb", ["get", "trace"])
def test_a_disk_that_is_full(progressor: Command, verb: str) -> None:
    name = new_id()
    progressor("init", TALK, name, '{"events": 3000}')
    for arguments in ([], ["--json"]):
        told = progressor.redirected("> /dev/full", verb, TALK, name, *arguments, status=1)
        text = "cannot write to standard output: No space left on device"
        assert (
            json.loads(told) == {"error": "OSError", "message": text} if arguments else told == f"progressor: {text}\n"
        )


def test_a_closed_output_or_input(progressor: Command, tmp_path: Path) -> None:
    name = new_id()
    told = progressor.redirected(">&-", "init", ECHO, name, status=1)
    assert told == "progressor: standard output is closed, nothing was done\n"
    assert progressor.error("get", ECHO, name, status=1) == "progressor: process not found\n"
    for verb in ("call", "put"):
        assert "standard input is closed" in progressor.redirected("<&-", verb, ECHO, name, "-", status=2)
        told = progressor.redirected(f"0> {tmp_path}/for-writing", verb, ECHO, name, "-", status=2)
        assert "cannot read standard input: Bad file descriptor" in told


def test_top_tells_errors_as_json(progressor: Command) -> None:
    with progressor.begin("top", "no/where", "--json", "--interval", "0.05") as live:
        assert live.stdout is not None
        assert live.stderr is not None
        for _ in range(2):
            assert json.loads(live.stderr.readline()) == {
                "error": "NamespaceNotFound",
                "message": "namespace not found",
            }
        live.kill()
        assert live.stdout.read() == b""


def test_the_answer_that_does_not_come(progressor: Command) -> None:
    told = progressor.error("init", TALK, new_id(), "--timeout", "0.000001", status=1)
    assert "the outcome is unknown" in told or "storage unavailable" in told


def test_the_examples_of_the_documentation(progressor: Command, tmp_path: Path) -> None:
    examples = re.findall(r"^<!-- console -->\n```console\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) == 4
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, **progressor.environment, "PATH": path}
    for example in re.split(r"^\$ ", "".join(examples), flags=re.MULTILINE)[1:]:
        command, _, expected = example.partition("\n")

        def is_shown(command: str = command, expected: str = expected) -> bool:
            done = subprocess.run(
                ["sh", "-c", f"{command} 2>&1"], cwd=tmp_path, env=environment, capture_output=True, check=False
            )
            return likeness(done.stdout.decode()) == likeness(expected)

        if command.startswith(READS):  # a notification takes its time
            eventually(is_shown)
        else:
            assert is_shown(), command


def likeness(text: str) -> str:
    """Without numbers, times and the width of columns."""
    return re.sub(r" +", " ", re.sub(r"\d+", "0", text)).strip()
