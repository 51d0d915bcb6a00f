"""Several trained runs beside each other: how good their samples are for few network evaluations, and their bits/dim.

    pip install -e .[test]
    python scripts/compare_runs.py runs/digits runs/digits_edm runs/digits_flow

Prints two tables.  Each number is kept in RUN/comparison-STEP.json as soon as it is measured, so a comparison that was
killed resumes.  The runs have the same data, with labels and a split called test.

Frechet distance: as in sampler_table.py, 1,000 images (--num-images) in the features of a small classifier.  Every run
has the same samplers, each on its default grid.

Bits/dim: of the test split, 256 levels.  The bound of K steps that are even in t, with the variance of the run: on
Uniform, whose last step to clean data is as long as the others, and for a continuous process also on Linspace, whose
last step begins at the clean end.  The bound of all steps, T in a chain and infinitely many in a continuous process,
from --num-terms random terms of each image.  The likelihood of the probability flow, which the deterministic samplers
follow whatever their number of steps.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from sampler_table import (
    SEED,
    Measurements,
    distance_of,
    flow_bits,
    load_split,
    model_of,
    train_features,
    with_evaluations,
)

from ddpm_jax import Run, load_run
from ddpm_jax.devices.setup import set_up_jax
from ddpm_jax.diffusion.bound import bound
from ddpm_jax.diffusion.grids import Grid, Linspace, Uniform
from ddpm_jax.errors import require
from ddpm_jax.metrics.frechet import frechet_distance, moments
from ddpm_jax.sampling import Ddim, Heun, Sampler, UniPc
from ddpm_jax.storage.paths import local_path

EVALUATIONS = (5, 10, 20, 50)
SAMPLERS: tuple[Sampler, ...] = (Ddim(), UniPc(), Heun())
GRIDS: tuple[Grid, ...] = (Uniform(), Linspace())


@dataclass(frozen=True)
class Options:
    """Compare trained runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """The folders of the runs."""
    num_images: int = 1000
    """Images drawn for each Frechet distance."""
    num_terms: int = 100
    """Terms drawn for each image, for the bound of all steps."""


def measure(runs: dict[str, tuple[Run, Measurements]], options: Options) -> tuple[list[list[str]], list[list[str]]]:
    """The rows of both tables: run, sampler or grid, numbers."""
    data: Any = next(iter(runs.values()))[0].experiment.data
    test, labels = load_split(data, "test")
    train, train_labels = load_split(data, "train")
    features = train_features(train, train_labels)
    reference = moments(features(train))
    print(f"Frechet distance of the test split: {frechet_distance(moments(features(test)), reference):.2f}")
    distance = partial(distance_of, features=features, reference=reference)
    distances, bits = [], []
    for name, (run, table) in runs.items():
        for sampler in SAMPLERS:
            row = distances_of(run, table, sampler, options.num_images, distance)
            distances.append([name, type(sampler).__name__, *(f"{value:.2f}" for value in row)])
    for name, (run, table) in runs.items():
        for grid in GRIDS[:1] if run.experiment.schedule.build().is_chain else GRIDS:
            row = bits_of(run, table, grid, test, labels, options.num_terms)
            bits.append([name, type(grid).__name__, *(f"{value:.2f}" for value in row)])
    return distances, bits


def distances_of(run: Run, table: Measurements, sampler: Sampler, n: int, distance: Any) -> list[float]:
    """The Frechet distance of n images for each number of evaluations."""
    return [
        table.get(
            f"{type(sampler).__name__}, {count} evaluations, Frechet distance of {n}",
            partial(distance, run, with_evaluations(sampler, count), None, n),
        )
        for count in EVALUATIONS
    ]


def bits_of(
    run: Run, table: Measurements, grid: Grid, test: np.ndarray, labels: np.ndarray, num_terms: int
) -> list[float]:
    """Bits/dim: of each number of steps, of all steps, of the flow."""
    key, source = jax.random.key(SEED), replace(run.experiment.data, split="test")  # pyright: ignore

    def of_steps(count: int) -> float:
        return float(bound(key, model_of(run, labels), test, num_steps=count, grid=grid).bits_per_dim.mean())

    def of_all() -> float:
        return float(run.bits_per_dim(key, source, num_terms=num_terms).mean())

    return [
        *(table.get(f"bound, {type(grid).__name__}, {k} steps", partial(of_steps, k)) for k in EVALUATIONS),
        table.get(f"bound of all steps, {num_terms} terms", of_all),
        table.get("flow", partial(flow_bits, run, test, labels)),
    ]


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    """A table in Markdown."""
    for row in (heads, ["---"] * len(heads), *rows):
        print(f"| {' | '.join(row)} |")


def main() -> None:
    """Measure and print."""
    options = tyro.cli(Options, description=__doc__)
    set_up_jax()
    folders = [local_path(folder) for folder in options.runs]
    names = [folder.name for folder in folders]
    require("runs", names, len(set(names)) == len(names) > 0, "folders whose names differ, at least one")
    runs = {}
    for folder in folders:
        run = load_run(folder)
        runs[folder.name] = run, Measurements(folder / f"comparison-{run.step}.json")
    distances, bits = measure(runs, options)
    counts = list(map(str, EVALUATIONS))
    print("\nFrechet distance by network evaluations\n")
    print_table(["run", "sampler", *counts], distances)
    print("\nBits/dim by steps\n")
    print_table(["run", "grid of the bound", *counts, "all steps", "flow"], bits)


if __name__ == "__main__":
    main()
