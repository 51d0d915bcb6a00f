"""Denoising diffusion implicit models (Song et al. 2021, arXiv 2010.02502).

    z_s = signal_s x + sqrt(1 - alpha_bar_s - var) eps + sqrt(var) noise,     (x, eps) predicted at z_t
    var = eta^2 times the variance of q(z_s | z_t, x)                         (equations 12 and 16)

eta = 0 is deterministic, a first-order solver of the probability-flow ODE; eta = 1 is ancestral
sampling with the small variance.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float

from ddpm_jax.arrays import lookup, root
from ddpm_jax.check import require
from ddpm_jax.decoder import Decoder
from ddpm_jax.forward import posterior_weights
from ddpm_jax.sampling.sampler import Moment, Sampler


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

    def step(self, decoder: Decoder, now: Moment, memory: Any) -> tuple[Float[Array, "batch *dims"], Any]:
        z_t, t, earlier, (x, eps, _), noise = now
        schedule = decoder.schedule
        var = self.eta**2 * posterior_weights(schedule, t, earlier, z_t)[2]
        direction = root(lookup(schedule.noise_var, earlier, z_t) - var) * eps
        return lookup(schedule.signal, earlier, z_t) * x + direction + root(var) * noise, memory
