"""The benchmark: its arithmetic on invented numbers, and that it runs and tells what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import chart
import pytest
import workers

ROOT = Path(__file__).parents[1]


def side(*times):
    """What a side measured: the median of three is the second."""
    return {"median_s": sorted(times)[1], "times": list(times)}


def test_fastest_peer_counts():
    peers = {"eager": side(3.0, 9.0, 4.0), "compiled": side(2.0, 6.0, 3.0)}
    found = workers.compare(side(1.0, 4.0, 1.0), peers)
    assert found == {"best_peer": "compiled", "ratio": 2.0, "ratio_range": [1.5, 3.0]}


def test_ratio_is_blind_to_a_slow_moment():
    """A round that is slower for both sides changes nothing."""
    steady, disturbed = (workers.compare(side(1.0, a, 1.0), {"peer": side(3.0, 3 * a, 3.0)}) for a in (1.0, 50.0))
    assert steady["ratio"] == disturbed["ratio"] == 3.0


def test_no_peer():
    assert workers.compare(side(1.0, 1.0, 1.0), {})["ratio"] is None


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_exponent(power):
    x = [1, 2, 4, 8]
    y = [100.0, *(3 * value**power for value in x[1:])]  # the first is an overhead, and does not count
    assert workers.exponent(x, y) == pytest.approx(power)


def test_exponent_needs_points():
    with pytest.raises(ValueError, match="at least 2"):
        workers.exponent([1], [1.0])


def test_repeats_fill_a_turn():
    assert [workers.repeats(once, 1.0) for once in (0.1, 0.3, 5.0, 0.0)] == [10, 3, 1, 1]


def test_durations_have_three_digits():
    assert [chart.duration(value) for value in (12.34, 0.01234, 0.00001234, 1234.5)] == [
        "12.3 s",
        "12.3 ms",
        "12.3 µs",
        "1,234 s",
    ]


def run(*arguments: str) -> None:
    """scripts/benchmark, our side alone, on a tiny network."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, str(ROOT / "scripts" / "benchmark"), "--quick", "--peers", "none", *arguments]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_benchmark(tmp_path):
    """Each row has times, a median among them, and rates that follow from it; the chart is drawn."""
    output = tmp_path / "found" / "benchmark.json"
    modes = ["train", "forward", "sample", "data", "checkpoint", "import"]
    run("--nets", "digits", "--modes", *modes, "--output", str(output))
    result = json.loads(output.read_text())
    assert result["device"]["platform"] == "cpu"
    assert result["versions"]["jax"]
    assert not result["failed"]
    assert [row["mode"] for row in result["rows"]] == [
        *("train", "forward", "sample", "sample", "data", "save", "restore", "import")
    ]
    for row in result["rows"]:
        ours = row["ours"]
        assert len(ours["times"]) == 2
        assert 0 < min(ours["times"]) <= ours["median_s"] <= max(ours["times"])
        assert ours["library_bytes"] > 0
        assert ours["peak_bytes"] > 0
        assert row["peers"] == {}
        if row["images_per_second"]:
            assert row["images_per_second"]["ours"] == pytest.approx(row["batch"] / ours["median_s"])
    train, forward = result["rows"][:2]
    assert train["flops"] == pytest.approx(3 * forward["flops"])
    assert train["of_peak"]["ours"] == pytest.approx(train["flops"] / train["ours"]["median_s"] / result["peak_flops"])
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in output.parent.iterdir() if path.is_dir()] == []


@pytest.mark.slow
def test_growth(tmp_path):
    output = tmp_path / "growth.json"
    run("--growth", "--output", str(output))
    for row in json.loads(output.read_text())["growth"]:
        assert len(row["values"]) == len(row["seconds"]) == len(row["peak_bytes"]) == 2
        assert min(row["seconds"]) > 0
        assert workers.exponent(row["values"], row["seconds"]) == row["exponent"]
