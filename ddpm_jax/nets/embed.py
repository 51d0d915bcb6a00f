"""What a network sees of t: a label, and its sinusoidal embedding (Vaswani et al. 2017; Ho et al. 2020, appendix B)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from ddpm_jax.diffusion.arrays import Batch, Time, per_example
from ddpm_jax.diffusion.process import Process


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


def seen(process: Process | None, z_t: Batch, t: Time) -> tuple[Float[Array, "batch *dims"], Shaped[Array, " batch"]]:
    """(z_t, t) as a network sees them: scaled, and as a label, which counts the timesteps of a chain from 0.

    Args:
        process: the forward process; None for any chain.
        z_t: the latent, float32 [batch, ...].
        t: [batch] or one for all.
    """
    t = jnp.broadcast_to(jnp.asarray(t), z_t.shape[:1])
    if process is None:
        return jnp.asarray(z_t), t - 1
    return per_example(process.input_scale(t), z_t) * z_t, process.label(t)
