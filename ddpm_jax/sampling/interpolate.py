"""Between two images: both diffused to the same t, mixed there, and sampled back (Ho et al. 2020, section 4.4).

    z_t = signal_t ((1 - w) x_a + w x_b) + noise_t eps

With shared noise eps is one draw for both images.  With independent noise the mixture (1 - w) eps_a + w eps_b is
divided by its standard deviation, sqrt((1 - w)^2 + w^2): latents of less noise than t stands for would be
sampled back to blurred images.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Batch, Key, Time, Whole, as_data, example_keys, normals
from ddpm_jax.diffusion.denoiser import Denoiser, check_arguments
from ddpm_jax.diffusion.forward import diffuse
from ddpm_jax.diffusion.grids import as_time
from ddpm_jax.errors import as_numbers, require
from ddpm_jax.sampling.sampler import Sampler, sample


def interpolate(
    key: Key,
    model: Denoiser,
    sampler: Sampler,
    x_a: Batch,
    x_b: Batch,
    t: Time,
    weights: Float[np.ndarray, " weights"],
    *,
    shared_noise: bool = True,
    first_index: Whole = 0,
) -> Float[Array, "weights batch *dims"]:
    """Images between each of x_a and the same row of x_b, one for each weight w.

    Args:
        key: the key; the noise of a pair is the same for every w.
        model: the denoiser.
        sampler: the sampler.
        x_a: the images at w = 0, float32 [batch, ...].
        x_b: the images at w = 1, shaped like x_a.
        t: how far both are diffused, in 1..T for a chain; a small t mixes pixels, a large t mixes content.
        weights: numbers in [0, 1].
        shared_noise: whether both images get the same noise.
        first_index: the number of the first pair in the sequence of `key`.

    Returns:
        float32 [weights, batch, ...].

    Raises:
        ValueError: an argument has the wrong type, shape or range.
    """
    check_arguments(key, model, first_index)
    process = model.process
    level = as_time(process, t)
    x_a, x_b = as_data(x_a, "x_a", scaled=True), as_data(x_b, "x_b", scaled=True)
    if x_a.shape != x_b.shape:
        raise ValueError(f"x_b has shape {x_b.shape}; expected that of x_a, {x_a.shape}")
    levels = as_numbers("weights", weights)
    in_range = levels.ndim == 1 and levels.size > 0 and bool(np.all((levels >= 0) & (levels <= 1)))
    require("weights", weights, in_range, "a list of numbers from 0 to 1")
    keys = example_keys(key, first_index, len(x_a))

    # The sampler draws with the numbers 0..T.  In continuous time it draws with 0, with 1 at t = 0, and above 2^23.
    first = process.last + 1 if process.is_chain else 2
    eps_a, eps_b = (normals(keys, first + i, x_a.shape) for i in (0, 0 if shared_noise else 1))
    images = []
    for w in levels.tolist():
        eps = eps_a if shared_noise else ((1 - w) * eps_a + w * eps_b) / np.hypot(1 - w, w)
        z_t = diffuse(process, (1 - w) * x_a + w * x_b, level, eps)
        images.append(sample(key, model, sampler, x_a.shape, start=(z_t, level), first_index=first_index))
    return jnp.stack(images)
