"""A finished (or unfinished) run, read from its folder: what was trained, and samples from it.

run = ddpm_jax.load_run("runs/digits")
x = run.sample(jax.random.key(0), 64)          # float32 [64, 8, 8, 1] in [-1, 1]
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from ddpm_jax.data.images import to_unit
from ddpm_jax.data.map_examples import batches_of
from ddpm_jax.data.source import Source
from ddpm_jax.devices.axes import entered
from ddpm_jax.devices.mesh import MeshShape, replicated, with_sharding
from ddpm_jax.diffusion.arrays import Key, Whole
from ddpm_jax.diffusion.bound import bits_per_dim, bound, estimate
from ddpm_jax.diffusion.clipping import Clipping
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.process import Continuous
from ddpm_jax.errors import require, require_int, require_key
from ddpm_jax.sampling import Sampler
from ddpm_jax.storage import specs
from ddpm_jax.storage.paths import RunPath, is_remote, run_path
from ddpm_jax.training import advice
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.generate import draw_images

# The terms of an estimate of the bound of a continuous process, which has no steps of its own.
TERMS_OF_LIMIT = 100


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

    def model(self, labels: Any = None, guidance: float | None = None) -> Denoiser:
        """The denoiser of the run, with its averaged parameters.

        Args:
            labels: int32 [batch], in 0..num_classes-1 or the null label, for a class-conditional network; None for an
                unconditional one.
            guidance: the scale of classifier-free guidance; None for none.

        Returns:
            The denoiser, with the process, target, variance and clipping of the experiment.

        Raises:
            ValueError: the labels do not fit the network, or guidance is given to a network without a null label.
        """
        return self.experiment.model(self.params, labels, guidance)

    def sample(
        self,
        key: Key,
        n: Whole,
        *,
        sampler: Sampler | None = None,
        clip: Clipping | None = None,
        labels: np.ndarray | None = None,
        guidance: float | None = None,
        first_index: Whole = 0,
        chunk: Whole | None = None,
        reached: Callable[[int], None] | None = None,
    ) -> Float[np.ndarray, "n height width channels"]:
        """Images first_index, ..., first_index + n - 1 of the sequence of `key`.

        Args:
            key: the key; image i is a function of (key, i).
            n: the number of images; it may be large.
            sampler: the sampler; None for that of the experiment.
            clip: the clipping; None for that of the experiment.
            labels: int [n], for a class-conditional network; None for the classes in turn: image i has class i modulo
                num_classes.
            guidance: the scale of classifier-free guidance, for a network trained with label dropout; None for none.
            first_index: the number of the first image.
            chunk: images at a time on each device; None for 256.
            reached: called with the number of images that are done, after each chunk.

        Returns:
            float32 [n, height, width, channels].

        Raises:
            ValueError: an argument has the wrong type, shape or range.
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
        clip: Clipping | None = None,
        chunk: Whole | None = None,
    ) -> Float[np.ndarray, " n"]:
        """The variational bound of every example of a source, in bits for each of its elements (256 levels).

        Args:
            key: the key; the draws of example i are a function of (key, i).
            source: the images.
            num_steps: the number of steps of a strided chain, or of a continuous process; None for all T of a chain.
            num_terms: the number of terms drawn for each example, for an unbiased estimate; None for all T of a chain,
                and 100 of the limit of a continuous process, if num_steps is None, too.
            clip: the clipping; None for that of the experiment.
            chunk: examples at a time on each device; None for 256.

        Returns:
            float32 [n], in full float32 unless JAX is set to another precision (`ddpm_jax.precision`).

        Raises:
            ValueError: an argument has the wrong type or range, or the source has no labels for a class-conditional
                network.
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
        clip: Clipping | None = None,
        chunk: Whole | None = None,
        start: Whole = 0,
    ) -> Iterator[Float[np.ndarray, " batch"]]:
        """`bits_per_dim`, batch by batch, from example `start` on."""
        require_key(key)
        self.check_labels(source)
        start, labelled = require_int("start", start, 0), self.experiment.net.num_classes is not None
        experiment = self.experiment if clip is None else dataclasses.replace(self.experiment, clip=clip)
        require("num_terms", num_terms, num_terms is None or num_steps is None, "None where num_steps is given")
        if num_terms is None and num_steps is None and isinstance(experiment.schedule, Continuous):
            num_terms = TERMS_OF_LIMIT

        def bits(params: Any, key: Key, batch: dict[str, Any], first: Any) -> Any:
            model, x = experiment.model(params, batch["label"] if labelled else None), to_unit(batch["image"])
            if num_terms is None:
                return bound(key, model, x, num_steps=num_steps, first_index=first).bits_per_dim
            return bits_per_dim(estimate(key, model, x, num_terms, first_index=first), x)

        params = jax.device_put(self.params, replicated(self.mesh))
        return batches_of(jax.tree_util.Partial(bits, params, key), source, self.mesh, chunk, start)

    def check_labels(self, source: Source) -> None:
        """Raise ValueError if a source lacks the labels that a class-conditional network needs."""
        holds = self.experiment.net.num_classes is None or "label" in source[0]
        require("source", source, holds, "one with labels, for a class-conditional network")

    def check_guidance(self, guidance: float | None) -> None:
        """Raise ValueError if the network cannot be guided."""
        labels = None if self.experiment.net.num_classes is None else np.zeros(1, int)
        self.experiment.model(self.params, labels, guidance)


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


def _parameter_shapes(experiment: Experiment, image_shape: tuple[int, int, int]) -> Any:
    return jax.eval_shape(lambda key: experiment.net.init(key, image_shape), jax.random.key(0))


def load_run(folder: str | os.PathLike[str], mesh: Mesh | None = None, ema: float | None = None) -> Run:
    """The run in a folder, at its newest valid checkpoint.

    Args:
        folder: the folder of the run, local or in an object store.
        mesh: the devices; None for all.
        ema: the decay or width of the average to read, one that the run kept; None for the first.  A run with
            `PowerEma` has any width, made from its snapshots.

    Raises:
        FileNotFoundError: there is no run, or no checkpoint or snapshot yet.
        ValueError: the run cannot be read, or has no such average.

    Warns if more than 5% of the average is still the weights from before the first step.
    """
    from ddpm_jax.training.snapshots import read_average  # Orbax takes 2 s to import

    require("mesh", mesh, mesh is None or isinstance(mesh, Mesh), "None or a jax.sharding.Mesh")
    folder = run_path(folder)
    path = folder / "experiment.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not a run: it has no experiment.json{_runs_near(folder)}")
    experiment = specs.load(path)
    require(str(path), type(experiment).__name__, isinstance(experiment, Experiment), "an Experiment")
    mesh = mesh or MeshShape().build()

    profile = experiment.ema.profiles[0] if ema is None else ema

    def shapes(about: dict[str, Any]) -> Any:
        return with_sharding(_parameter_shapes(experiment, tuple(about["image_shape"])), replicated(mesh))

    with entered(mesh):
        found = read_average(folder, experiment.ema, profile, shapes, report=warnings.warn)
    if found is None:
        raise FileNotFoundError(f"{folder} has no checkpoint yet; train it first, or longer")
    step, about, params = found
    if step > 0 and (concern := advice.of_average(experiment.ema, step, profile)):
        warnings.warn(f"{concern}, which shows in its samples; train it longer", stacklevel=2)
    return Run(experiment, step, params, tuple(about["image_shape"]), mesh, profile)
