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

from ddpm_jax.diffusion.arrays import Batch, lookup, per_example
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.forward import posterior
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
        return jnp.zeros_like(z), jnp.full(z.shape[:1], jnp.inf)

    def step(self, model: Denoiser, now: StepInput, memory: Any) -> tuple[Float[Array, "batch *dims"], Any]:
        z_t, t, s, x = now.z_t, now.t, now.s, now.prediction.x
        process = model.process
        x_before, length_before = memory
        last = s == 0
        log_snr_s = jnp.log(jnp.where(last, process.snr[t], process.snr[s]))
        length = 0.5 * (log_snr_s - jnp.log(process.snr[t]))  # of the step in lambda; 0 for the last one
        slope = per_example(length / (2 * length_before), z_t)
        d = x + slope * (x - x_before)
        if self.sde:
            q = posterior(process, z_t, d, t, s)
            return q.mean + q.std * now.noise, (x, length)
        signal_t, signal_s = (lookup(process.signal, time, z_t) for time in (t, s))
        ratio = lookup(process.noise, s, z_t) / lookup(process.noise, t, z_t)
        return ratio * z_t + (signal_s - signal_t * ratio) * d, (x, length)
