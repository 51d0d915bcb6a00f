"""What a sampler is, and the loop that runs one: a `lax.scan` over pairs of timesteps (t, s), s < t.

    z_T ~ N(0, I);   for T = t_0 > t_1 > ... > t_K = 0:   z_{t_k} = step(z_{t_{k-1}});   x = z_0

Memory does not grow with the number of steps.  Each image has its own key, and each of its draws its own
timestep: image i depends on (key, i) only, whatever the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from ddpm_jax.arrays import Batch, Key, Predict, example_keys
from ddpm_jax.check import require
from ddpm_jax.forward import noise_between
from ddpm_jax.schedule import NoiseSchedule
from ddpm_jax.targets import Eps, Prediction, Target

Denoise = Callable[[Any, Any], Prediction]


@dataclass(frozen=True)
class Sampler:
    """A grid of times and one step; subclasses are frozen dataclasses that give both."""

    def times(self, num_steps: int) -> Int[np.ndarray, " steps"]:
        """The timesteps visited in a chain of `num_steps` = T: falling, from T to 0, both included."""
        raise NotImplementedError

    @property
    def stochastic(self) -> bool:
        """Whether `step` uses its noise; where it does not, none is drawn."""
        return True

    def start(self, z: Batch) -> Any:
        """What the first step is given as `memory`: any pytree of arrays (multistep methods keep one)."""
        return ()

    def step(
        self,
        denoise: Denoise,
        schedule: NoiseSchedule,
        z_t: Batch,
        t: Int[Array, " batch"],
        earlier: Int[Array, " batch"],
        noise: Batch,
        memory: Any,
    ) -> tuple[Float[Array, "batch *dims"], Any]:
        """z at the time `earlier` < t, and the memory for the next step.

        denoise(z, t) predicts (x, eps); noise ~ N(0, I), shaped like z_t (zeros if not `stochastic`).
        """
        raise NotImplementedError


def uniform_times(num_steps: int, sampler_steps: int | None) -> Int[np.ndarray, " steps"]:
    """`sampler_steps` equal steps (up to rounding) from T = num_steps to 0; None means all T of them.

    Raises ValueError where more steps are asked for than the chain has.
    """
    count = num_steps if sampler_steps is None else sampler_steps
    require("num_steps", count, 1 <= count <= num_steps, f"1 to {num_steps}, the number of steps of the schedule")
    return np.rint(np.linspace(num_steps, 0, count + 1)).astype(np.int32)


def sample(
    key: Key,
    predict: Predict,
    schedule: NoiseSchedule,
    sampler: Sampler,
    shape: tuple[int, ...],
    *,
    target: Target = Eps(),
    clip: bool = True,
    first_index: Int[Array, ""] | int = 0,
    sharding: NamedSharding | None = None,
) -> Float[Array, "batch *dims"]:
    """Draw a batch of x, float32 [batch, ...] = `shape`.

    predict(z_t, t): the network, float32 [batch, ...] and int32 [batch] to an output that `target`
    decodes.  clip: whether each predicted x is clipped to [-1, 1].  first_index: the images are number
    first_index, first_index + 1, ... of the sequence that `key` stands for.  sharding: how the batch lies on
    a mesh of devices, None for the default device.

    Compiled once for each (sampler, shape, target, clip): pass the same `predict` object again, or one
    that is a pytree such as `net.bind(params)`, and the compiled program is used again.
    """
    if not shape or any(size < 1 for size in shape):
        raise ValueError(f"shape is {shape}; expected (batch, ...) with every size at least 1")
    sampler.times(schedule.num_steps)  # a bad grid is an error here, before anything is compiled
    if jax.tree_util.all_leaves([predict]):
        predict = jax.tree_util.Partial(predict)
    return _sample(
        key,
        predict,
        schedule,
        first_index,
        sampler=sampler,
        shape=tuple(shape),
        target=target,
        clip=clip,
        sharding=sharding,
    )


@partial(jax.jit, static_argnames=("sampler", "shape", "target", "clip", "sharding"))
def _sample(
    key: Key,
    predict: Any,
    schedule: NoiseSchedule,
    first_index: Any,
    *,
    sampler: Sampler,
    shape: tuple[int, ...],
    target: Target,
    clip: bool,
    sharding: NamedSharding | None,
) -> Array:
    keys = example_keys(key, first_index, shape[0])

    def normal(t: Any) -> Array:
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, t), shape[1:]))(keys)

    def denoise(z: Array, t: Array) -> Prediction:
        output = jnp.asarray(predict(z, t), jnp.float32)
        if output.shape != shape:
            raise ValueError(f"the network returned shape {output.shape} for latents of shape {shape}; must be equal")
        prediction = target.decode(schedule, output, z, t)
        if not clip:
            return prediction
        x = jnp.clip(prediction.x, -1.0, 1.0)
        return Prediction(x, noise_between(schedule, z, x, t))

    def step(carry: tuple[Array, Any], pair: tuple[Array, Array]) -> tuple[tuple[Array, Any], None]:
        z, memory = carry
        t, earlier = (jnp.full(shape[:1], time) for time in pair)
        noise = normal(pair[0]) if sampler.stochastic else jnp.zeros_like(z)
        return sampler.step(denoise, schedule, z, t, earlier, noise, memory), None

    times = jnp.asarray(sampler.times(schedule.num_steps))
    z = normal(0)  # no step draws at t = 0, so this key is free for z_T
    if sharding is not None:
        z = jax.lax.with_sharding_constraint(z, sharding)
    (x, _), _ = jax.lax.scan(step, (z, sampler.start(z)), (times[:-1], times[1:]))
    return x
