"""What a sampler is, and the loop that runs one: a `lax.scan` over steps t -> s.

    z ~ N(0, S I) at the noisy end t_0;   for t_0 > t_1 > ... > t_K:   z_{t_k} = step(z_{t_{k-1}});   x = z_{t_K}

with S = signal^2 + noise^2, which is 1 in a chain, and clean data at t_K.  Memory does not grow with the number of
steps.  Each image has its own key, and each of its draws its own timestep: image i depends on (key, i) only, whatever
the batch.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from ddpm_jax.devices.axes import is_explicit, spec_of, with_automatic_axes
from ddpm_jax.devices.compiler import jit
from ddpm_jax.diffusion.arrays import Batch, Key, Time, Whole, as_data, example_keys, normals
from ddpm_jax.diffusion.denoiser import Denoiser, check_arguments
from ddpm_jax.diffusion.grids import Grid, Uniform, as_time, steps_of, tail, times_before
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.step import Step
from ddpm_jax.diffusion.targets import Prediction
from ddpm_jax.errors import check_fields, require, require_int, require_part, require_shape

BATCH_SHAPE = "(batch, ...) with every size at least 1"


class StepInput(NamedTuple):
    """What one step of a sampler, from t to s, is computed from."""

    z_t: Float[Array, "batch *dims"]
    step: Step
    """The numbers of the step: signal_t, noise_t, signal_s, noise_s and those that follow from them, scalars."""
    prediction: Prediction
    """model.denoise(z_t, t)."""
    noise: Float[Array, "batch *dims"]
    """~ N(0, I); zeros if the sampler is not `stochastic`."""

    @property
    def t(self) -> Shaped[Array, " batch"]:
        """The time at which the step begins."""
        return jnp.full(len(self.z_t), self.step.t)

    @property
    def s(self) -> Shaped[Array, " batch"]:
        """The time at which it ends."""
        return jnp.full(len(self.z_t), self.step.s)


@dataclass(frozen=True)
class Sampler:
    """A grid of times and one step; subclasses are frozen dataclasses that give the step."""

    num_steps: int | None = None
    """Number of steps; None: every timestep of a chain."""
    grid: Grid = Uniform()
    """Which times the steps visit."""

    extra_evaluations: ClassVar[int] = 0
    """Network evaluations of a step beyond the one at its beginning; the last step has none."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_steps is not None:
            require_int("num_steps", self.num_steps, 1, "None or a whole number, at least 1")
        require("grid", self.grid, isinstance(self.grid, Grid), "a Grid, such as Uniform() or Given((999, 500))")

    def times(self, process: Process) -> Shaped[np.ndarray, " times"]:
        """The times visited: falling, the last one `process.clean`."""
        return self.grid.times(process, self.num_steps)

    def steps(self, process: Process, times: Shaped[np.ndarray, " times"]) -> Step:
        """The steps between these times.

        Args:
            process: the forward process.
            times: the times, falling, as `times` returns them.

        Returns:
            The numbers of the steps, each [steps].
        """
        return steps_of(process, times)

    def evaluations(self, process: Process) -> int:
        """The number of network evaluations for a batch."""
        steps = len(self.times(process)) - 1
        return steps + (steps - 1) * self.extra_evaluations

    @property
    def stochastic(self) -> bool:
        """Whether `step` uses its noise; if not, none is drawn."""
        return True

    def start(self, z: Batch) -> Any:
        """The `memory` of the first step: any pytree of arrays (multistep methods keep one)."""
        return ()

    def step(self, model: Denoiser, now: StepInput, memory: Any) -> tuple[Float[Array, "batch *dims"], Any]:
        """One step from t to s.

        Args:
            model: the denoiser.
            now: z_t, the times, the prediction at z_t, and the noise.
            memory: what the step before returned, or `start`.

        Returns:
            (z_s, the memory for the next step).
        """
        raise NotImplementedError


@flax.struct.dataclass
class Path:
    """The images of `sample`, and their path at `frames` times, evenly spread over the steps."""

    x: Float[Array, "batch *dims"]
    t: Shaped[Array, " frames"]
    """The times of the frames, falling."""
    frames: Float[Array, "frames batch *dims"]
    """z_t, from the noisy end to x; or the x predicted at z_t, from the first step to the last."""


def sample(
    key: Key,
    model: Denoiser,
    sampler: Sampler,
    shape: tuple[Whole, ...],
    *,
    start: tuple[Batch, Time] | None = None,
    first_index: Whole = 0,
    sharding: NamedSharding | None = None,
) -> Float[Array, "batch *dims"]:
    """Draw a batch of x (Ho et al. 2020, algorithm 2, for any sampler).

    The program is compiled once for each sampler and shape, and for each model that differs in more than its arrays.

    Args:
        key: the key; image i is a function of (key, i).
        model: the denoiser.
        sampler: the sampler.
        shape: (batch, ...), the shape of the result.
        start: (z_t, t), where to begin instead of the noisy end: z_t of `shape`, and t, in 1..T for a chain.  The
            sampler then visits t and those of its times that are below t.
        first_index: the number of the first image in the sequence of `key`.
        sharding: how the batch is placed on a mesh of devices; None for the default device.

    Returns:
        x, float32 of `shape`.

    Raises:
        ValueError: an argument has the wrong type or shape, or the sampler's times do not fit the process.
    """
    shape, z, _, steps = _begin(key, model, sampler, shape, start, first_index, sharding)
    return _placed_run((key, model, first_index, z, steps, ()), sampler, shape, sharding)[0]


def sample_path(
    key: Key,
    model: Denoiser,
    sampler: Sampler,
    shape: tuple[Whole, ...],
    frames: Whole,
    *,
    of: Literal["z", "x"] = "z",
    start: tuple[Batch, Time] | None = None,
    first_index: Whole = 0,
    sharding: NamedSharding | None = None,
) -> Path:
    """`sample`, with the path to the images at `frames` times.

    Args:
        key, model, sampler, shape, start, first_index, sharding: as in `sample`.
        frames: the number of times, evenly spread over the steps; at most the sampler's steps, plus one for of="z".
        of: "z" for z_t, "x" for the x predicted at z_t.

    Returns:
        The images and the frames, which are kept in a buffer [frames, batch, ...].

    Raises:
        ValueError: as in `sample`, or frames or of is out of range.
    """
    shape, z, times, steps = _begin(key, model, sampler, shape, start, first_index, sharding)
    require("of", of, of in ("z", "x"), '"z" or "x"')
    places = len(times) if of == "z" else len(times) - 1
    frames = require_int("frames", frames, 1)
    require("frames", frames, frames <= places, f"1 to {places}, as the sampler takes {len(times) - 1} steps")
    chosen = np.rint(np.linspace(0, places - 1, frames)).astype(np.int32)
    x, path = _placed_run((key, model, first_index, z, steps, chosen), sampler, shape, sharding, of)
    return Path(x, jnp.asarray(times[chosen]), path)


def _begin(
    key: Key, model: Denoiser, sampler: Sampler, shape: Any, start: Any, first_index: Whole, sharding: Any
) -> tuple[tuple[int, ...], Array | None, Shaped[np.ndarray, " times"], Step]:
    """(shape, z to begin with or None, times, steps); raises before anything is compiled."""
    check_arguments(key, model, first_index)
    sizes = require_shape("shape", shape, BATCH_SHAPE)
    require("shape", shape, len(sizes) > 0, BATCH_SHAPE)
    require_part("sampler", sampler, Sampler, "a Sampler, such as Ddim(num_steps=50)")
    placed = sharding is None or isinstance(sharding, NamedSharding)
    require("sharding", sharding, placed, "None or a NamedSharding, such as mesh.by_example(mesh)")
    if sharding is not None:
        try:
            sharding.shard_shape(sizes)
        except ValueError:
            raise ValueError(f"shape is {sizes}, whose batch does not divide over the devices of {sharding}") from None
    process = model.process
    times = sampler.times(process)
    if start is None:
        return sizes, None, times, sampler.steps(process, times)
    require("start", type(start).__name__, isinstance(start, tuple) and len(start) == 2, "a pair (z_t, t)")
    z, t = as_data(start[0], "z_t"), as_time(process, start[1], "start[1]")
    if z.shape != sizes:
        raise ValueError(f"start has z_t of shape {z.shape}; expected {sizes}, the shape asked for")
    rest = tail(times, t)
    # The step before the last one may be of the whole grid, and begin above t.
    last_var = process.step(rest[:-1], rest[1:], times_before(times, rest[:-1])).last_var
    steps = dataclasses.replace(sampler.steps(process, rest), last_var=last_var)
    return sizes, jnp.asarray(z, jnp.float32), rest, steps


def _placed_run(
    args: tuple[Any, ...], sampler: Sampler, shape: tuple[int, ...], sharding: NamedSharding | None, of: str = "z"
) -> tuple[Array, Array]:
    """`_run`, on any mesh."""
    batch = args[3] if sharding is None else sharding
    # With automatic axes inside, a spec is taken to be of the mesh that the surrounding context names.
    explicit = sharding is not None and is_explicit(sharding.mesh)
    place = spec_of(sharding) if explicit else sharding
    run = partial(_run, sampler=sampler, shape=tuple(shape), sharding=place, of=of)
    return with_automatic_axes(run, args, batch, lambda spec: (spec, PartitionSpec(None, *spec)))


def _checked_step(sampler: Sampler, found: Any, z: Array, memory: Any) -> tuple[Array, Any]:
    """What a step returned; ValueError unless it has the shapes of what the step was given."""
    name = f"{type(sampler).__name__}.step"
    if not isinstance(found, tuple) or len(found) != 2:
        raise ValueError(f"{name} returned a {type(found).__name__}; expected (z_s, memory)")
    if jnp.shape(found[0]) != z.shape:
        raise ValueError(f"{name} returned z_s of shape {jnp.shape(found[0])}; expected that of z_t, {z.shape}")
    before, after = (jax.tree.map(jnp.shape, part) for part in (memory, found[1]))
    if before != after:
        raise ValueError(f"{name} returned a memory of shapes {after}; expected those of `start`, {before}")
    return found


@partial(jit, static_argnames=("sampler", "shape", "sharding", "of"))
def _run(
    key: Key,
    model: Denoiser,
    first_index: Any,
    z: Array | None,
    steps: Step,
    chosen: Any,
    *,
    sampler: Sampler,
    shape: tuple[int, ...],
    sharding: NamedSharding | PartitionSpec | None,
    of: str = "z",
) -> tuple[Array, Array]:
    """(x, frames): the loop.  chosen: the places among the times that are kept, [frames]; () for none."""
    keys, chosen = example_keys(key, first_index, shape[0]), jnp.asarray(chosen)
    count = len(chosen)

    def keep(frames: Array, place: Any, value: Array) -> Array:
        if not count:
            return frames
        slot = jnp.searchsorted(chosen, place)
        slot = jnp.where(chosen[jnp.minimum(slot, count - 1)] == place, slot, count)
        return frames.at[slot].set(value, mode="drop")  # a place that was not chosen has the slot after the last

    def move(carry: tuple[Array, Any, Array], item: tuple[Array, Step]) -> tuple[Any, None]:
        (z, memory, frames), (place, step) = carry, item
        noise = normals(keys, step.draw, shape) if sampler.stochastic else jnp.zeros_like(z)
        if step.rise is not None:
            z = step.rise[0] * z + step.rise[1] * noise
        now = StepInput(z, step, model.denoise(z, jnp.full(shape[:1], step.t)), noise)
        frames = keep(frames, place, now.prediction.x) if of == "x" else frames
        z, memory = _checked_step(sampler, sampler.step(model, now, memory), z, memory)
        frames = keep(frames, place + 1, z) if of == "z" else frames
        return (z, memory, frames), None

    if z is None:  # no step draws with the number 0, so it is free for the noisy end
        z = jnp.hypot(steps.signal_t[0], steps.noise_t[0]) * normals(keys, 0, shape)
    if sharding is not None:
        z = jax.lax.with_sharding_constraint(z, sharding)
    assert z is not None
    frames = jnp.zeros((count, *shape), jnp.float32)
    frames = keep(frames, 0, z) if of == "z" else frames
    (x, _, frames), _ = jax.lax.scan(move, (z, sampler.start(z), frames), (jnp.arange(len(steps.t)), steps))
    return x, frames
