"""The command line: chooses the workloads, runs each a few times beside pgbench, and reports."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from bench import report
from bench.job import Job
from bench.server import BenchServer
from bench.workloads import WORKLOADS, Workload, chosen

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path("build/bench.json")
FAILED = "failed"
REFERENCE_SECONDS = 5.0
PATIENCE = 900.0
"""Seconds beyond what is measured that a run may take."""


Answer: TypeAlias = dict[str, Any]
"""Of a run: its `figures`, and perhaps a `series`, a `profile`, or a `note` that says why there are no figures."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.show:
        _print(json.loads(options.show.read_text()), options)
        return 0
    try:
        workloads = chosen(options.only)
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    result = _measure(workloads, options)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    _print(result, options)
    return 1 if any(row.get("note", "").startswith(FAILED) for row in result["rows"]) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measures Progressor on a PostgreSQL of its own.")
    parser.add_argument("--only", metavar="NAME,...", type=_names, default=[], help=f"of: {', '.join(WORKLOADS)}")
    parser.add_argument("--runs", type=int, help="of which the median counts; default: 3")
    parser.add_argument("--seconds", type=float, help="that each run measures; default: 20")
    parser.add_argument("--quick", action="store_true", help="one short run with small sizes: does it work?")
    parser.add_argument("--soak-minutes", type=float, default=10, metavar="N", help="of the workload soak; default: 10")
    parser.add_argument(
        "--profile", action="store_true", help="show where the time of the last run goes; it costs some"
    )
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE", help=f"the result; default: {RESULT}")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables for docs/performance.md")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="show the ratios to an earlier result")
    parser.add_argument("--show", type=Path, metavar="FILE", help="run nothing, show an earlier result")
    parser.add_argument("--postgres-bin", metavar="DIR",
                        default=os.environ.get("PROGRESSOR_POSTGRES_BIN") or None,
                        help="its binaries: a directory, `bundled` or `bundled:18`")  # fmt: skip
    options = parser.parse_args(arguments)
    options.runs = options.runs or (1 if options.quick else 3)
    options.seconds = options.seconds or (2.0 if options.quick else 20.0)
    return options


def _names(text: str) -> Sequence[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print(result: report.Result, options: argparse.Namespace) -> None:
    tables = [*report.tables(result)]
    if options.compare:
        tables.append(report.comparison(json.loads(options.compare.read_text()), result))
    print(f"{report.machine(result)}\n\n{report.text(tables)}\n\n{report.LEGEND}")
    if profiles := report.profiles(result):
        print(f"\n{profiles}")
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(f"{report.machine(result)}\n\n{report.markdown(tables)}\n\n{report.LEGEND}\n")


# Measuring


def _measure(workloads: Sequence[Workload], options: argparse.Namespace) -> dict[str, Any]:
    with BenchServer(options.postgres_bin, scale=1 if options.quick else 10) as server:
        return {
            "machine": _machine(server),
            "options": {"runs": options.runs, "seconds": options.seconds, "quick": options.quick},
            "rows": list(_rows(server, workloads, options)),
        }


def _rows(server: BenchServer, workloads: Sequence[Workload], options: argparse.Namespace) -> Iterator[report.Row]:
    """Each beside a reference of the same minutes; a quick run has one for all."""
    reference = server.reference(1) if options.quick else None
    for workload in workloads:
        yield _row(server, workload, reference or server.reference(REFERENCE_SECONDS), options)


def _row(server: BenchServer, workload: Workload, reference: float, options: argparse.Namespace) -> report.Row:
    _say(f"{workload.name}: pgbench {reference:,.0f}/s")
    answers = list(_answers(server, workload, options))
    _say("\n")
    more = {name: answer[name] for answer in answers for name in ("note", "series", "profile") if answer.get(name)}
    return report.row(workload.name, reference, [answer["figures"] for answer in answers if answer["figures"]], **more)


def _answers(server: BenchServer, workload: Workload, options: argparse.Namespace) -> Iterator[Answer]:
    """Of each run; no more after one that has no figures."""
    with ExitStack() as kept:
        database = kept.enter_context(server.database()) if workload.keeps_database else None
        for _ in range(1 if workload.is_long else options.runs):
            answer = _run(server, workload, database, options)
            _say(f", {answer.get('note') or _rate(answer)}")
            yield answer
            if not answer["figures"]:
                return


def _run(
    server: BenchServer, workload: Workload, database: Mapping[str, Any] | None, options: argparse.Namespace
) -> Answer:
    with ExitStack() as own:
        conninfo = own.enter_context(server.database()) if database is None else database
        server.checkpoint()
        job = Job(
            workload.name,
            conninfo,
            server.postgres.conninfo,
            server.postgres.pid,
            options.seconds,
            options.quick,
            options.profile,
            options.soak_minutes,
        )
        return _answer(job)


def _answer(job: Job) -> Answer:
    """Of a process in a session of its own, so that nothing of it survives: a workload may start nodes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    command = [sys.executable, "-m", "bench.engine"]
    patience = PATIENCE + 10 * job.seconds + 60 * job.soak_minutes
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(job.json, patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return _failed(f"no answer after {patience:.0f} s")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        return _failed(f"status {process.returncode}")
    answer: Answer = json.loads(output)
    return answer


def _failed(reason: str) -> Answer:
    return {"figures": {}, "note": f"{FAILED}: {reason}"}


def _rate(answer: Answer) -> str:
    return f"{answer['figures']['per_second']:,.0f}/s" if "per_second" in answer["figures"] else "done"


def _machine(server: BenchServer) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "cpu": f"{os.cpu_count()} x {_cpu_model()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "disk": _file_system(server.postgres.home),
        "python": f"Python {platform.python_version()}",
        "postgres": f"PostgreSQL {server.version}",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(path: Path) -> str:
    """Its type: on tmpfs a commit costs nothing, and the figures are worth as much."""
    found = {fields[1]: fields[2] for fields in map(str.split, Path("/proc/mounts").read_text().splitlines())}
    return next(found[str(place)] for place in (path, *path.parents) if str(place) in found)


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
