"""Denoising diffusion implicit models (Song et al. 2021, arXiv 2010.02502).

    z_s = signal_s x + sqrt(1 - alpha_bar_s - var) eps + sqrt(var) noise,     (x, eps) predicted at z_t
    var = eta^2 times the variance of q(z_s | z_t, x)                         (equations 12 and 16)

That variance is (1 - alpha_bar_s) (1 - r) with r = snr_t / snr_s, so the factor on eps is computed as

    sqrt(1 - alpha_bar_s - var) = noise_s sqrt(1 - eta^2 + eta^2 r)

whose terms are all positive: the difference of two variances would leave few digits of it where r is small.

eta = 0 is deterministic, a first-order solver of the probability-flow ODE; eta = 1 is ancestral
sampling with the small variance.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import lookup, root
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.forward import posterior_weights
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
        process, z_t, (x, eps, _) = model.process, now.z_t, now.prediction
        a, _, var = posterior_weights(process, now.t, now.s, z_t)
        signal_t, signal_s = (lookup(process.signal, time, z_t) for time in (now.t, now.s))
        r = a * signal_t / signal_s
        direction = lookup(process.noise, now.s, z_t) * jnp.sqrt(1 - self.eta**2 + self.eta**2 * r)
        return signal_s * x + direction * eps + self.eta * root(var) * now.noise, memory
