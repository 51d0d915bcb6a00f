"""The radially averaged power spectrum of images: their variance at each spatial frequency.

    power(f) = mean of |F(u, v)|^2 over images, channels and all (u, v) with f - 1/2 <= |(u, v)| < f + 1/2

F is the discrete Fourier transform with the factor 1 / sqrt(height width).  It preserves the sum of squares (Parseval),
and white noise of variance s^2 has power s^2 at every frequency.  f counts waves across the image.
Natural images fall off as about f^-2 (Field 1987, doi 10.1364/JOSAA.4.002379).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion.arrays import Images
from ddpm_jax.errors import require

__all__ = ["Spectrum", "power_spectrum", "rings"]


class Spectrum(NamedTuple):
    """The power of each ring of frequencies."""

    frequency: Int[np.ndarray, " rings"]
    """0, 1, ..., size // 2, in waves across the image; 0 is the mean brightness."""
    power: Float[Array, "*batch rings"]
    """The mean of |F|^2 over the ring, in squared units of the images; [rings], or [batch, rings] for each image."""


def power_spectrum(images: Images, each: bool = False) -> Spectrum:
    """The spectrum of a batch of square images, averaged over channels.

    Frequencies above size // 2, in the corners, are left out.

    Args:
        images: the images.
        each: whether each image has a spectrum of its own; otherwise the spectra are averaged.

    Returns:
        The spectrum.

    Raises:
        ValueError: the images are not square.
    """
    height, width = images.shape[1:3]
    require("images", images.shape, height == width, "square images, [batch, size, size, channels]")
    transform = jnp.fft.fft2(jnp.asarray(images, jnp.float32), axes=(1, 2), norm="ortho")
    power = jnp.mean(jnp.abs(transform) ** 2, axis=3).reshape(len(images), -1)
    ring, count = rings(height), height // 2 + 1
    sums = jax.vmap(lambda one: jax.ops.segment_sum(one, jnp.asarray(ring), count + height))(power)[:, :count]
    mean = sums / np.bincount(ring)[None, :count].astype(np.float32)
    return Spectrum(np.arange(count), mean if each else mean.mean(0))


def rings(size: int) -> Int[np.ndarray, " pixels"]:
    """The ring, |(u, v)| rounded, of each coefficient of the flattened transform of a size x size image."""
    waves = np.fft.fftfreq(size, 1 / size)
    return np.floor(np.hypot(waves[:, None], waves) + 0.5).astype(int).reshape(-1)
