"""UniPC, a predictor and a corrector of second order, at one evaluation a step (Zhao et al. 2023, arXiv 2302.04867).

With lambda = log(signal / noise) and h = lambda_s - lambda_t, a step of the probability flow is

    z_s = (noise_s / noise_t) z_t + signal_s (1 - e^-h) D,     D a mean of the x predicted along the step

DDIM takes D = x_t.  The two methods add differences of x, in the variant with B(h) = e^-h - 1 (bh2, algorithms 5 to 8):

    predictor   D = x_t + d / 2,                           d = (x_t - x_before) h / h_before
    corrector   D = x_t + c d + (b - c) (x_s - x_t),       c = (b - b_2) / (1 + h_before / h)
                with b = phi(h) / (1 - e^-h),  b_2 = (1 - 2 phi(h) / h) / (1 - e^-h),  phi as in `exponential_heun`

x_s is predicted at the predictor's z_s, where the next step evaluates the network anyway.  The corrected z_s takes the
place of the predicted one, so the corrector costs no evaluation.  The first step has d = 0 and corrects by
(x_s - x_t) / 2.  The last one, to clean data, is DDIM's.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Batch
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.grids import Grid, Quadratic
from ddpm_jax.sampling.exponential_heun import phi
from ddpm_jax.sampling.sampler import Sampler, StepInput


@dataclass(frozen=True)
class UniPc(Sampler):
    """Good images in 5 to 20 steps."""

    num_steps: int | None = 15
    """Number of steps; None: every timestep of a chain."""
    grid: Grid = Quadratic()
    """Which times the steps visit."""

    @property
    def stochastic(self) -> bool:
        return False

    def start(self, z: Batch) -> Any:
        # DDIM's z_s, the weights of d and of x_s - x_t in the corrector, d, x and h, all of the step before.
        zero = jnp.float32(0.0)
        return z, zero, zero, jnp.zeros_like(z), jnp.zeros_like(z), jnp.float32(jnp.inf)

    def step(self, model: Denoiser, now: StepInput, memory: Any) -> tuple[Float[Array, "batch *dims"], Any]:
        step, x = now.step, now.prediction.x
        ddim_t, weight_d, weight_x, d_before, x_before, h_before = memory
        z_t = ddim_t + weight_d * d_before + weight_x * (x - x_before)
        h = 0.5 * step.gap
        ratio = jnp.where(jnp.isfinite(h), h, 0.0) / h_before  # 0 in the first step and in the last
        d = ratio * (x - x_before)
        ddim, factor = step.deterministic(z_t, x), -step.signal_s * jnp.expm1(-h)
        corrector = factor * corrector_weights(h, ratio)
        return ddim + 0.5 * factor * d, (ddim, *corrector, d, x, h)


def corrector_weights(h: Float[Array, ""], ratio: Float[Array, ""]) -> Float[Array, "2"]:
    """(c, b - c), the weights of d and of x_s - x_t; ratio: h / h_before, 0 in the first step.

    For a small h, 1 - 2 phi(h) / h is taken from its series, as the difference would leave few digits.
    """
    small = jnp.where(h < 0.1, h, 0.1)
    rest = jnp.where(h < 0.1, small / 3 * (1 - small / 4 * (1 - small / 5)), 1 - 2 * phi(h) / h)
    b, b_2 = phi(h) / -jnp.expm1(-h), rest / -jnp.expm1(-h)
    c = (b - b_2) * ratio / (1 + ratio)
    return jnp.where(ratio > 0, jnp.stack([c, b - c]), jnp.array([0.0, 0.5]))
