"""How good a trained model's samples are for each sampler and number of network evaluations, and its bits/dim.

    pip install -e .[test,figures]
    python scripts/sampler_table.py runs/digits          # about an hour on two CPU cores
    python scripts/sampler_table.py runs/digits --rmse   # about ten minutes: only the error of the solvers

The first command prints a table and draws experiments/samplers.png (--figure).  Each number is kept in
RUN/samplers-STEP.json as soon as it is measured, so a run that was killed resumes.

Frechet distance: 1,000 images (--num-images), all classes in turn, against the training split, in the 64 hidden
features of a small classifier that is trained on that split first.  The distance of the test split is printed too.
Bits/dim: of the test split, 256 levels.  A stochastic sampler has the variational bound of its own strided chain.  The
deterministic samplers solve one flow, which has one likelihood; an adaptive integrator computes it.

RMSE (--rmse): the root mean squared difference of x from the flow of the same network, for 256 digits from the same
z_T, without clipping.  The reference takes every timestep with ExponentialHeun.
"""

import json
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from ddpm_jax import Denoiser, Run, load_run
from ddpm_jax.data.images import to_unit
from ddpm_jax.devices.setup import set_up_jax
from ddpm_jax.diffusion.bound import Bound, bound
from ddpm_jax.diffusion.grids import Grid, Karras, Quadratic, Uniform
from ddpm_jax.diffusion.likelihood import log_likelihood
from ddpm_jax.diffusion.variance import FixedLarge, FixedSmall, Variance
from ddpm_jax.metrics.frechet import Moments, frechet_distance, moments
from ddpm_jax.sampling import Ancestral, Ddim, DpmSolver, ExponentialHeun, Heun, Sampler, UniPc, sample
from ddpm_jax.storage.paths import local_path

EVALUATIONS = (10, 20, 50, 100, 250, 1000)
# For the error of the solvers.  Two evaluations a step, and one in the last, make an odd number.
FEW_EVALUATIONS = {
    DpmSolver(): (5, 10, 15, 35),
    UniPc(): (5, 8, 10, 15),
    ExponentialHeun(): (9, 15, 35),
    Heun(): (9, 15, 35),
}
GRIDS: tuple[Grid, ...] = (Uniform(), Quadratic(), Karras())
NUM_RMSE = 256
SEED = 0


@dataclass(frozen=True)
class Options:
    """Measure every sampler on a trained run."""

    run: tyro.conf.Positional[Path]
    """The folder of the run; its data have labels, and a split called test."""
    num_images: int = 1000
    """Images drawn for each Frechet distance."""
    figure: Path = Path("experiments/samplers.png")
    """The path of the figure."""
    rmse: bool = False
    """Print only the error of the deterministic samplers on three grids."""


@dataclass(frozen=True)
class Row:
    """A sampler, and the decoder's variance that it draws with."""

    name: str
    sampler: Sampler
    variance: Variance | None = None
    flow: bool = False


def with_evaluations(sampler: Sampler, evaluations: int) -> Sampler:
    """The sampler with as many steps as `evaluations` of the network allow."""
    extra = sampler.extra_evaluations
    return replace(sampler, num_steps=(evaluations + extra) // (1 + extra))


def rows(variance: Variance) -> list[Row]:
    """The samplers of the table, for a decoder with this variance."""
    if variance.learned:
        stochastic = [Row("ancestral, learned variance", Ancestral(), variance)]
    else:
        stochastic = [
            Row("ancestral, small variance", Ancestral(), FixedSmall()),
            Row("ancestral, large variance", Ancestral(), FixedLarge()),
        ]
    return [
        *stochastic,
        Row("SDE-DPM-Solver++(2M)", DpmSolver(sde=True)),
        Row("DDIM", Ddim(), flow=True),
        Row("DPM-Solver++(2M)", DpmSolver(), flow=True),
        Row("exponential Heun", ExponentialHeun(), flow=True),
        Row("Heun, EDM grid", Heun(), flow=True),
    ]


class Measurements:
    """Numbers by name, kept in a file as they are made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, measure: Callable[[], float]) -> float:
        """The number called `name`, measured if the file does not have it."""
        if name not in self.values:
            self.values[name] = measure()
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.values, indent=1))
            part.replace(self.path)
            print(f"{name}: {self.values[name]:.4g}", file=sys.stderr)
        return self.values[name]


def load_split(data: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(images in [-1, 1], labels) of a split."""
    source = replace(data, split=split)
    examples = [source[i] for i in range(len(source))]
    return np.asarray(to_unit(np.stack([e["image"] for e in examples]))), np.array([e["label"] for e in examples])


def train_features(images: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """images to [n, 64]: the hidden layer of a classifier trained on these."""
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier((64,), random_state=SEED, max_iter=300).fit(images.reshape(len(images), -1), labels)
    weights, offset = classifier.coefs_[0], classifier.intercepts_[0]
    return lambda images: np.maximum(images.reshape(len(images), -1) @ weights + offset, 0.0)


def measure(run: Run, options: Options, table: Measurements) -> dict[str, dict[int, tuple[float, float]]]:
    """{sampler: {evaluations: (Frechet distance, bits/dim or NaN)}}."""
    data: Any = run.experiment.data
    test, labels = load_split(data, "test")
    train, train_labels = load_split(data, "train")
    features = train_features(train, train_labels)
    train_moments = moments(features(train))
    table.get("test split, Frechet distance", lambda: frechet_distance(moments(features(test)), train_moments))
    flow = table.get("flow, bits/dim", lambda: flow_bits(run, test, labels))

    results = {}
    for row in rows(run.experiment.variance):
        results[row.name] = {}
        for evaluations in EVALUATIONS:
            sampler = with_evaluations(row.sampler, evaluations)
            name = f"{row.name}, {evaluations} evaluations"
            distance = table.get(
                f"{name}, Frechet distance of {options.num_images}",
                lambda s=sampler, v=row.variance: distance_of(run, s, v, options.num_images, features, train_moments),
            )
            bits = flow if row.flow else math.nan
            if row.variance is not None:
                steps, variance = evaluations, row.variance
                bits = table.get(
                    f"{name}, bits/dim",
                    lambda k=steps, v=variance: float(chain_bound(run, test, labels, k, v).bits_per_dim.mean()),
                )
            results[row.name][evaluations] = distance, bits
    return results


def distance_of(
    run: Run, sampler: Sampler, variance: Variance | None, n: int, features: Any, reference: Moments
) -> float:
    """The Frechet distance of n images drawn by the sampler."""
    if variance is not None:
        run = replace(run, experiment=replace(run.experiment, variance=variance))
    return frechet_distance(moments(features(run.sample(jax.random.key(SEED), n, sampler=sampler))), reference)


def model_of(run: Run, labels: np.ndarray) -> Denoiser:
    """The denoiser of a run for examples with these labels."""
    return run.model(None if run.experiment.net.num_classes is None else labels)


def chain_bound(run: Run, x: np.ndarray, labels: np.ndarray, num_steps: int, variance: Variance) -> Bound:
    """The bound of the chain with that many steps."""
    model = replace(model_of(run, labels), variance=variance)
    return bound(jax.random.key(SEED), model, x, num_steps=num_steps)


def flow_bits(run: Run, x: np.ndarray, labels: np.ndarray) -> float:
    """Bits/dim of the probability flow."""
    return float(log_likelihood(jax.random.key(SEED), model_of(run, labels), x, tolerance=1e-4).bits_per_dim.mean())


def print_errors(run: Run) -> None:
    """The root mean squared error of each deterministic sampler on each grid, as a table in Markdown."""
    shape = (NUM_RMSE, *run.image_shape)
    key, z = jax.random.key(SEED), jax.random.normal(jax.random.key(SEED + 1), shape)
    model = model_of(run, np.arange(NUM_RMSE) % (run.experiment.net.num_classes or 1)).unclipped
    flows: dict[int, Any] = {}

    def error(sampler: Sampler) -> float:
        begin = int(sampler.times(model.process)[0])
        if begin not in flows:
            flows[begin] = sample(key, model, ExponentialHeun(None, Uniform()), shape, start=(z, begin))
        x = sample(key, model, sampler, shape, start=(z, begin))
        return float(np.sqrt(np.mean((np.asarray(x) - np.asarray(flows[begin])) ** 2)))

    print("| sampler (evaluations) | " + " | ".join(type(grid).__name__ for grid in GRIDS) + " |")
    print("|---|" + "---|" * len(GRIDS))
    for sampler, counts in FEW_EVALUATIONS.items():
        cells = []
        for grid in GRIDS:
            chosen = [with_evaluations(replace(sampler, grid=grid), count) for count in counts]
            cells.append(" / ".join(two_digits(error(one)) for one in chosen))
        print(f"| {type(sampler).__name__} ({', '.join(map(str, counts))}) | " + " | ".join(cells) + " |")


def two_digits(value: float) -> str:
    """A number with two significant digits and no exponent."""
    return np.format_float_positional(value, precision=2, unique=False, fractional=False, trim="-")


def print_table(results: dict[str, dict[int, tuple[float, float]]], table: Measurements) -> None:
    """The table in Markdown."""
    print("| sampler | " + " | ".join(map(str, EVALUATIONS)) + " |")
    print("|---|" + "---|" * len(EVALUATIONS))
    for name, row in results.items():
        cells = [f"{d:.2f}" + ("" if math.isnan(bits) else f" · {bits:.2f}") for d, bits in row.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")
    test, flow = table.values["test split, Frechet distance"], table.values["flow, bits/dim"]
    print(f"\nFrechet distance · bits/dim.  Test split: {test:.2f}.  Flow: {flow:.2f} bits/dim.")


def draw_figure(results: dict[str, dict[int, tuple[float, float]]], table: Measurements, progress: Bound) -> Any:
    """Frechet distance and bits/dim against evaluations, and the rate-distortion curve of progressive coding, as a
    Matplotlib figure."""
    import matplotlib as mpl  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    style: Any = {"font.size": 9.5, "axes.titlesize": 10, "axes.titleweight": "bold"}
    style |= {"legend.fontsize": 8.5, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=(7, 6.4), layout="constrained")
        axes = figure.subplot_mosaic("aa;bc", height_ratios=(1.3, 1))
        draw_evaluations(axes["a"], axes["b"], results, table)
        rate, distortion = progress.rate_distortion()
        axes["c"].plot(rate, distortion, color="#0072B2")
        axes["c"].set(title="Progressive coding, test split", xlim=(0, None), ylim=(0, None))
        axes["c"].set(xlabel="rate, bits/dim received", ylabel="distortion, RMSE of 0 to 255")
        for one in axes.values():
            one.grid(color="#e4e4e4")
        figure.draw_without_rendering()
    return figure


def draw_evaluations(distance: Any, bits: Any, results: dict, table: Measurements) -> None:
    """Every sampler's Frechet distance, and the bits/dim of those that have a bound, against evaluations."""
    colors = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#222222", "#56B4E9", "#E69F00")
    for i, (name, row) in enumerate(results.items()):
        look: Any = {"color": colors[i], "marker": "osD^vPX"[i], "ls": ("-", "--", ":")[i % 3], "label": name}
        distance.plot(EVALUATIONS, [d for d, _ in row.values()], markersize=4.5, linewidth=1.2, **look)
        if name.startswith("ancestral"):
            bits.plot(EVALUATIONS, [b for _, b in row.values()], markersize=4.5, linewidth=1.2, **look)
    grey: Any = {"color": "#555555", "linestyle": (0, (6, 3)), "linewidth": 1}
    distance.axhline(table.values["test split, Frechet distance"], label="images of the test split", **grey)
    bits.axhline(table.values["flow, bits/dim"], label="probability flow", **grey)
    distance.set(title="Frechet distance to the training split (lower is better)", yscale="log", ylabel="distance")
    bits.set(title="Bits/dim of the test split", ylabel="bits/dim (lower is better)")
    low, high = distance.get_ylim()
    ticks = [tick for tick in (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100) if low <= tick <= high]
    distance.set(yticks=ticks, yticklabels=[f"{tick:g}" for tick in ticks])
    distance.legend(loc="upper right")
    bits.legend(loc="lower right", handlelength=1.6)
    for axes in (distance, bits):
        axes.set(xscale="log", xlabel="network evaluations", xticks=EVALUATIONS, xticklabels=EVALUATIONS)
        axes.minorticks_off()


def main() -> None:
    """Measure, print, draw."""
    options = tyro.cli(Options, description=__doc__)
    set_up_jax()
    run = load_run(options.run)
    if options.rmse:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Heun on grids that it is not made for, which are measured here
            print_errors(run)
        return
    table = Measurements(local_path(options.run) / f"samplers-{run.step}.json")
    results = measure(run, options, table)
    print_table(results, table)
    test, labels = load_split(run.experiment.data, "test")
    progress = chain_bound(run, test, labels, run.experiment.schedule.build().num_steps, run.experiment.variance)
    figure = local_path(options.figure)
    draw_figure(results, table, progress).savefig(figure, dpi=200)
    print(f"wrote {figure}")


if __name__ == "__main__":
    main()
