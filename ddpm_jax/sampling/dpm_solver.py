"""DPM-Solver++(2M), a second-order solver that evaluates the network once a step (Lu et al. 2022, arXiv 2211.01095).

With lambda_t = log(signal_t / noise_t), the probability flow moves z by a function of the x predicted along the
way.  Taken as constant over a step, that function gives DDIM; taken as the line through the last two predictions,

    D = x_t + (lambda_s - lambda_t) / (2 (lambda_t - lambda_before)) (x_t - x_before)           algorithm 2
    z_s = (noise_s / noise_t) z_t + (signal_s - signal_t noise_s / noise_t) D

a method of second order.  The first step, which has no step before it, and the last one, to s = 0 where lambda is
infinite, take D = x_t.  The form for the reverse-time SDE draws z_s from q(z_s | z_t, D) instead (section 5,
SDE-DPM-Solver++).
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Batch, root
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.grids import Grid, Quadratic
from ddpm_jax.sampling.sampler import Sampler, StepInput


@dataclass(frozen=True)
class DpmSolver(Sampler):
    """Good images in 10 to 25 steps."""

    num_steps: int | None = 20
    """Number of steps; None: every timestep."""
    grid: Grid = Quadratic()
    """Which timesteps the steps visit.  `Uniform` has 1.1 to 2.1 times the error on a trained network, at 5 to 25
    evaluations, and 2.2 to 4.3 times on exact mixtures."""
    sde: bool = False
    """Whether noise is added in each step: the form for the reverse-time SDE."""

    @property
    def stochastic(self) -> bool:
        return self.sde

    def start(self, z: Batch) -> Any:
        # An infinitely long step before the first: the line through both predictions is then level.
        return jnp.zeros_like(z), jnp.float32(jnp.inf)

    def step(self, model: Denoiser, now: StepInput, memory: Any) -> tuple[Float[Array, "batch *dims"], Any]:
        step, x, (x_before, length_before) = now.step, now.prediction.x, memory
        # The first step has no other before it.  The last one, and one from SNR 0, are infinitely long in lambda.
        length = jnp.where(jnp.isfinite(step.gap), 0.5 * step.gap, 0.0)
        d = x + length / (2 * length_before) * (x - x_before)
        after = x, jnp.where(length > 0, length, jnp.inf)
        if self.sde:
            return step.a * now.z_t + step.b * d + root(step.var) * now.noise, after
        return step.deterministic(now.z_t, d), after
