"""Between two images: both diffused to the same t, mixed there, and sampled back (Ho et al. 2020, section 4.4).

    z_t = signal_t ((1 - w) x_a + w x_b) + noise_t eps

With shared noise eps is one draw for both images.  With independent noise the mixture (1 - w) eps_a + w eps_b is
divided by its standard deviation, sqrt((1 - w)^2 + w^2): latents of less noise than t stands for would be
sampled back to blurred images.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.arrays import Batch, Key, Predict, check_data, example_keys, normals
from ddpm_jax.check import require
from ddpm_jax.clipping import Clipping
from ddpm_jax.forward import diffuse
from ddpm_jax.sampling.sampler import Sampler, sample
from ddpm_jax.schedule import NoiseSchedule
from ddpm_jax.targets import Eps, Target
from ddpm_jax.variance import FixedSmall, Variance


def interpolate(
    key: Key,
    predict: Predict,
    schedule: NoiseSchedule,
    sampler: Sampler,
    x_a: Batch,
    x_b: Batch,
    t: int,
    weights: Float[np.ndarray, " weights"],
    *,
    shared_noise: bool = True,
    target: Target = Eps(),
    variance: Variance = FixedSmall(),
    clip: bool | Clipping = True,
    first_index: Int[Array, ""] | int = 0,
) -> Float[Array, "weights batch *dims"]:
    """Images on the way from each of x_a to the same place of x_b, one for each weight w in [0, 1].

    t in 1..T: how much is left free; small t mixes pixels, large t mixes what they show.  The noise of a pair is
    the same for every w, that of the encoder and that of a stochastic sampler.
    """
    require("t", t, isinstance(t, int) and 1 <= t <= schedule.num_steps, f"1 to {schedule.num_steps}")
    x_a, x_b, weights = jnp.asarray(x_a), jnp.asarray(x_b), np.asarray(weights)
    check_data(x_a)
    if x_a.shape != x_b.shape:
        raise ValueError(f"x_b has shape {x_b.shape}; expected that of x_a, {x_a.shape}")
    in_range = weights.ndim == 1 and weights.size > 0 and bool(np.all((weights >= 0) & (weights <= 1)))
    require("weights", weights, in_range, "a list of numbers from 0 to 1")
    keys = example_keys(key, first_index, len(x_a))

    # The sampler draws with the indices 0..T.
    eps_a, eps_b = (normals(keys, schedule.num_steps + 1 + i, x_a.shape) for i in (0, 0 if shared_noise else 1))
    images = []
    for w in weights.tolist():
        eps = eps_a if shared_noise else ((1 - w) * eps_a + w * eps_b) / np.hypot(1 - w, w)
        z_t = diffuse(schedule, (1 - w) * x_a + w * x_b, t, eps)
        options = {"target": target, "variance": variance, "clip": clip, "first_index": first_index}
        images.append(sample(key, predict, schedule, sampler, x_a.shape, start=(z_t, t), **options))
    return jnp.stack(images)
