"""The arithmetic of the benchmark, its tables, and the judgement of the targets."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from bench import report
from bench.load import latency_figures, percentile
from bench.meter import Period, Reading
from bench.nodes import toml
from bench.workloads import WORKLOADS, chosen


def result(*rows: report.Row) -> dict[str, Any]:
    return {
        "machine": {"cpu": "2 x a processor", "python": "Python 3"},
        "options": {"runs": 3, "seconds": 20.0, "quick": False},
        "rows": rows,
    }


def table(title: str, *rows: report.Row) -> report.Table:
    (found,) = [each for each in report.tables(result(*rows)) if each.title.startswith(title)]
    return found


# Arithmetic


def test_the_median_is_of_each_figure() -> None:
    assert report.medians([{"p50": 1, "p99": 9}, {"p50": 2, "p99": 8}, {"p50": 9, "p99": 1}]) == {"p50": 2, "p99": 8}


def test_a_figure_that_a_run_does_not_have_is_the_median_of_the_others() -> None:
    assert report.medians([{"a": 1}, {"b": 4}, {"b": 6}]) == {"a": 1, "b": 5}


def test_the_ratio_is_that_of_the_median() -> None:
    row = report.row("w", 4000, [{"per_second": rate} for rate in (8000.0, 10_000.0, 30_000.0)])
    assert row["figures"] == {"per_second": 10_000, "ratio": 2.5}
    assert len(row["runs"]) == 3


def test_without_operations_there_is_no_ratio() -> None:
    assert report.row("w", 4000, [{"memory": 50.0}])["figures"] == {"memory": 50}


@pytest.mark.parametrize(("percent", "value"), [(1, 1), (50, 50), (99, 99), (100, 100)])
def test_percentiles_of_the_numbers_to_a_hundred(percent: float, value: float) -> None:
    assert percentile(range(1, 101), percent) == value


def test_latencies_are_milliseconds() -> None:
    assert latency_figures([0.003, 0.001, 0.002]) == {"p50": 2, "p99": 3, "max": 3}
    assert latency_figures([]) == {}


def test_costs_are_those_of_an_operation() -> None:
    period = Period(Reading(10, 1, 2, 1000, 5), Reading(20, 3, 3, 5000, 25), memory=60)
    assert period.costs(2000) == {"engine_cpu": 1, "postgres_cpu": 0.5, "wal": 2, "memory": 60}
    assert period.costs(0) == {"memory": 60}


# Targets


@pytest.mark.parametrize(("rate", "verdict"), [(10_000, "met"), (9_999, "missed")])
def test_a_ratio_is_judged(rate: float, verdict: str) -> None:
    targets = table("Targets", report.row("steps-50", 4000, [{"per_second": rate}]))
    assert targets.rows == [["steps-50", "x pgbench", ">= 2.50", "2.50", verdict]]


def test_what_is_missing_was_not_measured() -> None:
    targets = table("Targets", report.row("processes", 4000, [], note="not available"))
    assert targets.rows == [["processes", "two / one", ">= 1.50", "-", "not measured"]]


def test_each_target_is_of_a_workload() -> None:
    assert {target.workload for target in report.TARGETS} <= set(WORKLOADS)


# Tables


def full_row(workload: str = "timers-20000", **more: Any) -> report.Row:
    figures = dict.fromkeys(report.COLUMNS, 12345.678) | {"inits/s meanwhile": 1.5}
    return report.row(workload, 4321.0, [figures], **more)


def test_the_tables_fit_on_a_screen() -> None:
    found = report.tables(result(*(full_row(name) for name in WORKLOADS)))
    assert max(map(len, report.text(found).splitlines())) <= 120
    assert max(map(len, report.LEGEND.splitlines())) <= 120


def test_figures_without_a_column_are_listed() -> None:
    assert table("Other figures", full_row()).rows == [["timers-20000", "inits/s meanwhile", "1.50"]]


def test_notes_stand_beside_the_name() -> None:
    rows = table("Median", report.row("processes", 4000, [], note="not available: why")).rows
    assert rows[0][:3] == ["processes (not available: why)", "4,000", "-"]


def test_the_minutes_of_a_soak_have_a_table() -> None:
    series = table("soak, by minute", full_row("soak", series=[{"minute": 1.0, "steps/s": 2.5}]))
    assert (series.header, series.rows) == (["minute", "steps/s"], [["1", "2.50"]])


def test_markdown_has_a_rule_that_aligns_numbers() -> None:
    text = report.markdown([report.Table("T", ["name", "n"], [["a", "1,000"]])])
    assert text.splitlines() == ["**T**", "", "| name | n |", "| --- | ---: |", "| a | 1,000 |"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (3.0, "3"), (12345.6, "12,346"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123")],
)
def test_numbers_have_three_digits(value: float | None, shown: str) -> None:
    assert report.number(value) == shown


# Comparison


def test_a_comparison_shows_ratios_of_what_both_have() -> None:
    old = result(
        report.row("call-50", 4000, [{"per_second": 1000, "p99": 100, "wal": 0}]),
        report.row("idle", 4000, [{"memory": 50}]),
    )
    new = result(
        report.row("call-50", 2000, [{"per_second": 1500, "p99": 20, "wal": 7}]),
        report.row("init-50", 4000, [{"per_second": 1}]),
    )
    compared = report.comparison(old, new)
    (row,) = compared.rows
    assert {name: cell for name, cell in zip(compared.header, row, strict=True) if cell != "-"} == {
        "workload": "call-50",
        "pgbench": "0.50",
        "ops/s": "1.50",
        "x pgbench": "3.00",
        "p99 ms": "0.20",
    }


# Choice


def test_groups_and_names_choose_workloads() -> None:
    assert [each.name for each in chosen(["call", "idle", "steps-50"])] == ["steps-50", "call-50", "call-1", "idle"]


def test_the_soak_is_run_only_when_asked_for() -> None:
    assert {each.name for each in chosen([])} == set(WORKLOADS) - {"soak"}
    assert [each.name for each in chosen(["soak"])] == ["soak"]


def test_an_unknown_workload_is_named() -> None:
    with pytest.raises(LookupError, match="no workload dance; there are steps-10"):
        chosen(["dance"])


def test_a_configuration_becomes_a_file() -> None:
    config = {"a": {"b/c": {"text": 'q"uoted', "number": 1.5, "list": ["x"], "yes": True}}, "empty": {}}
    assert tomllib.loads(toml(config)) == config
