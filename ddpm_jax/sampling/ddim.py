"""Denoising diffusion implicit models (Song et al. 2021, arXiv 2010.02502).

    z_s = signal_s x + sqrt(noise_s^2 - var) eps + sqrt(var) noise,           (x, eps) predicted at z_t
    var = eta^2 times the variance of q(z_s | z_t, x)                         (equations 12 and 16)

That variance is noise_s^2 (1 - r) with r = SNR_t / SNR_s, so the factor on eps is computed as

    sqrt(noise_s^2 - var) = noise_s sqrt(1 - eta^2 + eta^2 r)

whose terms are all positive: the difference of two variances would leave few digits of it where r is small.

eta = 0 is deterministic, a first-order solver of the probability-flow ODE; eta = 1 is ancestral
sampling with the small variance.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import root
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.errors import require
from ddpm_jax.sampling.sampler import Sampler, StepInput


@dataclass(frozen=True)
class Ddim(Sampler):
    """Few steps, deterministic by default."""

    num_steps: int | None = 50
    """Number of steps; None: every timestep."""
    eta: float = 0.0
    """Share of the posterior's standard deviation that is added as noise, 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("eta", self.eta, 0 <= self.eta <= 1, "0 (deterministic) to 1 (ancestral)")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(self, model: Denoiser, now: StepInput, memory: Any) -> tuple[Float[Array, "batch *dims"], Any]:
        step, (x, eps, _) = now.step, now.prediction
        direction = step.noise_s * jnp.sqrt(1 - self.eta**2 + self.eta**2 * jnp.exp(-step.gap))
        return step.signal_s * x + direction * eps + self.eta * root(step.var) * now.noise, memory
