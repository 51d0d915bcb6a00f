"""The training objective: a weighted squared error at a random timestep.

    L = E_{t, eps} [ w(t) || target(x, eps, t) - predict(z_t, t) ||^2 ],   z_t = signal_t x + noise_t eps,
    t uniform on 1..T,  eps ~ N(0, I)                     (Ho et al. 2020, equations 12 and 14)

`draw` makes the random numbers, `loss` uses them: with the same draws the loss is a pure function of
the network.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.arrays import Batch, Key, PerExample, Predict, stream
from ddpm_jax.forward import diffuse
from ddpm_jax.schedule import NoiseSchedule
from ddpm_jax.targets import Eps, Target
from ddpm_jax.weighting import Simple, Weighting, weights


class Draws(NamedTuple):
    """What is random in the loss of a batch: timesteps in 1..T and noise."""

    t: Int[Array, " batch"]
    eps: Float[Array, "batch *dims"]


def draw(key: Key, schedule: NoiseSchedule, shape: tuple[int, ...]) -> Draws:
    """t uniform on 1..T for each example, and eps ~ N(0, I), for a batch of `shape` = [batch, ...]."""
    t = jax.random.randint(stream(key, "t"), shape[:1], 1, schedule.num_steps + 1)
    return Draws(t, jax.random.normal(stream(key, "eps"), shape))


def loss(
    predict: Predict,
    schedule: NoiseSchedule,
    x: Batch,
    draws: Draws,
    target: Target = Eps(),
    weighting: Weighting = Simple(),
) -> PerExample:
    """The weighted squared error of each example, averaged over its elements: float32 [batch].

    Raises ValueError where the network's output is not shaped like x.
    """
    z_t = diffuse(schedule, x, draws.t, draws.eps)
    output = predict(z_t, draws.t)
    if output.shape != x.shape:
        raise ValueError(f"the network returned shape {output.shape} for data of shape {x.shape}; they must be equal")
    error = jnp.asarray(output, jnp.float32) - target.encode(schedule, x, draws.eps, draws.t)
    return weights(weighting, schedule, draws.t, target) * jnp.mean(error**2, axis=range(1, error.ndim))
