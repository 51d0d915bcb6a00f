"""Inpainting with a network that was not trained for it (RePaint, Lugmayr et al. 2022, arXiv 2201.09865).

    z_s = mask known + (1 - mask) unknown,   known ~ q(z_s | x),   unknown ~ one step of the sampler    (equation 8)

What is known is diffused anew at each time, so the two parts do not know of each other; going back to the noise
of `jump` steps before and down again, `resamples` times in all, makes them agree (section 4.2, algorithm 1).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ddpm_jax.devices.axes import with_automatic_axes
from ddpm_jax.diffusion.arrays import Batch, Key, Predict, Whole, as_data, example_keys, lookup, normals, type_of_array
from ddpm_jax.diffusion.clipping import Clipping
from ddpm_jax.diffusion.denoiser import Decoder
from ddpm_jax.diffusion.forward import diffuse, step_var
from ddpm_jax.diffusion.grids import times_before
from ddpm_jax.diffusion.schedule import Chain
from ddpm_jax.diffusion.targets import Eps, Target
from ddpm_jax.diffusion.variance import FixedSmall, Variance
from ddpm_jax.errors import require, require_int, require_key
from ddpm_jax.sampling.sampler import Sampler, StepInput

Mask = Bool[type_of_array, "..."]


def repaint_times(times: Int[np.ndarray, " times"], jump: int, resamples: int) -> Int[np.ndarray, " walk"]:
    """The walk over `times` that goes down each stretch of `jump` steps `resamples` times, then takes the step to 0."""
    places, last = [0], len(times) - 2  # there is no way back from 0
    for begin in range(0, last, jump):
        end = min(begin + jump, last)
        down, up = list(range(begin + 1, end + 1)), list(range(end - 1, begin - 1, -1))
        places += (down + up) * (resamples - 1) + down
    return times[[*places, last + 1]]


def inpaint(
    key: Key,
    predict: Predict,
    schedule: Chain,
    sampler: Sampler,
    x: Batch,
    mask: Mask,
    *,
    jump: Whole = 10,
    resamples: Whole = 10,
    target: Target = Eps(),
    variance: Variance = FixedSmall(),
    clip: bool | Clipping = True,
    first_index: Whole = 0,
) -> Float[Array, "batch *dims"]:
    """Draw x where `mask` is False, given x where it is True: [batch, ...], equal to x where it is known.

    mask: bool, of x's shape, or with 1 for some of its axes ([height, width, 1] for one mask for all images).
    sampler: one that keeps no memory from step to step, as Ancestral, Ddim and Heun do.  The network is evaluated about
    `resamples` times for each of the sampler's steps.

    Raises ValueError where the mask does not fit x, or the sampler keeps a memory.
    """
    require_key(key)
    decoder = Decoder.of(predict, schedule, target, variance, clip)
    jump, resamples = require_int("jump", jump, 1), require_int("resamples", resamples, 1)
    mask, x = jnp.asarray(mask), as_data(x, scaled=True).astype(jnp.float32)
    if mask.dtype != bool:
        raise ValueError(f"mask has dtype {mask.dtype}; expected booleans, True where x is known")
    try:
        fits = np.broadcast_shapes(mask.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"mask has shape {mask.shape}; expected that of x, {x.shape}, or one that broadcasts to it")
    require("sampler", sampler, isinstance(sampler, Sampler), "a Sampler, such as Ancestral()")
    memory = jax.tree.leaves(jax.eval_shape(sampler.start, x))
    require("sampler", sampler, not memory, "Ancestral, Ddim or Heun, which keep no memory: the walk goes back in time")
    times = sampler.times(schedule)
    walk = repaint_times(times, jump, resamples)
    args = (key, decoder, x, mask, first_index, jnp.asarray(walk), jnp.asarray(times_before(times, walk[:-1])))
    return with_automatic_axes(partial(_inpaint, sampler=sampler), args, x, lambda spec: spec)


@partial(jax.jit, static_argnames="sampler")
def _inpaint(
    key: Key, decoder: Decoder, x: Array, mask: Array, first_index: Any, walk: Array, later: Array, *, sampler: Sampler
) -> Array:
    keys, schedule = example_keys(key, first_index, len(x)), decoder.schedule

    def down(z: Array, u: Array, t: Array, s: Array, noises: tuple[Array, Array]) -> Array:
        unknown, _ = sampler.step(decoder, StepInput(z, t, s, decoder.denoise(z, t), noises[0], u), ())
        return jnp.where(mask, diffuse(schedule, x, s, noises[1]), unknown)

    def up(z: Array, u: Array, t: Array, s: Array, noises: tuple[Array, Array]) -> Array:
        signal = lookup(schedule.signal, s, x) / lookup(schedule.signal, t, x)
        return signal * z + jnp.sqrt(step_var(schedule, s, t, x)) * noises[0]

    def step(z: Array, item: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        index, u, t, s = item
        falls = s < t
        u, t, s = (jnp.full(len(x), time) for time in (u, t, s))
        noises = (normals(keys, 2 * index, x.shape), normals(keys, 2 * index + 1, x.shape))
        return jax.lax.cond(falls, down, up, z, u, t, s, noises), None

    moves = len(walk) - 1
    start = normals(keys, 2 * moves, x.shape)
    return jax.lax.scan(step, start, (jnp.arange(moves), later, walk[:-1], walk[1:]))[0]
