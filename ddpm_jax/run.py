"""A finished (or unfinished) run, read from its folder: what was trained, and samples from it.

run = ddpm_jax.load_run("runs/digits")
x = run.sample(jax.random.key(0), 64)          # float32 [64, 8, 8, 1] in [-1, 1]
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from ddpm_jax.data.images import to_unit
from ddpm_jax.data.map_examples import batches_of
from ddpm_jax.data.sources import Source
from ddpm_jax.devices.axes import entered
from ddpm_jax.devices.mesh import MeshShape, replicated, with_sharding
from ddpm_jax.diffusion.arrays import Key, Predict, Whole
from ddpm_jax.diffusion.bound import bits_per_dim, bound, estimate
from ddpm_jax.diffusion.clipping import Clipping
from ddpm_jax.diffusion.schedule import Chain
from ddpm_jax.errors import require, require_int, require_key
from ddpm_jax.sampling import Sampler
from ddpm_jax.storage import specs
from ddpm_jax.storage.paths import RunPath, is_remote, run_path
from ddpm_jax.training import advice
from ddpm_jax.training.experiment import Experiment


@dataclass(frozen=True)
class Run:
    """A run: its experiment, and the averaged parameters of one of its checkpoints."""

    experiment: Experiment
    step: int
    params: Any
    image_shape: tuple[int, int, int]
    mesh: Mesh
    ema: float
    """Which average of the parameters it is: the decay or width that names it."""

    @cached_property
    def schedule(self) -> Chain:
        """The noise schedule that the network was trained for."""
        with jax.ensure_compile_time_eval():  # arrays, not tracers, also when first asked for inside a jitted function
            return self.experiment.schedule.build()

    @cached_property
    def predict(self) -> Predict:
        """predict(z_t, t) with the averaged parameters; `run.experiment.target` says what it predicts.

        A class-conditional network takes the example at place i of a batch to be of class i modulo the number of
        classes; `run.experiment.net.bind(run.params, labels=...)` takes any labels.
        """
        net = self.experiment.net
        num_classes = getattr(net, "num_classes", None)
        if num_classes is None:
            return net.bind(self.params)
        return jax.tree_util.Partial(partial(_classes_in_turn, net), self.params)

    def sample(
        self,
        key: Key,
        n: Whole,
        *,
        sampler: Sampler | None = None,
        clip: bool | Clipping | None = None,
        labels: np.ndarray | None = None,
        guidance: float | None = None,
        first_index: Whole = 0,
        chunk: Whole | None = None,
        reached: Callable[[int], None] | None = None,
    ) -> Float[np.ndarray, "n height width channels"]:
        """Images first_index, ..., first_index + n - 1 of the sequence of `key`, in [-1, 1].

        sampler, clip: the experiment's unless given.  labels: [n] for a class-conditional network; unless given,
        image i has class i modulo the number of classes.  guidance: the scale of classifier-free guidance, for
        a network trained with label dropout.  chunk: images at a time on each device, 256 unless given, so n may be
        large.  reached: called with the number of images that are done, after each chunk.  The precision of products is
        JAX's default (`ddpm_jax.devices.precision`).
        """
        given = {"sampler": sampler, "clip": clip}
        changes = {name: value for name, value in given.items() if value is not None}
        experiment = dataclasses.replace(self.experiment, **changes)
        options = {"labels": labels, "guidance": guidance, "first_index": first_index, "chunk": chunk}
        return draw_images(experiment, self.params, self.image_shape, key, n, self.mesh, reached=reached, **options)

    def bits_per_dim(
        self,
        key: Key,
        source: Source,
        *,
        num_steps: Whole | None = None,
        num_terms: Whole | None = None,
        clip: bool | Clipping | None = None,
        chunk: Whole | None = None,
    ) -> Float[np.ndarray, " n"]:
        """The variational bound of every example of a source, in bits for each of its elements (256 levels).

        Example i has draws of its own, from (key, i).  num_steps: those of a strided chain; all T unless given.
        num_terms: how many of the T terms are drawn for each example, for an estimate of their sum without bias; all of
        them unless given.  clip: the experiment's unless given.  chunk: examples at a time on each device.  Over all
        devices, in full float32 unless JAX is set to another precision (`ddpm_jax.devices.precision`).
        """
        options = {"num_steps": num_steps, "num_terms": num_terms, "clip": clip, "chunk": chunk}
        return np.concatenate(list(self.bits_per_dim_of_batches(key, source, **options)))

    def bits_per_dim_of_batches(
        self,
        key: Key,
        source: Source,
        *,
        num_steps: Whole | None = None,
        num_terms: Whole | None = None,
        clip: bool | Clipping | None = None,
        chunk: Whole | None = None,
        start: Whole = 0,
    ) -> Iterator[Float[np.ndarray, " batch"]]:
        """`bits_per_dim`, batch by batch, from example `start` on."""
        require_key(key)
        self.check_labels(source)
        experiment, start = self.experiment, require_int("start", start, 0)
        labelled = getattr(experiment.net, "num_classes", None) is not None
        require("num_terms", num_terms, num_terms is None or num_steps is None, "None where num_steps is given")
        how: dict[str, Any] = {"clip": experiment.clip if clip is None else clip}
        how |= {"target": experiment.target, "variance": experiment.variance}

        def bits(params: Any, key: Key, batch: dict[str, Any], first: Any) -> Any:
            labels = batch["label"] if labelled else None
            predict, x = bind(experiment, params, labels), to_unit(batch["image"])
            if num_terms is None:
                options = {"num_steps": num_steps, "first_index": first, **how}
                return bound(key, predict, self.schedule, x, **options).bits_per_dim
            return bits_per_dim(estimate(key, predict, self.schedule, x, num_terms, first_index=first, **how), x)

        params = jax.device_put(self.params, replicated(self.mesh))
        return batches_of(jax.tree_util.Partial(bits, params, key), source, self.mesh, chunk, start)

    def check_labels(self, source: Source) -> None:
        """Raise ValueError where a source lacks the labels that a class-conditional network asks for."""
        labelled = getattr(self.experiment.net, "num_classes", None) is not None
        holds = not labelled or "label" in source[0]
        require("source", source, holds, "one with labels, for a class-conditional network")

    def check_guidance(self, guidance: float | None) -> None:
        """Raise ValueError where the network cannot be guided."""
        labels = None if getattr(self.experiment.net, "num_classes", None) is None else np.zeros(1, int)
        bind(self.experiment, self.params, labels, guidance)


def _runs_near(folder: RunPath) -> str:
    """What was probably meant by a folder that is not a run, as the end of a message."""
    if is_remote(folder):
        return ""
    above = next((path for path in list(folder.parents)[:2] if (path / "experiment.json").is_file()), None)
    if above is not None:
        return f"; did you mean {above}?"
    if not folder.is_dir():
        return "" if folder.exists() else ", and there is no such folder"
    runs = sorted(path.name for path in folder.iterdir() if (path / "experiment.json").is_file())
    return f"; it contains {len(runs)}: {', '.join(runs[:5])}{', ...' if runs[5:] else ''}" if runs else ""


def load_run(folder: str | os.PathLike, mesh: Mesh | None = None, ema: float | None = None) -> Run:
    """The run in `folder`, at its newest checkpoint that is whole, on `mesh` (all devices unless given).

    ema: the decay or width of the average to read, one that the run kept (the first of them unless given); of a run
    with `PowerEma` any width, made from its snapshots.

    Raises FileNotFoundError where there is no run, or no checkpoint or snapshot yet, and ValueError where what is
    there cannot be read or the run has no such average.  Warns where more than 5% of the average is still the weights
    from before the first step.
    """
    from ddpm_jax.training.snapshots import read_average  # Orbax takes 2 s to import

    folder = run_path(folder)
    path = folder / "experiment.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not a run: it has no experiment.json{_runs_near(folder)}")
    experiment = specs.load(path)
    require(str(path), type(experiment).__name__, isinstance(experiment, Experiment), "an Experiment")
    mesh = mesh or MeshShape().build()

    profile = experiment.ema.profiles[0] if ema is None else ema

    def shapes(about: dict[str, Any]) -> Any:
        return with_sharding(experiment.parameter_shapes(tuple(about["image_shape"])), replicated(mesh))

    with entered(mesh):
        found = read_average(folder, experiment.ema, profile, shapes, report=warnings.warn)
    if found is None:
        raise FileNotFoundError(f"{folder} has no checkpoint yet; train it first, or longer")
    step, about, params = found
    if step > 0 and (concern := advice.of_average(experiment.ema, step, profile)):
        warnings.warn(f"{concern}, which shows in its samples; train it longer", stacklevel=2)
    return Run(experiment, step, params, tuple(about["image_shape"]), mesh, profile)
