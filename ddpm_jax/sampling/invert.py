"""From data to the noise that DDIM turns into it (Song et al. 2021, arXiv 2010.02502, section 5.4).

Divided by hypot(signal, noise), z follows the process whose (signal, noise) is a point of the unit circle.  A step of
DDIM turns it by the angle delta from t to s, and z with it (Salimans & Ho 2022, arXiv 2202.00512, appendix D), with
v = signal eps - noise x as everywhere:

    z_s = cos(delta) z_t - sin(delta) v(z_t, t)        so        z_t = (z_s + sin(delta) v(z_t, t)) / cos(delta)

where z_t also stands on the right-hand side.  One substitution, v taken at z_s, gives the usual inversion, exact to
first order in the step; repeated, it converges to the exact inverse wherever the right-hand side contracts.  That it
does for steps that are not too long: v changes slowly with z at any noise, where eps does not at high noise, and x
not at low.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.devices.axes import with_automatic_axes
from ddpm_jax.diffusion.arrays import Batch, Whole, as_data
from ddpm_jax.diffusion.denoiser import Denoiser, check_denoiser
from ddpm_jax.diffusion.step import Step
from ddpm_jax.errors import require, require_int
from ddpm_jax.sampling.ddim import Ddim
from ddpm_jax.sampling.sampler import Sampler


def invert(model: Denoiser, sampler: Sampler, x: Batch, *, iterations: Whole = 1) -> Float[Array, "batch *dims"]:
    """z at the noisy end, or the first of the sampler's times, from which `sampler` without clipping draws x.

    Args:
        model: the denoiser; its clipping is ignored.
        sampler: a Ddim with eta = 0.
        x: the data, float32 [batch, ...].
        iterations: the number of network evaluations in each step.  1 is the usual inversion.  More converge to the
            exact inverse if the steps are short enough, and diverge if they are not.

    Returns:
        float32, shaped like x.

    Raises:
        ValueError: the sampler is another one, which cannot be inverted.
    """
    check_denoiser(model)
    deterministic = isinstance(sampler, Ddim) and sampler.eta == 0
    require("sampler", sampler, deterministic, "a Ddim with eta=0: a sampler that adds noise cannot be inverted")
    iterations = require_int("iterations", iterations, 1)
    steps = sampler.steps(model.process, sampler.times(model.process))
    x = as_data(x, scaled=True).astype(jnp.float32)
    run = partial(_invert, iterations=iterations)
    return with_automatic_axes(run, (model.unclipped, x, steps), x, lambda spec: spec)


@partial(jax.jit, static_argnames="iterations")
def _invert(model: Denoiser, x: Array, steps: Step, *, iterations: int) -> Array:
    def back(z_s: Array, step: Step) -> tuple[Array, None]:
        scale_t, scale_s = jnp.hypot(step.signal_t, step.noise_t), jnp.hypot(step.signal_s, step.noise_s)
        signal_t, noise_t = step.signal_t / scale_t, step.noise_t / scale_t
        signal_s, noise_s = step.signal_s / scale_s, step.noise_s / scale_s
        sin, cos = noise_t * signal_s - signal_t * noise_s, signal_t * signal_s + noise_t * noise_s

        def substitute(_: Any, z_t: Array) -> Array:
            x, eps, _ = model.denoise(scale_t * z_t, jnp.full(len(z_t), step.t))
            return (z_s / scale_s + sin * (signal_t * eps - noise_t * x)) / cos

        return scale_t * jax.lax.fori_loop(0, iterations, substitute, z_s / scale_s), None

    return jax.lax.scan(back, x, steps, reverse=True)[0]
