"""Figures to read: medians, targets, tables for a terminal and for Markdown, ratios to an earlier run.

A result is what the JSON holds: `machine`, `options`, and `rows`. Each row has `workload`, `reference` (transactions a
second of pgbench at that time), `runs` (the figures of each run), `figures` (their medians) and, if there are any,
`series` (of the soak), `note` (why there are no figures) and `profile` (of the last run).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

from bench.meter import Figures

Result: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Mapping[str, Any]
MISSING = "-"

COLUMNS: Mapping[str, str] = {
    "per_second": "ops/s",
    "ratio": "x pgbench",
    "p50": "p50 ms",
    "p99": "p99 ms",
    "max": "max ms",
    "engine_cpu": "engine s/1k",
    "postgres_cpu": "PG s/1k",
    "wal": "WAL B/op",
    "memory": "peak MB",
}
"""The figures of the main table and their headings; the others are listed below it."""

LEGEND = """\
x pgbench: ops/s / transactions a second of `pgbench -N -c 16 -j 2` just before. s/1k: CPU seconds for 1,000
operations; the engine's with its clients, which are threads of it, but those over TCP and HTTP. peak MB: memory of the
engine's process. Latencies of timers: how late they ran. long-history: at the longest history."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure of a workload should be at least (`>=`) or at most (`<=`)."""

    workload: str
    figure: str
    sign: str
    bound: float

    def met_by(self, value: float) -> bool:
        return value >= self.bound if self.sign == ">=" else value <= self.bound


def _targets() -> Iterator[Target]:
    for name in ("steps-50", "steps-200"):
        yield Target(name, "ratio", ">=", 2.5)
    yield Target("steps-500", "processes that did not advance", "<=", 0)
    yield Target("steps-500", "most / fewest", "<=", 1.5)
    yield Target("init-200", "per_second", ">=", 4000)
    yield Target("init-200", "p99", "<=", 150)
    yield Target("call-50", "per_second", ">=", 4000)
    yield Target("call-50", "p99", "<=", 40)
    yield Target("call-1", "p50", "<=", 3)
    for name in ("call-tcp-50", "call-woody-50"):
        yield Target(name, "per_second", ">=", 2000)
    yield Target("get-10", "per_second", ">=", 5000)
    yield Target("cached-get-50", "per_second", ">=", 100_000)
    yield Target("cached-get-50", "cached / uncached", ">=", 10)
    yield Target("cached-lag", "p99", "<=", 20)
    yield Target("cached-steps-50", "cached / without", ">=", 0.9)
    for name in ("timers-2000", "timers-20000"):
        yield Target(name, "p99", "<=", 200)
        yield Target(name, "max", "<=", 1000)
    yield Target("long-history", "slowest / at event 100", ">=", 0.9)
    yield Target("idle", "queries/s", "<=", 5)
    yield Target("idle", "engine % of a core", "<=", 1)
    for name in ("steps-200", "steps-500", "init-200", "call-50"):
        yield Target(name, "memory", "<=", 300)
    yield Target("processes", "two / one", ">=", 1.5)
    yield Target("soak", "last minute / first", ">=", 0.6)
    yield Target("soak", "memory", "<=", 300)


TARGETS = tuple(_targets())


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


# Arithmetic


def medians(runs: Sequence[Figures]) -> Figures:
    """Of each figure that some run has."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: median(run[name] for run in runs if name in run) for name in names}


def row(workload: str, reference: float, runs: Sequence[Figures], **more: Any) -> Row:
    figures = medians(runs)
    if "per_second" in figures and reference:
        figures["ratio"] = figures["per_second"] / reference
    return {"workload": workload, "reference": reference, "figures": figures, "runs": list(runs), **more}


# Tables


def tables(result: Result) -> Sequence[Table]:
    """Those that have something to say."""
    rows: Sequence[Row] = result["rows"]
    options = result["options"]
    title = f"Median of {options['runs']}, {options['seconds']:g} s each"
    if options["quick"]:
        title += " (quick: it runs, the figures mean nothing)"
    found = [
        Table(title, ["workload", "pgbench", *COLUMNS.values()], [_main(each) for each in rows]),
        Table("Other figures", ["workload", "figure", "value"], list(_others(rows))),
        Table("Targets", ["workload", "figure", "target", "measured", ""], list(_judged(rows))),
        *(_series(each) for each in rows if each.get("series")),
    ]
    return [table for table in found if table.rows]


def comparison(old: Result, new: Result) -> Table:
    """New / old, of the workloads that both have."""
    before = {each["workload"]: each for each in old["rows"]}
    rows = [_compared(before[each["workload"]], each) for each in new["rows"] if each["workload"] in before]
    return Table("New / old", ["workload", "pgbench", *COLUMNS.values()], rows)


def text(found: Iterable[Table]) -> str:
    return "\n\n".join(_text(table) for table in found)


def markdown(found: Iterable[Table]) -> str:
    return "\n\n".join(_markdown(table) for table in found)


def machine(result: Result) -> str:
    return ", ".join(str(value) for value in result["machine"].values())


def profiles(result: Result) -> str:
    return "\n\n".join(
        f"Profile of {each['workload']}\n" + "\n".join(each["profile"])
        for each in result["rows"]
        if each.get("profile")
    )


def _main(each: Row) -> list[str]:
    figures = each["figures"]
    name = each["workload"] + (f" ({each['note']})" if each.get("note") else "")
    return [name, number(each["reference"]), *(number(figures.get(column)) for column in COLUMNS)]


def _others(rows: Iterable[Row]) -> Iterator[list[str]]:
    for each in rows:
        for name, value in each["figures"].items():
            if name not in COLUMNS:
                yield [each["workload"], name, number(value)]


def _judged(rows: Iterable[Row]) -> Iterator[list[str]]:
    found = {each["workload"]: each["figures"] for each in rows}
    for target in TARGETS:
        if target.workload not in found:
            continue
        value = found[target.workload].get(target.figure)
        verdict = "not measured" if value is None else "met" if target.met_by(value) else "missed"
        name = COLUMNS.get(target.figure, target.figure)
        yield [target.workload, name, f"{target.sign} {number(target.bound)}", number(value), verdict]


def _series(each: Row) -> Table:
    header = list(each["series"][0])
    return Table(
        f"{each['workload']}, by minute", header, [[number(line[name]) for name in header] for line in each["series"]]
    )


def _compared(old: Row, new: Row) -> list[str]:
    def ratio(before: float | None, after: float | None) -> str:
        return MISSING if not before or after is None else f"{after / before:.2f}"

    figures = (ratio(old["figures"].get(name), new["figures"].get(name)) for name in COLUMNS)
    return [new["workload"], ratio(old["reference"], new["reference"]), *figures]


def number(value: float | None) -> str:
    """Three digits that count, and all before the point."""
    if value is None:
        return MISSING
    if value == int(value):
        return f"{int(value):,}"
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 1
        else f"{value:.3f}"
    )


def _text(table: Table) -> str:
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = _alignment(table)
    body = [
        "  ".join(p(cell, width) for p, cell, width in zip(pad, line, widths, strict=True)).rstrip() for line in lines
    ]
    return "\n".join([table.title, body[0], "-" * max(map(len, body)), *body[1:]])


def _markdown(table: Table) -> str:
    rule = ["---:" if pad is str.rjust else "---" for pad in _alignment(table)]
    lines = [table.header, rule, *table.rows]
    return "\n".join([f"**{table.title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def _alignment(table: Table) -> Sequence[Callable[[str, int], str]]:
    """Columns of numbers to the right, by what the first row holds."""
    return [str.rjust if _is_number(cell) else str.ljust for cell in table.rows[0]]


def _is_number(cell: str) -> bool:
    return cell == MISSING or cell.replace(",", "").replace(".", "").lstrip("-").isdigit()
