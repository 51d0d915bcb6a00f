"""Ancestral sampling: each z_s is drawn from the decoder p(z_s | z_t) (Ho et al. 2020, algorithm 2)."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.arrays import Batch
from ddpm_jax.decoder import Decoder
from ddpm_jax.sampling.sampler import Sampler
from ddpm_jax.targets import Prediction


@dataclass(frozen=True)
class Ancestral(Sampler):
    """z_s ~ N(mean of q(z_s | z_t, x predicted), var I); the last step, to s = 0, adds no noise."""

    def step(
        self,
        decoder: Decoder,
        prediction: Prediction,
        z_t: Batch,
        t: Int[Array, " batch"],
        earlier: Int[Array, " batch"],
        noise: Batch,
        memory: Any,
    ) -> tuple[Float[Array, "batch *dims"], Any]:
        mean, std = (p := decoder.normal(prediction, z_t, t, earlier)).mean, p.std
        last = (earlier == 0).reshape(-1, *(1,) * (z_t.ndim - 1))
        return jnp.where(last, mean, mean + std * noise), memory
