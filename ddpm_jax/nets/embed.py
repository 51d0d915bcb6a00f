"""The sinusoidal embedding of a timestep (Vaswani et al. 2017, as in Ho et al. 2020, appendix B)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def timestep_embedding(
    position: Int[Array, " batch"] | Float[Array, " batch"], size: int, shift: float = 1.0, cos_first: bool = False
) -> Float[Array, "batch size"]:
    """[sin(position f_i), cos(position f_i)], i = 0..half-1, with f_i = 10000^(-i / (half - shift)), half = size // 2.

    shift 1: frequencies fall from 1 to exactly 1/10000, both included, as in the published weights.  cos_first: the
    two halves change places.  An odd size ends in a 0.
    """
    half = size // 2
    divisor = half - shift if half > 1 else 1  # a single frequency is 1
    frequency = jnp.exp(-math.log(10_000.0) / divisor * jnp.arange(half, dtype=jnp.float32))
    angle = position.astype(jnp.float32)[:, None] * frequency[None]
    halves = [jnp.sin(angle), jnp.cos(angle)]
    embedding = jnp.concatenate(halves[::-1] if cos_first else halves, axis=1)
    return jnp.pad(embedding, ((0, 0), (0, size % 2)))
