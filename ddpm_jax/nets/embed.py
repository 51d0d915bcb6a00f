"""The sinusoidal embedding of a timestep (Vaswani et al. 2017, as in Ho et al. 2020, appendix B)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def timestep_embedding(
    position: Int[Array, " batch"] | Float[Array, " batch"], size: int
) -> Float[Array, "batch size"]:
    """[sin(position f_i), cos(position f_i)], i = 0..half-1, with f_i = 10000^(-i / (half - 1)), half = size // 2.

    Frequencies fall from 1 to exactly 1/10000, both included, as in the published weights; an odd size
    ends in a 0.
    """
    half = size // 2
    frequency = jnp.exp(-math.log(10_000.0) / max(half - 1, 1) * jnp.arange(half, dtype=jnp.float32))
    angle = position.astype(jnp.float32)[:, None] * frequency
    embedding = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)
    return jnp.pad(embedding, ((0, 0), (0, size % 2)))
