"""Heun's method on the probability-flow ODE (Karras et al. 2022, arXiv 2206.00364, algorithm 1).

In y = z / signal and sigma = noise / signal the flow is dy / dsigma = eps.  Euler's step is DDIM; Heun's averages the
eps at its two ends, a second evaluation, and is of second order:

    z'_s = signal_s x + noise_s eps                                              Euler, eps and x predicted at z_t
    z_s  = z'_s + signal_s (sigma_s - sigma_t) (eps' - eps) / 2                  eps' predicted at z'_s

The last step, to s = 0, is Euler's.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.arrays import lookup
from ddpm_jax.decoder import Decoder
from ddpm_jax.grids import Grid, Karras
from ddpm_jax.sampling.sampler import Moment, Sampler


@dataclass(frozen=True)
class Heun(Sampler):
    """Two network evaluations in each step but the last."""

    num_steps: int | None = 18
    """Number of steps; None: every timestep."""
    grid: Grid = Karras()
    """Which timesteps the steps visit."""

    extra_evaluations: ClassVar[int] = 1

    @property
    def stochastic(self) -> bool:
        return False

    def step(self, decoder: Decoder, now: Moment, memory: Any) -> tuple[Float[Array, "batch *dims"], Any]:
        z_t, t, earlier, (x, eps, _) = now.z_t, now.t, now.earlier, now.prediction
        schedule = decoder.schedule
        signal_t, signal_s = (lookup(schedule.signal, time, z_t) for time in (t, earlier))
        noise_t, noise_s = (lookup(schedule.noise, time, z_t) for time in (t, earlier))
        euler = signal_s * x + noise_s * eps

        def corrected() -> Array:
            eps_there = decoder.denoise(euler, jnp.maximum(earlier, 1)).eps
            heun = euler + 0.5 * (noise_s - signal_s * noise_t / signal_t) * (eps_there - eps)
            return jnp.where(noise_s > 0, heun, euler)

        return jax.lax.cond(jnp.any(earlier > 0), corrected, lambda: euler), memory
