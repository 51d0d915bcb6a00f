"""Which timesteps a sampler, or a strided bound, visits: T = t_0 > t_1 > ... > t_K = 0.

A grid chooses K real numbers.  They are rounded to timesteps and moved apart if rounding makes them equal, so a grid of
K steps has K steps.  With K = T every grid is the whole chain.
"""

from dataclasses import dataclass
from typing import Any

import jax.core
import numpy as np
from jaxtyping import Float, Int

from ddpm_jax.diffusion.arrays import Whole
from ddpm_jax.diffusion.process import Process, check_process
from ddpm_jax.errors import check_fields, require, require_int

__all__ = ["Given", "Grid", "Karras", "Leading", "Linspace", "LogSnr", "Quadratic", "Uniform", "tail"]
__all__ += ["times_before"]


@dataclass(frozen=True)
class Grid:
    """A rule for the timesteps; subclasses give `places`."""

    def places(self, process: Process, num_steps: int) -> Float[np.ndarray, " steps"]:
        """The times at which the steps begin.

        Args:
            process: the forward process.
            num_steps: the number of steps, in 1..T.

        Returns:
            float [num_steps], falling, in 1..T; `times` rounds them.
        """
        raise NotImplementedError

    def times(self, process: Process, num_steps: Whole | None) -> Int[np.ndarray, " times"]:
        """The timesteps of `num_steps` steps.

        Args:
            process: the forward process.
            num_steps: the number of steps; None for all T.

        Returns:
            int32 [num_steps + 1], falling, the last one 0.

        Raises:
            ValueError: num_steps is not in 1..T.
        """
        check_process(process)
        length = process.num_steps
        expected = f"1 to {length}, the number of steps of the process"
        count = length if num_steps is None else require_int("num_steps", num_steps, 1, expected)
        require("num_steps", count, count <= length, expected)
        begins = np.rint(self.places(process, count)).astype(np.int64)
        # Each at most one below the one before it, and high enough for those that follow.
        index = np.arange(count)
        begins = np.minimum.accumulate(np.minimum(begins, length) + index) - index
        begins = np.maximum(begins, count - index)
        return np.append(begins, 0).astype(np.int32)


@dataclass(frozen=True)
class Uniform(Grid):
    """Even steps in t."""

    def places(self, process: Process, num_steps: int) -> Float[np.ndarray, " steps"]:
        return np.linspace(process.num_steps, 0, num_steps + 1)[:-1]


@dataclass(frozen=True)
class Leading(Grid):
    """Even steps of a whole number, T // steps, up from t = 1: what diffusers calls leading.

    Few steps so begin below T, where z_t is not quite noise (Lin et al. 2024, arXiv 2305.08891, section 3.3); `Uniform`
    is what they call trailing.
    """

    offset: int = 0
    """Added to every timestep."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_int("offset", self.offset, 0)

    def places(self, process: Process, num_steps: int) -> Float[np.ndarray, " steps"]:
        return 1.0 + self.offset + np.arange(num_steps)[::-1] * (process.num_steps // num_steps)


@dataclass(frozen=True)
class Linspace(Grid):
    """Even steps from T to 1, both of which are visited: what diffusers calls linspace."""

    def places(self, process: Process, num_steps: int) -> Float[np.ndarray, " steps"]:
        return 1.0 + np.rint(np.linspace(0, process.num_steps - 1, num_steps))[::-1]


@dataclass(frozen=True)
class Quadratic(Grid):
    """Even steps in the square root of t: shorter towards the data (Song et al. 2021, 2010.02502, appendix D.2)."""

    def places(self, process: Process, num_steps: int) -> Float[np.ndarray, " steps"]:
        return process.num_steps * np.linspace(1, 0, num_steps + 1)[:-1] ** 2


@dataclass(frozen=True)
class LogSnr(Grid):
    """Even steps in the logarithm of snr, down to t = 1 (Lu et al. 2022, arXiv 2206.00927).

    If the chain has more noise than log_snr_min, the grid begins there rather than at T: cosine schedules end at
    log snr = -20, and a third of the steps would be spent on pure noise.
    """

    log_snr_min: float = -10.2
    """The first log snr; that of the chain at T if larger, as for linear schedules."""

    def __post_init__(self) -> None:
        check_fields(self)
        require("log_snr_min", self.log_snr_min, self.log_snr_min < np.inf, "a number")

    def places(self, process: Process, num_steps: int) -> Float[np.ndarray, " steps"]:
        log_snr = _log_snr(process)
        first = min(max(self.log_snr_min, log_snr[-1]), log_snr[0])
        return _at(log_snr, np.linspace(first, log_snr[0], num_steps))


@dataclass(frozen=True)
class Karras(Grid):
    """Even steps in sigma^(1/rho), sigma = noise / signal (Karras et al. 2022, arXiv 2206.00364, equation 5).

    If the chain has more noise than sigma_max, the grid begins there rather than at T.
    """

    rho: float = 7.0
    """Larger puts more steps towards the data."""
    sigma_min: float = 0.002
    """The last sigma but 0; that of the chain at t = 1 if larger."""
    sigma_max: float = 80.0
    """The first sigma; that of the chain at T if smaller."""

    def __post_init__(self) -> None:
        check_fields(self)
        require("rho", self.rho, 0 < self.rho < np.inf, "more than 0, and finite")
        require("sigma_min", self.sigma_min, self.sigma_min > 0, "more than 0")
        require("sigma_max", self.sigma_max, self.sigma_max > self.sigma_min, f"more than sigma_min, {self.sigma_min}")

    def places(self, process: Process, num_steps: int) -> Float[np.ndarray, " steps"]:
        log_snr = _log_snr(process)
        own_min, own_max = np.exp(-log_snr[[0, -1]] / 2)
        ends = [min(max(sigma, own_min), own_max) for sigma in (self.sigma_max, self.sigma_min)]
        root = np.linspace(ends[0] ** (1 / self.rho), ends[1] ** (1 / self.rho), num_steps)
        return _at(log_snr, -2 * self.rho * np.log(root))


@dataclass(frozen=True)
class Given(Grid):
    """Any timesteps, falling; the 0 at the end may be left out.  num_steps must be None or their number."""

    timesteps: Any
    """Whole numbers, falling, in 1..T (or 0 at the end); kept as a tuple."""

    def __post_init__(self) -> None:
        try:
            times = np.asarray(self.timesteps)
        except ValueError:  # lists of different lengths
            times = np.array(None)
        whole = times.ndim == 1 and times.size > 0 and np.issubdtype(times.dtype, np.integer)
        holds = whole and bool(np.all(np.diff(times) < 0) and times[-1] >= 0 and times[0] > 0)
        require("timesteps", self.timesteps, holds, "whole numbers, falling, none below 0")
        object.__setattr__(self, "timesteps", tuple(int(time) for time in times if time > 0))

    def times(self, process: Process, num_steps: Whole | None) -> Int[np.ndarray, " times"]:
        check_process(process)
        first, count = self.timesteps[0], len(self.timesteps)
        require("timesteps", first, first <= process.num_steps, f"at most {process.num_steps}, the process's last step")
        require("num_steps", num_steps, num_steps in (None, count), f"None, or {count}, the number of timesteps given")
        return np.array((*self.timesteps, 0), np.int32)


def tail(times: Int[np.ndarray, " times"], t: int) -> Int[np.ndarray, " rest"]:
    """The chain that starts at t and then visits the `times` below t."""
    return np.concatenate([[t], times[times < t]]).astype(np.int32)


def times_before(times: Int[np.ndarray, " times"], t: Int[np.ndarray, " steps"]) -> Int[np.ndarray, " steps"]:
    """For each t, the nearest of the chain's `times` above it, from which the chain came to t; t itself if there is
    none."""
    place = np.searchsorted(-times, -t)  # how many are above t
    return np.where(place > 0, times[place - 1], t).astype(np.int32)


def _log_snr(process: Process) -> Float[np.ndarray, " T"]:
    """log snr of t = 1..T in float64, falling."""
    if isinstance(process.snr, jax.core.Tracer):
        raise ValueError("this grid depends on the process's numbers: build the process outside the jitted function")
    return np.log(np.asarray(process.snr, np.float64)[1:])


def _at(log_snr: Float[np.ndarray, " T"], values: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """The (real) t at which log snr takes each of the values."""
    return np.interp(-values, -log_snr, np.arange(1, len(log_snr) + 1))
