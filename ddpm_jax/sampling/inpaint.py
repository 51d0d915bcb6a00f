"""Inpainting with a network that was not trained for it (RePaint, Lugmayr et al. 2022, arXiv 2201.09865).

    z_s = mask known + (1 - mask) unknown,   known ~ q(z_s | x),   unknown ~ one step of the sampler    (equation 8)

The known part is diffused anew at each time, so the two parts do not depend on each other.  Going back by `jump` steps
and down again, `resamples` times in all, makes them consistent (section 4.2, algorithm 1).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from ddpm_jax.devices.axes import with_automatic_axes
from ddpm_jax.diffusion.arrays import (
    Batch,
    Key,
    Whole,
    as_data,
    example_keys,
    normals,
    type_of_array,
)
from ddpm_jax.diffusion.denoiser import Denoiser, check_arguments
from ddpm_jax.diffusion.grids import times_before
from ddpm_jax.diffusion.step import Step
from ddpm_jax.errors import require, require_int, require_part
from ddpm_jax.sampling.sampler import Sampler, StepInput

Mask = Bool[type_of_array, "..."]


def repaint_times(times: Shaped[np.ndarray, " times"], jump: int, resamples: int) -> Shaped[np.ndarray, " walk"]:
    """The walk over `times` that goes down each stretch of `jump` steps `resamples` times, then takes the last one."""
    places, last = [0], len(times) - 2  # there is no way back from clean data
    for begin in range(0, last, jump):
        end = min(begin + jump, last)
        down, up = list(range(begin + 1, end + 1)), list(range(end - 1, begin - 1, -1))
        places += (down + up) * (resamples - 1) + down
    return times[[*places, last + 1]]


def inpaint(
    key: Key,
    model: Denoiser,
    sampler: Sampler,
    x: Batch,
    mask: Mask,
    *,
    jump: Whole = 10,
    resamples: Whole = 10,
    first_index: Whole = 0,
) -> Float[Array, "batch *dims"]:
    """Draw the elements of x whose `mask` is False, given the others.

    The network is evaluated about `resamples` times for each step of the sampler.

    Args:
        key: the key; image i is a function of (key, i).
        model: the denoiser.
        sampler: one that keeps no memory from step to step, such as Ancestral, Ddim or Heun.
        x: the known data, float32 [batch, ...]; its values where mask is False are not used.
        mask: bool, of a shape that broadcasts to x's, such as [height, width, 1].
        jump: the number of steps that the walk goes back at a time.
        resamples: the number of times that each stretch of the walk is taken.
        first_index: the number of the first image in the sequence of `key`.

    Returns:
        float32, shaped like x, and equal to x where mask is True.

    Raises:
        ValueError: the mask does not fit x, or the sampler keeps a memory.
    """
    check_arguments(key, model, first_index)
    jump, resamples = require_int("jump", jump, 1), require_int("resamples", resamples, 1)
    x = as_data(x, scaled=True).astype(jnp.float32)
    dtype = np.dtype(mask.dtype if hasattr(mask, "dtype") else np.asarray(mask).dtype)
    if dtype.kind != "b":
        raise ValueError(f"mask has dtype {dtype}; expected booleans, True where x is known")
    mask = jnp.asarray(mask)
    try:
        fits = np.broadcast_shapes(mask.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"mask has shape {mask.shape}; expected that of x, {x.shape}, or one that broadcasts to it")
    require_part("sampler", sampler, Sampler, "a Sampler, such as Ancestral()")
    memory = jax.tree.leaves(jax.eval_shape(sampler.start, x))
    require("sampler", sampler, not memory, "Ancestral, Ddim or Heun, which keep no memory: the walk goes back in time")
    process = model.process
    times = sampler.times(process)
    plain = sampler.steps(process, times).rise is None
    require("sampler", sampler, plain, "Heun without churn: the walk adds noise of its own")
    walk = repaint_times(times, jump, resamples)
    falls = walk[1:] < walk[:-1]
    # A move up draws from q(z_t | z_s), s < t: the numbers of the step t -> s.
    steps = process.step(np.maximum(walk[:-1], walk[1:]), np.minimum(walk[:-1], walk[1:]), _before(times, walk))
    args = (key, model, x, mask, first_index, jnp.asarray(falls), steps)
    return with_automatic_axes(partial(_inpaint, sampler=sampler), args, x, lambda spec: spec)


def _before(times: Shaped[np.ndarray, " times"], walk: Shaped[np.ndarray, " walk"]) -> Shaped[np.ndarray, " moves"]:
    """For each move, the one of the times above its upper end."""
    return times_before(times, np.maximum(walk[:-1], walk[1:]))


@partial(jax.jit, static_argnames="sampler")
def _inpaint(
    key: Key, model: Denoiser, x: Array, mask: Array, first_index: Any, falls: Array, steps: Step, *, sampler: Sampler
) -> Array:
    keys = example_keys(key, first_index, len(x))

    def down(z: Array, step: Step, noises: tuple[Array, Array]) -> Array:
        prediction = model.denoise(z, jnp.full(len(z), step.t))
        unknown, _ = sampler.step(model, StepInput(z, step, prediction, noises[0]), ())
        return jnp.where(mask, step.signal_s * x + step.noise_s * noises[1], unknown)

    def up(z: Array, step: Step, noises: tuple[Array, Array]) -> Array:
        return step.signal_t / step.signal_s * z + jnp.sqrt(step.forward_var) * noises[0]

    def move(z: Array, item: tuple[Array, Array, Step]) -> tuple[Array, None]:
        index, fall, step = item
        noises = (normals(keys, 2 * index, x.shape), normals(keys, 2 * index + 1, x.shape))
        return jax.lax.cond(fall, down, up, z, step, noises), None

    moves = len(falls)
    start = jnp.hypot(steps.signal_t[0], steps.noise_t[0]) * normals(keys, 2 * moves, x.shape)
    return jax.lax.scan(move, start, (jnp.arange(moves), falls, steps))[0]
