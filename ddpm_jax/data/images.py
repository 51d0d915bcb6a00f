"""Conversion of images between bytes and floats, and their augmentation.

    x = pixels / 127.5 - 1                           pixels in 0..255 to x in [-1, 1]
    pixels = round(127.5 (x + 1)), cut to 0..255     its inverse, exact for all 256 values

Both run inside `jit`, so bytes (a quarter of the size of floats) are sent to the accelerator.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ddpm_jax.diffusion.arrays import Images, Key, Pixels

__all__ = ["random_flip", "to_pixels", "to_unit"]


def to_unit(pixels: Pixels) -> Float[Array, "batch height width channels"]:
    """x in [-1, 1], float32, of pixels 0..255."""
    return (2.0 * jnp.asarray(pixels, jnp.float32) - 255.0) / 255.0  # 255 becomes exactly 1, also under jit


def to_pixels(x: Images) -> UInt8[Array, "batch height width channels"]:
    """The nearest pixels 0..255 of x; values outside [-1, 1] become 0 or 255."""
    return jnp.clip(jnp.round(127.5 * (jnp.asarray(x, jnp.float32) + 1.0)), 0, 255).astype(jnp.uint8)


def random_flip(key: Key, x: Images | Pixels) -> Array:
    """Mirror each image left to right with probability 1/2.

    Args:
        key: the key of the draw.
        x: the images of the global batch; the flip of image i does not depend on the mesh.

    Returns:
        The images, some of them mirrored.
    """
    flip = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
    return jnp.where(flip, x[:, :, ::-1], x)
