"""Ancestral sampling: each z_s is drawn from the decoder p(z_s | z_t) (Ho et al. 2020, algorithm 2)."""

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.arrays import Batch
from ddpm_jax.forward import posterior
from ddpm_jax.sampling.sampler import Denoise, Sampler, uniform_times
from ddpm_jax.schedule import NoiseSchedule
from ddpm_jax.variance import FixedSmall, Variance


@dataclass(frozen=True)
class Ancestral(Sampler):
    """z_s ~ N(mean of q(z_s | z_t, x predicted), var I); the last step, to s = 0, adds no noise."""

    num_steps: int | None = None
    """Number of steps, evenly spread over the chain; None: every timestep."""
    variance: Variance = field(default_factory=FixedSmall)
    """The decoder's variance: FixedSmall or FixedLarge."""

    def times(self, num_steps: int) -> Int[Any, " steps"]:
        return uniform_times(num_steps, self.num_steps)

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
        mean = posterior(schedule, z_t, denoise(z_t, t).x, t, earlier).mean
        std = jnp.sqrt(self.variance(schedule, t, earlier, z_t))
        last = (earlier == 0).reshape(std.shape)
        return jnp.where(last, mean, mean + std * noise), memory
