"""Heun's method on the probability-flow ODE (Karras et al. 2022, arXiv 2206.00364, algorithm 1).

In y = z / signal and sigma = noise / signal the flow is dy / dsigma = eps.  Euler's step is DDIM; Heun's averages the
eps at its two ends, a second evaluation, and is of second order:

    z'_s = signal_s x + noise_s eps                                              Euler, eps and x predicted at z_t
    z_s  = z'_s + signal_s (sigma_s - sigma_t) (eps' - eps) / 2                  eps' predicted at z'_s

The last step, to s = 0, is Euler's.

The correction multiplies a difference of two eps, and so their errors, by signal_s (sigma_t - sigma_s) / 2.  EDM's grid
keeps that below 1 from 9 steps on.  A grid that begins at sigma = 20,000, where cosine schedules end, does not, and the
samples are useless; `times` warns.  `ExponentialHeun` takes the same two evaluations and is bounded on every grid.
"""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ddpm_jax.diffusion.arrays import is_known
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.grids import Grid, Karras
from ddpm_jax.diffusion.process import Process
from ddpm_jax.sampling.sampler import Sampler, StepInput

# `times` warns of a step that multiplies errors by more.  The whole chain of a cosine process has 15, which is
# harmless; 18 steps of Uniform and Quadratic have 900 and 1,700, and an error 10 and 800 times that of ExponentialHeun.
LARGEST_GAIN = 20.0


@dataclass(frozen=True)
class Heun(Sampler):
    """Two network evaluations in each step but the last."""

    num_steps: int | None = 18
    """Number of steps; None: every timestep."""
    grid: Grid = Karras()
    """Which timesteps the steps visit."""

    extra_evaluations: ClassVar[int] = 1

    def times(self, process: Process) -> Shaped[np.ndarray, " times"]:
        """The timesteps visited: falling, the last one 0.  Warns if a step between them may multiply errors."""
        times = super().times(process)
        if not is_known(*jax.tree.leaves(process)):
            return times
        signal, noise = (np.asarray(of(times[:-1]), np.float64) for of in (process.signal, process.noise))
        gains = signal[1:] * -np.diff(noise / signal) / 2
        if gains.size and gains.max() > LARGEST_GAIN:
            k = int(gains.argmax())
            warnings.warn(
                f"sampler is {self}: its step from t = {times[k]} to {times[k + 1]} multiplies errors of eps by "
                f"{gains[k]:.0f}, so samples may be useless; use ExponentialHeun(), grid=Karras(), or more steps",
                stacklevel=2,
            )
        return times

    @property
    def stochastic(self) -> bool:
        return False

    def step(self, model: Denoiser, now: StepInput, memory: Any) -> tuple[Float[Array, "batch *dims"], Any]:
        step, (x, eps, _) = now.step, now.prediction
        euler = step.signal_s * x + step.noise_s * eps

        def corrected() -> Array:
            eps_there = model.denoise(euler, now.s).eps
            return euler + 0.5 * (step.noise_s - step.signal_s * step.noise_t / step.signal_t) * (eps_there - eps)

        return jax.lax.cond(step.is_last, lambda: euler, corrected), memory
