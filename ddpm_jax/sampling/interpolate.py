"""Between two images: both diffused to the same t, mixed there, and sampled back (Ho et al. 2020, section 4.4).

    z_t = signal_t ((1 - w) x_a + w x_b) + noise_t eps

With shared noise eps is one draw for both images.  With independent noise the mixture (1 - w) eps_a + w eps_b is
divided by its standard deviation, sqrt((1 - w)^2 + w^2): latents of less noise than t stands for would be
sampled back to blurred images.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Batch, Key, Predict, Whole, as_data, example_keys, normals
from ddpm_jax.diffusion.clipping import Clipping
from ddpm_jax.diffusion.forward import diffuse
from ddpm_jax.diffusion.schedule import Chain, check_built
from ddpm_jax.diffusion.targets import Eps, Target
from ddpm_jax.diffusion.variance import FixedSmall, Variance
from ddpm_jax.errors import as_int, as_numbers, require, require_key
from ddpm_jax.sampling.sampler import Sampler, sample


def interpolate(
    key: Key,
    predict: Predict,
    schedule: Chain,
    sampler: Sampler,
    x_a: Batch,
    x_b: Batch,
    t: Whole,
    weights: Float[np.ndarray, " weights"],
    *,
    shared_noise: bool = True,
    target: Target = Eps(),
    variance: Variance = FixedSmall(),
    clip: bool | Clipping = True,
    first_index: Whole = 0,
) -> Float[Array, "weights batch *dims"]:
    """Images on the way from each of x_a to the same place of x_b, one for each weight w in [0, 1].

    t in 1..T: how much is left free; small t mixes pixels, large t mixes what they show.  The noise of a pair is
    the same for every w, that of the encoder and that of a stochastic sampler.
    """
    require_key(key)
    check_built(schedule)
    level = as_int(t)
    require("t", t, level is not None and 1 <= level <= schedule.num_steps, f"1 to {schedule.num_steps}")
    assert level is not None
    x_a, x_b = as_data(x_a, "x_a", scaled=True), as_data(x_b, "x_b", scaled=True)
    if x_a.shape != x_b.shape:
        raise ValueError(f"x_b has shape {x_b.shape}; expected that of x_a, {x_a.shape}")
    levels = as_numbers("weights", weights)
    in_range = levels.ndim == 1 and levels.size > 0 and bool(np.all((levels >= 0) & (levels <= 1)))
    require("weights", weights, in_range, "a list of numbers from 0 to 1")
    keys = example_keys(key, first_index, len(x_a))

    # The sampler draws with the indices 0..T.
    eps_a, eps_b = (normals(keys, schedule.num_steps + 1 + i, x_a.shape) for i in (0, 0 if shared_noise else 1))
    images = []
    for w in levels.tolist():
        eps = eps_a if shared_noise else ((1 - w) * eps_a + w * eps_b) / np.hypot(1 - w, w)
        z_t = diffuse(schedule, (1 - w) * x_a + w * x_b, level, eps)
        options = {"target": target, "variance": variance, "clip": clip, "first_index": first_index}
        images.append(sample(key, predict, schedule, sampler, x_a.shape, start=(z_t, level), **options))
    return jnp.stack(images)
