"""Ancestral sampling: each z_s is drawn from p(z_s | z_t) (Ho et al. 2020, algorithm 2)."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.sampling.sampler import Sampler, StepInput


@dataclass(frozen=True)
class Ancestral(Sampler):
    """z_s ~ N(mean of q(z_s | z_t, x predicted), var I); the last step, to clean data, adds no noise."""

    def step(self, model: Denoiser, now: StepInput, memory: Any) -> tuple[Float[Array, "batch *dims"], Any]:
        p = model.normal(now.prediction, now.z_t, now.step)
        return jnp.where(now.step.is_last, p.mean, p.mean + p.std * now.noise), memory
