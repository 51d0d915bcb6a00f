"""The error of the solvers, as scripts/sampler_table.py --rmse prints it, on data whose denoiser is exact."""

from types import SimpleNamespace

import compare_runs
import numpy as np
import pytest
import sampler_table

from ddpm_jax import schedule
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.sampling import DpmSolver, ExponentialHeun, Heun, Karras, Quadratic, Uniform, UniPc


def test_samplers_have_the_evaluations_that_the_table_names():
    process = schedule.Cosine(num_steps=1000).build()
    for sampler, counts in sampler_table.FEW_EVALUATIONS.items():
        for count in counts:
            assert sampler_table.with_evaluations(sampler, count).evaluations(process) == count


@pytest.mark.parametrize(
    ("sampler", "counts"),
    [(DpmSolver(), (10, 40)), pytest.param(ExponentialHeun(), (9, 39), marks=pytest.mark.slow)],
)
def test_errors_fall_with_evaluations_and_on_the_better_grid(capsys, monkeypatch, sampler, counts):
    """With four times the evaluations a first-order method has a quarter of its error, a second-order one less."""
    points = Mixture.of([0.5, 0.5], means=[[-0.5, 0.0], [0.5, 0.3]], stds=0.3)
    model = points.denoiser(schedule.Cosine(num_steps=1000).build())
    net = SimpleNamespace(num_classes=None)
    run = SimpleNamespace(image_shape=(2,), experiment=SimpleNamespace(net=net), model=lambda labels: model)
    monkeypatch.setattr(sampler_table, "FEW_EVALUATIONS", {sampler: counts})
    monkeypatch.setattr(sampler_table, "GRIDS", (Uniform(), Quadratic()))
    sampler_table.print_errors(run)
    head, _, row = capsys.readouterr().out.splitlines()
    assert head == "| sampler (evaluations) | Uniform | Quadratic |"
    assert row.split(" | ")[0] == f"| {type(sampler).__name__} {counts}"
    uniform, quadratic = ([float(number) for number in cell.split("/")] for cell in row.strip("| ").split("|")[1:])
    assert 0 < quadratic[1] < quadratic[0] / 4
    assert quadratic[0] < uniform[0]


def test_the_default_grids_are_in_the_table():
    assert {type(grid) for grid in sampler_table.GRIDS} == {Uniform, Quadratic, Karras}
    assert {type(sampler) for sampler in sampler_table.FEW_EVALUATIONS} == {DpmSolver, ExponentialHeun, Heun, UniPc}
    assert all(sampler.grid in sampler_table.GRIDS for sampler in sampler_table.FEW_EVALUATIONS)


def test_two_digits():
    found = [sampler_table.two_digits(value) for value in (160.4, 0.0304, 0.00925, 4.86, np.float32(0.5))]
    assert found == ["160", "0.03", "0.0092", "4.9", "0.5"]


def test_a_comparison_measures_each_number_once(tmp_path):
    """Every sampler has as many steps as the evaluations allow, and a second look measures nothing."""
    seen = []

    def distance(run, sampler, variance, n):
        seen.append((run, sampler.num_steps, variance, n))
        return float(sampler.num_steps)

    for _ in range(2):
        table = sampler_table.Measurements(tmp_path / "comparison-1.json")
        found = compare_runs.distances_of("run", table, Heun(), 7, distance)
        assert found == [3, 5, 10, 25]
    assert seen == [("run", steps, None, 7) for steps in (3, 5, 10, 25)]


def test_the_table_of_a_comparison(capsys):
    compare_runs.print_table(["run", "5"], [["digits", "0.42"]])
    assert capsys.readouterr().out.splitlines() == ["| run | 5 |", "| --- | --- |", "| digits | 0.42 |"]
