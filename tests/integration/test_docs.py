"""The documentation tells the truth: its examples run, its files exist, its tables are complete.

A comment on the line before a fenced block marks it: `<!-- run -->` runs it, `<!-- file: NAME -->` puts it beside the
blocks that run. The database of a configuration becomes that of the test, and so does the broker.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from progressor import Node
from progressor import config as configuration
from tests.conftest import Database

TOP = Path(__file__).parents[2]
DOCUMENTS = sorted([TOP / "README.md", TOP / "CHANGELOG.md", *TOP.glob("docs/**/*.md"), *TOP.glob("deploy/*.md")])
CODE = sorted(
    path
    for folder in ("progressor", "processors", "scripts", "tests")
    for path in (TOP / folder).rglob("*")
    if path.suffix in {".py", ".sql", ".sh", ".thrift"}
)
DEMO_PATIENCE = 100
BROKER = "127.0.0.1:9092"
"""In examples: that of the tests."""
NO_DEFAULT = "\N{EN DASH}"

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    document: Path
    mark: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else None


def blocks(document: Path) -> list[Block]:
    found = _BLOCK.finditer(document.read_text())
    return [Block(document, each["mark"] or "", each["language"], each["text"]) for each in found]


def name(document: Path) -> str:
    return str(document.relative_to(TOP))


def prose(document: Path) -> str:
    return _BLOCK.sub("", document.read_text())


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
RUNNABLE = sorted({block.document for block in BLOCKS if block.mark == "run"})
CONFIGURATIONS = [block for block in BLOCKS if block.language == "toml" and "[progressor.namespaces" in block.text]


@pytest.fixture
def desk(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of the examples. What they import from there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PROGRESSOR_DB_PASSWORD", database.conninfo["password"])
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if (tmp_path / f"{module}.py").exists():
            del sys.modules[module]


def on(database: Database, toml: str) -> str:
    """A configuration with the addresses of this database."""
    given = {
        "host": database.conninfo["host"],
        "port": database.conninfo["port"],
        "database": database.conninfo["dbname"],
        "username": database.conninfo["user"],
    }
    lines = [f"{key} = {value!r}" for key, value in given.items()]
    section = "\n".join(["[databases.progressor_db]", *lines, 'password_env = "PROGRESSOR_DB_PASSWORD"', "", ""])
    changed, count = re.subn(r"\[databases\.progressor_db\]\n(?:[^\[\n].*\n|\n)*", lambda _: section, toml)
    assert count == 1
    return changed


@pytest.mark.parametrize("document", RUNNABLE, ids=name)
def test_the_examples_run(document: Path, desk: Path, database: Database, request: pytest.FixtureRequest) -> None:
    broker = request.getfixturevalue("kafka").endpoint if BROKER in document.read_text() else BROKER
    scope: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(document):
        text = block.text.replace(BROKER, broker)
        if block.file is not None:
            (desk / block.file).write_text(on(database, text) if block.language == "toml" else text)
        elif block.mark == "run":
            exec(compile(text, f"<an example in {name(document)}>", "exec"), scope)


def test_there_are_examples_that_run() -> None:
    assert TOP / "README.md" in RUNNABLE


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=lambda b: name(b.document))
def test_every_python_example_is_run_or_imported(block: Block) -> None:
    assert block.mark == "run" or (block.file or "").endswith(".py")


@pytest.mark.parametrize("block", CONFIGURATIONS, ids=lambda b: name(b.document))
def test_every_configuration_is_right(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROGRESSOR_DB_PASSWORD", "secret")
    path = tmp_path / "sys.toml"
    path.write_text(block.text)
    assert configuration.load(path).namespaces


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in _LINK.findall(prose(document)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_file_and_heading_that_the_code_refers_to_exists() -> None:
    for path in CODE:
        for document, heading in re.findall(r'(?<![\w/*.-])(?<![^"]")([\w./-]+\.md)(?:, "([^"]+)")?', path.read_text()):
            assert (TOP / document).exists(), (path, document)
            assert not heading or re.search(rf"^## {heading}$", (TOP / document).read_text(), re.MULTILINE), heading


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_make_target_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    wanted = set(re.findall(r"(?:`|^\$ )make ([a-z-]+)", document.read_text(), re.MULTILINE))
    assert wanted <= targets


def test_the_first_two_commands_of_the_readme_run_the_demonstration_and_the_tests() -> None:
    first = next(block for block in blocks(TOP / "README.md"))
    assert re.findall(r"^\$ (.+?) +#", first.text, re.MULTILINE) == ["make demo", "make test"]


def section(heading: str) -> str:
    """Of docs/operations.md."""
    return (TOP / "docs/operations.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_every_metric_is_explained_with_its_labels() -> None:
    registry = Node.from_config(TOP / "config/sys.toml").metrics.registry
    rows = [line.removeprefix("| ").split(" | ") for line in section("Metrics").splitlines() if "`progressor_" in line]
    told = {
        name: re.findall(r"`(\w+)`", labels) for names, labels, *_ in rows for name in re.findall(r"`(\w+)`", names)
    }
    assert set(told) == {f.name + ("_total" if f.type == "counter" else "") for f in registry.collect()}
    for collector, names in registry._collector_to_names.items():
        for name in told.keys() & set(names):
            assert told[name] == list(collector._labelnames), name  # type: ignore[attr-defined]


def test_what_one_sees_of_a_failure_is_what_the_code_says() -> None:
    code = "".join(path.read_text() for path in CODE if TOP / "progressor" in path.parents)
    failures = [line.split(" | ")[1] for line in section("Failure modes").splitlines() if line.startswith("| ")]
    problems = [line.split(" | ")[0] for line in section("Health").splitlines() if line.startswith("| ")]
    texts = [text for cell in failures + problems for text in re.findall(r"`([^`]+)`", cell)]
    assert texts
    for text in texts:
        for part in text.split("…"):
            assert text.startswith("progressor_") or part.strip(" :") in code, text


def test_every_dependency_has_a_reason() -> None:
    setup = ConfigParser()
    setup.read(TOP / "setup.cfg")
    needed = set(re.findall(r"^[\w-]+", setup["options"]["install_requires"], re.MULTILINE))
    table = (TOP / "docs/adr/0001-actors-and-supervision.md").read_text().partition("| dependency |")[2]
    rows = re.findall(r"^\| (`.+?`) \| \w", table, re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", " ".join(rows))) == needed


def test_every_key_of_the_configuration_is_explained() -> None:
    explained = set(re.findall(r"`[\w.]*?(\w+)`", section("Configuration")))
    for name_, part in vars(configuration).items():
        if not dataclasses.is_dataclass(part) or name_.startswith("_"):
            continue
        keys = {field.name for field in dataclasses.fields(part)}
        tables = {"name", "namespaces", "databases", "pools", "kafka", "listen", "parameters"}
        tables |= {"retry_policy", "processor", "notifier", "limits", "native", "modernizer"}
        assert keys - tables - explained <= {"storage"}, part


def told_defaults() -> Iterator[tuple[str, str]]:
    """The keys of the tables, whole, with what is told of each: TOML, a dash, or a word."""
    for line in section("Configuration").splitlines():
        if line.startswith("| `"):
            keys, defaults = line.removeprefix("| ").split(" | ")[:2]
            first, *others = re.findall(r"`([\w.…]+)`", keys)
            whole = [first, *(first.rpartition(".")[0] + key if key[0] == "." else key for key in others)]
            values = defaults.replace("`", "").split(", ")
            yield from zip(whole, values * len(whole) if len(values) == 1 else values, strict=True)


def found(config: configuration.Config, key: str) -> Any:
    """What a key of the tables became in a configuration, of which each part is called NAME."""
    names = re.sub(r"_(env|file)$", "", key).replace("kafka.clients", "kafka").replace("…", "parameters").split(".")
    owner: Any = config if hasattr(config, names[0]) else config.namespaces["NAME"]
    return reduce(lambda part, name: part[name] if isinstance(part, Mapping) else getattr(part, name), names, owner)


def test_every_default_is_told() -> None:
    namespace = {
        "processor": {"client": "echo"},
        "modernizer": {"client": "thrift", "format_version": 1},
        "notifier": {"client": "NAME", "topic": "t"},
    }
    pool = {"database": "NAME"}
    config = configuration.load(
        {
            "progressor": {"namespaces": {"NAME": namespace}},
            "databases": {"NAME": {"database": "d", "username": "u"}},
            "pools": {"NAME": pool, **{f"default_{name}pool": pool for name in ("", "scan_", "front_")}},
            "kafka": {"clients": {"NAME": {"endpoints": ["127.0.0.1:9092"]}}},
        }
    )
    needed = {"processor.client", "modernizer.client", "modernizer.format_version", "notifier.client", "notifier.topic"}
    needed |= {"databases.NAME.database", "databases.NAME.username", "pools.NAME.database"}
    needed |= {"kafka.clients.NAME.endpoints"}
    told = dict(told_defaults())
    assert needed <= {key for key, default in told.items() if default == NO_DEFAULT}
    for key, default in told.items():
        value = found(config, key)
        if default == NO_DEFAULT:
            assert key in needed or not value, key
        elif default == "host name":
            assert value == socket.gethostname()
        else:
            assert (list(value) if isinstance(value, frozenset) else value) == tomllib.loads(f"x = {default}")["x"], key


# The demonstration


def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", TOP / "scripts" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demonstration_runs() -> None:
    command = [sys.executable, str(TOP / "scripts" / "demo.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEMO_PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("All as expected")
    assert "\033" not in done.stdout, "colours are for terminals"


def test_the_demonstration_fails_when_something_is_not_as_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    module = demo()
    module.REFUSED = module.GOOD  # type: ignore[attr-defined]
    assert module.main([]) == 1
    assert "the status of refused: expected" in capsys.readouterr().err
