"""Heun's method on the probability-flow ODE (Karras et al. 2022, arXiv 2206.00364, algorithms 1 and 2).

In y = z / signal and sigma = noise / signal the flow is dy / dsigma = eps.  Euler's step is DDIM; Heun's averages the
eps at its two ends, a second evaluation, and is of second order:

    z'_s = signal_s x + noise_s eps                                              Euler, eps and x predicted at z_t
    z_s  = z'_s + signal_s (sigma_s - sigma_t) (eps' - eps) / 2                  eps' predicted at z'_s

The last step, to clean data, is Euler's.

With `churn`, each step first adds noise.  It raises sigma by a factor 1 + gamma, with
gamma = min(churn / steps, sqrt(2) - 1), and then takes the longer step down.  In a chain the raised time is whole.

The correction multiplies a difference of two eps, and so their errors, by signal_s (sigma_t - sigma_s) / 2.  EDM's grid
keeps that below 1 from 9 steps on.  A grid that begins at sigma = 20,000, where cosine schedules end, does not, and the
samples are useless; `times` warns.  `ExponentialHeun` takes the same two evaluations and is bounded on every grid.
"""

import dataclasses
import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ddpm_jax.devices.float64 import in_float64
from ddpm_jax.diffusion.arrays import is_known
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.grids import Grid, Karras, times_at
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.step import Step
from ddpm_jax.errors import require
from ddpm_jax.sampling.sampler import Sampler, StepInput

# `times` warns of a step that multiplies errors by more.  The whole chain of a cosine process has 15, which is
# harmless; 18 steps of Uniform and Quadratic have 900 and 1,700, and an error 10 and 800 times that of ExponentialHeun.
LARGEST_GAIN = 20.0


@dataclass(frozen=True)
class Heun(Sampler):
    """Two network evaluations in each step but the last."""

    num_steps: int | None = 18
    """Number of steps; None: every timestep of a chain."""
    grid: Grid = Karras()
    """Which times the steps visit."""
    churn: float = 0.0
    """How much noise is added along the way; 0 for none.  EDM's S_churn."""
    churn_min: float = 0.0
    """The smallest sigma at which noise is added; EDM's S_tmin."""
    churn_max: float | None = None
    """The largest sigma at which noise is added, None for any; EDM's S_tmax."""
    churn_noise: float = 1.0
    """The standard deviation of the added noise, which would be 1 for an exact network; EDM's S_noise."""

    extra_evaluations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("churn", "churn_min", "churn_noise"):
            require(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "0 or more")
        holds = self.churn_max is None or self.churn_max > self.churn_min
        require("churn_max", self.churn_max, holds, f"None or more than churn_min, {self.churn_min}")

    def times(self, process: Process) -> Shaped[np.ndarray, " times"]:
        """The timesteps visited: falling, the last one 0.  Warns if a step between them may multiply errors."""
        times = super().times(process)
        if not is_known(*jax.tree.leaves(process)):
            return times
        with jax.ensure_compile_time_eval():  # numbers rather than tracers, also inside a jitted function
            signal, noise = (np.asarray(of(times[:-1]), np.float64) for of in (process.signal, process.noise))
        expected = "one on a grid that begins at a finite sigma, such as Karras(), or UniPc()"
        require("sampler", self, signal[0] > 0, f"{expected}: at t = {times[0]} nothing of x is left")
        gains = signal[1:] * -np.diff(noise / signal) / 2
        if gains.size and gains.max() > LARGEST_GAIN:
            k = int(gains.argmax())
            warnings.warn(
                f"sampler is {self}: its step from t = {times[k]} to {times[k + 1]} multiplies errors of eps by "
                f"{gains[k]:.0f}, so samples may be useless; use ExponentialHeun(), grid=Karras(), or more steps",
                stacklevel=2,
            )
        return times

    def steps(self, process: Process, times: Shaped[np.ndarray, " times"]) -> Step:
        plain = super().steps(process, times)
        if self.churn == 0:
            return plain
        log_snr, begins = in_float64(process.log_snr, times[:-1]), times[:-1]
        sigma, high = np.exp(-log_snr / 2), math.inf if self.churn_max is None else self.churn_max
        gamma = min(self.churn / len(sigma), math.sqrt(2) - 1) * ((sigma >= self.churn_min) & (sigma <= high))
        raised = times_at(process, log_snr - 2 * np.log1p(gamma))
        raised = np.where(gamma > 0, np.maximum(np.rint(raised) if process.is_chain else raised, begins), begins)
        steps = process.step(raised.astype(times.dtype), times[1:])
        scale = steps.signal_t / plain.signal_t
        added = jnp.sqrt(jnp.maximum(steps.noise_t**2 - (scale * plain.noise_t) ** 2, 0.0))
        return dataclasses.replace(steps, draw=plain.draw, rise=(scale, self.churn_noise * added))

    @property
    def stochastic(self) -> bool:
        return self.churn > 0

    def step(self, model: Denoiser, now: StepInput, memory: Any) -> tuple[Float[Array, "batch *dims"], Any]:
        step, (x, eps, _) = now.step, now.prediction
        euler = step.signal_s * x + step.noise_s * eps

        def corrected() -> Array:
            eps_there = model.denoise(euler, now.s).eps
            return euler + 0.5 * (step.noise_s - step.signal_s * step.noise_t / step.signal_t) * (eps_there - eps)

        return jax.lax.cond(step.is_last, lambda: euler, corrected), memory
