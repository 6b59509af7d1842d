"""The benchmark runs from end to end. What it measures in two seconds means nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_quick_run_measures_and_writes_its_result(tmp_path: Path) -> None:
    result = tmp_path / "deep" / "bench.json"
    command = [sys.executable, "scripts/bench", "--quick", "--seconds", "1", "--only", "steps-50,steps-200,call"]
    done = subprocess.run(
        [*command, "--json", str(result), "--markdown", str(tmp_path / "bench.md")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row["workload"]: row for row in json.loads(result.read_text())["rows"]}
    assert list(rows) == ["steps-50", "steps-200", "call-50", "call-1"]
    for row in rows.values():
        assert row["reference"] > 0
        figures = row["figures"]
        assert all(figures[name] > 0 for name in ("per_second", "ratio", "engine_cpu", "postgres_cpu", "wal", "memory"))
    assert rows["steps-50"]["figures"]["processes that did not advance"] == 0
    assert 0 < rows["call-1"]["figures"]["p50"] <= rows["call-1"]["figures"]["max"]
    assert "steps-200" in done.stdout
    assert (tmp_path / "bench.md").read_text().count("| steps-200 |") > 1


def test_an_unknown_workload_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/bench", "--only", "dance"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "no workload dance" in done.stderr
