"""One Apache Kafka on 127.0.0.1: controller and broker in a process (KRaft), its data in a temporary directory.

The artifacts come from Maven Central once, into `build/kafka`. The server can be killed, frozen, and started again on
the same data and port; when the process that started it dies, it dies too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from progressor.storage.embedded import free_port

POM = Path(__file__).with_name("pom.xml")
JARS = Path(__file__).parents[2] / "build" / "kafka"
FETCH_ATTEMPTS, FETCH_TIMEOUT = 4, 300
START_TIMEOUT, STOP_TIMEOUT = 60.0, 20.0
CLUSTER_ID = "progressor-kafka-tests"  # 16 bytes in URL-safe base64

JAVA = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")

# The sessions are short, so that a broker that was killed may soon register again.
SETTINGS: Mapping[str, str | int] = {
    "process.roles": "broker,controller",
    "node.id": 1,
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": 1,
    "offsets.topic.num.partitions": 1,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "group.initial.rebalance.delay.ms": 0,
    "broker.heartbeat.interval.ms": 500,
    "broker.session.timeout.ms": 3000,
    "controlled.shutdown.enable": "false",
    "log.cleaner.enable": "false",
    "num.network.threads": 2,
    "num.io.threads": 2,
}


class KafkaNotFound(Exception):
    """There is no Kafka here; the text says what is missing."""


@cache
def jars() -> Path:
    """The directory of the artifacts, fetched when they are not there. Raises KafkaNotFound."""
    for command in ("java", "mvn"):
        if shutil.which(command) is None:
            raise KafkaNotFound(f"no `{command}`: run `apt install openjdk-17-jre-headless maven`")
    complete = JARS / "complete"
    if not complete.exists() or complete.stat().st_mtime < POM.stat().st_mtime:
        shutil.rmtree(JARS, ignore_errors=True)
        _fetch()
        complete.touch()
    return JARS


def _fetch() -> None:
    command = ["mvn", "-B", "-q", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={JARS}"]
    output = ""
    for _ in range(FETCH_ATTEMPTS):
        try:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                check=True, text=True, timeout=FETCH_TIMEOUT,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            output = error.output
        except subprocess.TimeoutExpired:
            output = f"no end after {FETCH_TIMEOUT} s"
        else:
            return
    raise KafkaNotFound(f"cannot fetch Kafka, mvn says:\n{output}")


class Broker:
    """A server that runs from the making to `close`.

    `users` with their passwords may log in at `login_endpoint`, by SASL's PLAIN, and do only what they are allowed to.
    Who comes to `endpoint` may do everything.
    """

    def __init__(self, users: Mapping[str, str] | None = None) -> None:
        """Raises KafkaNotFound."""
        self._jars = jars()
        self.home = Path(tempfile.mkdtemp(prefix="progressor-kafka-"))
        self.port, self._controller_port, self._login_port = free_port(), free_port(), free_port()
        settings = {**SETTINGS, **self._places(), **({} if users is None else self._logins(users))}
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        try:
            self._java("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", self._properties).wait()
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def login_endpoint(self) -> str:
        return f"127.0.0.1:{self._login_port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Again, after `stop` or `kill`. Returns when the broker answers."""
        self._process = self._java("kafka.Kafka", self._properties)
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Kafka does not start:\n{self._log.read_text()[-4000:]}")

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """A broker that stalls: no connection breaks, none is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        if hasattr(self, "_process"):
            self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def admin(self) -> AdminClient:
        """To be used in a `with`."""
        # Waiting for a server consists of failed attempts to connect: log_level.
        return AdminClient({"bootstrap.servers": self.endpoint, "log_level": 0})

    def create(self, topic: str, partitions: int = 1, **settings: str) -> None:
        """Returns when the topic can be written to."""
        new = NewTopic(topic, partitions, 1, config={name.replace("_", "."): value for name, value in settings.items()})
        with self.admin() as admin:
            admin.create_topics([new])[topic].result()
            while topic not in admin.list_topics().topics:
                time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with self.admin() as admin:
                return bool(admin.list_topics(timeout=1).brokers)
        except KafkaException:
            return False

    def _end(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _java(self, main: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        dying = DIES_WITH_US if shutil.which(DIES_WITH_US[0]) else ()
        command = [*dying, "java", *JAVA, "-cp", f"{self._jars}/*", main, *arguments]
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C on the terminal is not meant for it.
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, start_new_session=True
            )

    def _places(self) -> Mapping[str, str]:
        controller = f"127.0.0.1:{self._controller_port}"
        return {
            "listeners": f"PLAINTEXT://{self.endpoint},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.endpoint}",
            "controller.quorum.voters": f"1@{controller}",
            "log.dirs": str(self.home / "data"),
        }

    def _logins(self, users: Mapping[str, str]) -> Mapping[str, str]:
        login = f",SASL_PLAINTEXT://{self.login_endpoint}"
        known = " ".join(f'user_{user}="{password}"' for user, password in users.items())
        return {
            **{name: self._places()[name] + login for name in ("listeners", "advertised.listeners")},
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl_plaintext.plain.sasl.jaas.config":
                f"org.apache.kafka.common.security.plain.PlainLoginModule required {known};",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }  # fmt: skip

    @property
    def _properties(self) -> Path:
        return self.home / "server.properties"

    @property
    def _log(self) -> Path:
        return self.home / "kafka.log"
