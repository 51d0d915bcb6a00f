"""What a sampler is, and the loop that runs one: a `lax.scan` over pairs of timesteps (t, s), s < t.

    z_T ~ N(0, I);   for T = t_0 > t_1 > ... > t_K = 0:   z_{t_k} = step(z_{t_{k-1}});   x = z_0

Memory does not grow with the number of steps.  Each image has its own key, and each of its draws its own
timestep: image i depends on (key, i) only, whatever the batch.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ddpm_jax.devices.axes import is_explicit, spec_of, with_automatic_axes
from ddpm_jax.devices.compiler import jit
from ddpm_jax.diffusion.arrays import Batch, Key, Whole, as_data, example_keys, normals
from ddpm_jax.diffusion.denoiser import Denoiser, check_arguments
from ddpm_jax.diffusion.grids import Grid, Uniform, tail, times_before
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.targets import Prediction
from ddpm_jax.errors import as_int, check_fields, require, require_int, require_part, require_shape

BATCH_SHAPE = "(batch, ...) with every size at least 1"


class StepInput(NamedTuple):
    """What one step of a sampler, from t to s < t, is computed from."""

    z_t: Float[Array, "batch *dims"]
    t: Int[Array, " batch"]
    s: Int[Array, " batch"]
    prediction: Prediction
    """model.denoise(z_t, t)."""
    noise: Float[Array, "batch *dims"]
    """~ N(0, I); zeros if the sampler is not `stochastic`."""
    u: Int[Array, " batch"] | None = None
    """The time before t in the chain (t itself in the first step), for `Denoiser.normal`."""


@dataclass(frozen=True)
class Sampler:
    """A grid of times and one step; subclasses are frozen dataclasses that give the step."""

    num_steps: int | None = None
    """Number of steps; None: every timestep."""
    grid: Grid = Uniform()
    """Which timesteps the steps visit."""

    extra_evaluations: ClassVar[int] = 0
    """Network evaluations of a step beyond the one at its beginning; the last step has none."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_steps is not None:
            require_int("num_steps", self.num_steps, 1, "None or a whole number, at least 1")
        require("grid", self.grid, isinstance(self.grid, Grid), "a Grid, such as Uniform() or Given((999, 500))")

    def times(self, process: Process) -> Int[np.ndarray, " times"]:
        """The timesteps visited: falling, the last one 0."""
        return self.grid.times(process, self.num_steps)

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
    t: Int[Array, " frames"]
    """The times of the frames, falling."""
    frames: Float[Array, "frames batch *dims"]
    """z_t, from z_T to z_0 = x; or the x predicted at z_t, from the first step to the last."""


def sample(
    key: Key,
    model: Denoiser,
    sampler: Sampler,
    shape: tuple[Whole, ...],
    *,
    start: tuple[Batch, Whole] | None = None,
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
        start: (z_t, t), where to begin instead of z_T ~ N(0, I): z_t of `shape`, and t in 1..T.  The sampler then
            visits t and those of its times that are below t.
        first_index: the number of the first image in the sequence of `key`.
        sharding: how the batch is placed on a mesh of devices; None for the default device.

    Returns:
        x, float32 of `shape`.

    Raises:
        ValueError: an argument has the wrong type or shape, or the sampler's times do not fit the process.
    """
    shape = _checked(key, model, shape, first_index)
    z, times, before = _begin(model, sampler, shape, start, sharding)
    return _placed_run((key, model, first_index, z, times, before, ()), sampler, shape, sharding)[0]


def sample_path(
    key: Key,
    model: Denoiser,
    sampler: Sampler,
    shape: tuple[Whole, ...],
    frames: Whole,
    *,
    of: Literal["z", "x"] = "z",
    start: tuple[Batch, Whole] | None = None,
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
    shape = _checked(key, model, shape, first_index)
    z, times, before = _begin(model, sampler, shape, start, sharding)
    require("of", of, of in ("z", "x"), '"z" or "x"')
    places = len(times) if of == "z" else len(times) - 1
    frames = require_int("frames", frames, 1)
    require("frames", frames, frames <= places, f"1 to {places}, as the sampler takes {len(times) - 1} steps")
    chosen = np.rint(np.linspace(0, places - 1, frames)).astype(np.int32)
    x, path = _placed_run((key, model, first_index, z, times, before, chosen), sampler, shape, sharding, of)
    return Path(x, jnp.asarray(times[chosen]), path)


def _checked(key: Key, model: Denoiser, shape: tuple[Whole, ...], first_index: Whole) -> tuple[int, ...]:
    """The shape as ints; raises before anything is compiled."""
    check_arguments(key, model, first_index)
    sizes = require_shape("shape", shape, BATCH_SHAPE)
    require("shape", shape, len(sizes) > 0, BATCH_SHAPE)
    return sizes


def _begin(
    model: Denoiser,
    sampler: Sampler,
    shape: tuple[int, ...],
    start: tuple[Batch, Whole] | None,
    sharding: NamedSharding | None,
) -> tuple[Batch | None, Int[np.ndarray, " times"], Int[np.ndarray, " steps"]]:
    """(z to begin with or None, times, the time before each step's t); raises before anything is compiled."""
    require_part("sampler", sampler, Sampler, "a Sampler, such as Ddim(num_steps=50)")
    placed = sharding is None or isinstance(sharding, NamedSharding)
    require("sharding", sharding, placed, "None or a NamedSharding, such as mesh.by_example(mesh)")
    if sharding is not None and math.prod(shape[:1]) % _parts(sharding):
        raise ValueError(f"shape is {shape}, whose batch does not divide over the devices of {sharding}")
    times = sampler.times(model.process)
    if start is None:
        return None, times, times_before(times, times[:-1])
    require("start", type(start).__name__, isinstance(start, tuple) and len(start) == 2, "a pair (z_t, t)")
    z, t = as_data(start[0], "z_t"), as_int(start[1])
    in_chain = t is not None and 1 <= t <= model.process.num_steps
    require("start", start[1], in_chain, f"(z_t, t) with a whole t in 1..{model.process.num_steps}")
    assert t is not None
    if tuple(z.shape) != tuple(shape):
        raise ValueError(f"start has z_t of shape {tuple(z.shape)}; expected {tuple(shape)}, the shape asked for")
    rest = tail(times, t)
    return jnp.asarray(z, jnp.float32), rest, times_before(times, rest[:-1])


def _parts(sharding: NamedSharding) -> int:
    """Into how many parts the batch is cut."""
    spec: Any = sharding.spec
    first = spec[0] if len(spec) else ()
    names = (first,) if isinstance(first, str) else tuple(first or ())
    return math.prod(sharding.mesh.shape[name] for name in names)


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
    times: Any,
    before: Any,
    chosen: Any,
    *,
    sampler: Sampler,
    shape: tuple[int, ...],
    sharding: NamedSharding | PartitionSpec | None,
    of: str = "z",
) -> tuple[Array, Array]:
    """(x, frames): the loop.  chosen: the places among the times that are kept, [frames]; () for none."""
    keys = example_keys(key, first_index, shape[0])
    count = len(chosen)

    def keep(frames: Array, place: Any, value: Array) -> Array:
        if not count:
            return frames
        slot = jnp.searchsorted(chosen, place)
        slot = jnp.where(chosen[jnp.minimum(slot, count - 1)] == place, slot, count)
        return frames.at[slot].set(value, mode="drop")  # a place that was not chosen has the slot after the last

    def step(carry: tuple[Array, Any, Array], item: tuple[Array, Array, Array, Array]) -> tuple[Any, None]:
        z, memory, frames = carry
        place, before, t, s = item
        noise = normals(keys, t, shape) if sampler.stochastic else jnp.zeros_like(z)
        before, t, s = (jnp.full(shape[:1], time) for time in (before, t, s))
        now = StepInput(z, t, s, model.denoise(z, t), noise, before)
        frames = keep(frames, place, now.prediction.x) if of == "x" else frames
        z, memory = _checked_step(sampler, sampler.step(model, now, memory), z, memory)
        frames = keep(frames, place + 1, z) if of == "z" else frames
        return (z, memory, frames), None

    times, chosen = jnp.asarray(times), jnp.asarray(chosen)
    z = normals(keys, 0, shape) if z is None else z  # no step draws at t = 0, so this key is free for z_T
    if sharding is not None:
        z = jax.lax.with_sharding_constraint(z, sharding)
    assert z is not None
    frames = jnp.zeros((count, *shape), jnp.float32)
    frames = keep(frames, 0, z) if of == "z" else frames
    steps = (jnp.arange(len(times) - 1), jnp.asarray(before), times[:-1], times[1:])
    (x, _, frames), _ = jax.lax.scan(step, (z, sampler.start(z), frames), steps)
    return x, frames
