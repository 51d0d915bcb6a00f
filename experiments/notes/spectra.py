"""What the spectral note computes with: powers of rings of frequencies, the best filter, images of a given spectrum."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import forward, schedule
from ddpm_jax.metrics.spectrum import power_spectrum, rings

SCHEDULE = schedule.Cosine().build()
SNR = np.asarray(SCHEDULE.snr(np.arange(SCHEDULE.num_steps + 1)), np.float64)
# The spectrum of photographs: the test split of CIFAR-10, recompressed as JPEG of quality 75, about its mean image.
# fmt: off
PHOTOGRAPHS = np.array([
    75.378, 10.1303, 2.5872, 1.0518, 0.4417, 0.2652, 0.1534, 0.1051, 0.0707,
    0.0456, 0.0349, 0.0235, 0.0179, 0.0119, 0.0089, 0.0077, 0.0044,
])
# fmt: on


@jax.jit
def power_of(images: Any) -> Any:
    """The power of each ring of each image, [images, rings]."""
    return power_spectrum(images, each=True).power


@jax.jit
def power_at(key: Any, images: Any, t: Any) -> Any:
    """The same of the images' z_t."""
    return power_of(forward.diffuse(SCHEDULE, images, t, jax.random.normal(key, images.shape)))


def wiener(power: Any, z_t: Any, t: Any) -> Any:
    """E[x | z_t] for normal x of mean 0 whose frequencies are independent: each has its own gain."""
    gain = SCHEDULE.snr(t)[:, None, None, None] * power
    gain = gain / (1 + gain) / SCHEDULE.signal(t)[:, None, None, None]
    return jnp.fft.ifft2(gain * jnp.fft.fft2(z_t, axes=(1, 2)), axes=(1, 2)).real


def spread(power: Any) -> jax.Array:
    """A power for each ring as one for each coefficient of the transform, [size, size, 1]; corners go on as f^-2."""
    size = 2 * (len(power) - 1)
    ring = rings(size).reshape(size, size, 1)
    beyond = power[-1] * (2 / size * np.maximum(ring, 1)) ** -2.0
    return jnp.where(ring < len(power), jnp.asarray(power)[np.minimum(ring, len(power) - 1)], beyond)


@partial(jax.jit, static_argnames="count")
def gaussian_images(key: Any, power: Any, count: int) -> jax.Array:
    """Normal images with this power in each ring, independent frequencies and mean 0."""
    size = 2 * (len(power) - 1)
    white = jnp.fft.fft2(jax.random.normal(key, (count, size, size, 1)), axes=(1, 2))
    return jnp.fft.ifft2(jnp.sqrt(spread(power)) * white, axes=(1, 2)).real


def half_way(power: np.ndarray, t: np.ndarray) -> np.ndarray:
    """log snr at which each ring of predicted x has half the power it ends with; power: [times, rings], t falling."""
    share = np.maximum(power[:-1] / power[-1], 1e-6)
    logit = np.log(share / np.maximum(1 - share, 1e-6))  # linear in log snr where x is normal
    log_snr = np.log(SNR[t[:-1]])
    return np.array([np.interp(0, np.maximum.accumulate(ring), log_snr) for ring in logit.T])


def crossing(power: np.ndarray) -> float:
    """The frequency at which a falling spectrum, given for f = 1, 2, ..., passes 1: along straight lines in logs."""
    falling = np.minimum.accumulate(np.maximum(power, 1e-6))
    return float(np.exp(np.interp(0, -np.log(falling), np.log(np.arange(1, len(power) + 1)))))


@jax.jit
def common_power(images: Any, others: Any) -> Any:
    """Re F_x conj(F_y) of each pair of images, a mean over each ring, [images, rings]."""
    return power_of((images + others) / 2) - power_of((images - others) / 2)
