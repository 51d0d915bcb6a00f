"""Images between bytes and numbers.

    x = pixels / 127.5 - 1                           pixels in 0..255 to x in [-1, 1]
    pixels = round(127.5 (x + 1)), cut to 0..255     its inverse: all 256 values return exactly

Both run inside `jit`, so bytes (a quarter of the floats) cross to the accelerator.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ddpm_jax.diffusion.arrays import Images, Key, Pixels


def to_unit(pixels: Pixels) -> Float[Array, "batch height width channels"]:
    """x in [-1, 1], float32, of pixels 0..255."""
    return (2.0 * jnp.asarray(pixels, jnp.float32) - 255.0) / 255.0  # so that 255 becomes 1 exactly, under jit too


def to_pixels(x: Images) -> UInt8[Array, "batch height width channels"]:
    """The nearest of the pixels 0..255; x outside [-1, 1] becomes 0 or 255."""
    return jnp.clip(jnp.round(127.5 * (jnp.asarray(x, jnp.float32) + 1.0)), 0, 255).astype(jnp.uint8)


def random_flip(key: Key, x: Images | Pixels) -> Array:
    """Each image mirrored left to right with probability 1/2.

    One draw for the whole batch: for a global batch, example i is flipped alike on any mesh.
    """
    flip = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
    return jnp.where(flip, x[:, :, ::-1], x)
