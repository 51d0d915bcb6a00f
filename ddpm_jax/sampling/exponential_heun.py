"""Heun's method in exponential form: two evaluations a step, as `Heun`, and bounded on every grid.

With lambda = log(signal / noise) the probability flow is d(z / noise) / dlambda = e^lambda x, so that

    z_s = (noise_s / noise_t) z_t + noise_s int_{lambda_t}^{lambda_s} e^lambda x dlambda

(Lu et al. 2022, arXiv 2211.01095, proposition 4.1).  The x predicted at z_t, taken as constant, gives DDIM; the line
from it to x', predicted at DDIM's z'_s, is integrated exactly and gives a method of second order (ETD2RK, Cox and
Matthews 2002, equation 22).  With h = lambda_s - lambda_t:

    z'_s = (noise_s / noise_t) z_t + (signal_s - signal_t noise_s / noise_t) x
    z_s  = z'_s + signal_s phi(h) (x' - x),                           phi(h) = 1 - (1 - e^-h) / h

z_s is a sum of z_t, x and x' with weights of 0 or more that do not grow with h, where `Heun` multiplies a difference of
two eps by the change of sigma.  The last step, to s = 0, is DDIM's.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.grids import Grid, Quadratic
from ddpm_jax.sampling.sampler import Sampler, StepInput


@dataclass(frozen=True)
class ExponentialHeun(Sampler):
    """Two network evaluations in each step but the last."""

    num_steps: int | None = 18
    """Number of steps; None: every timestep."""
    grid: Grid = Quadratic()
    """Which timesteps the steps visit."""

    extra_evaluations: ClassVar[int] = 1

    @property
    def stochastic(self) -> bool:
        return False

    def step(self, model: Denoiser, now: StepInput, memory: Any) -> tuple[Float[Array, "batch *dims"], Any]:
        step, x = now.step, now.prediction.x
        ddim = step.deterministic(now.z_t, x)

        def corrected() -> Array:
            weight = step.signal_s * phi(0.5 * step.gap)
            return ddim + weight * (model.denoise(ddim, now.s).x - x)

        return jax.lax.cond(step.is_last, lambda: ddim, corrected), memory


def phi(h: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 - (1 - e^-h) / h, h >= 0, by its series if the difference would lose digits."""
    series = 0.5 * h * (1 - h / 3 * (1 - h / 4 * (1 - h / 5)))
    return jnp.where(h < 0.1, series, 1 + jnp.expm1(-h) / jnp.where(h < 0.1, 1.0, h))
