"""Which times a sampler, or a bound, visits: t_0 > t_1 > ... > t_{K-1}, and then clean data.

A grid chooses K real numbers.  In a chain they are rounded to timesteps and moved apart if rounding makes them equal,
so a grid of K steps has K steps.  With K = T every grid is the whole chain.  In a continuous process they are the
times. `Uniform` and `Quadratic` leave out the clean end, from which a sampler gains little; `Linspace`, `LogSnr` and
`Karras` visit it, as a tight bound needs.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Shaped

from ddpm_jax.devices.float64 import in_float64
from ddpm_jax.diffusion.arrays import Whole, is_known
from ddpm_jax.diffusion.process import Process, check_process, require_chain, times_of
from ddpm_jax.diffusion.step import Step
from ddpm_jax.errors import check_fields, require, require_int

__all__ = ["Given", "Grid", "Karras", "Leading", "Linspace", "LogSnr", "Quadratic", "Uniform"]


@dataclass(frozen=True)
class Grid:
    """A rule for the times; subclasses give `places`."""

    def places(self, process: Process, num_steps: int) -> Float[np.ndarray, " steps"]:
        """The times at which the steps begin.

        Args:
            process: the forward process.
            num_steps: the number of steps, in 1..T for a chain.

        Returns:
            float [num_steps], falling, between the ends of the process; `times` rounds them in a chain.
        """
        raise NotImplementedError

    def times(self, process: Process, num_steps: Whole | None) -> Shaped[np.ndarray, " times"]:
        """The times of `num_steps` steps.

        Args:
            process: the forward process.
            num_steps: the number of steps; None for all T of a chain.

        Returns:
            int32 for a chain, float32 for a continuous process, [num_steps + 1], falling, the last one `process.clean`.

        Raises:
            ValueError: num_steps is not in 1..T, or is None for a continuous process.
        """
        check_process(process)
        if not process.is_chain:
            count = require_int(
                "num_steps", num_steps, 1, "a whole number of steps, at least 1, as the process has none of its own"
            )
            return np.append(self.places(process, count), process.clean).astype(np.float32)
        length = process.last
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
        return np.linspace(process.last, _origin(process), num_steps + 1)[:-1]


def _origin(process: Process) -> float:
    """Where the time begins to count: clean data in a chain, the clean end of a continuous process."""
    return 0.0 if process.is_chain else process.first


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
        return 1.0 + self.offset + np.arange(num_steps)[::-1] * (require_chain(process, "Leading") // num_steps)


@dataclass(frozen=True)
class Linspace(Grid):
    """Even steps in t from the noisy to the clean end, both of which are visited: what diffusers calls linspace."""

    def places(self, process: Process, num_steps: int) -> Float[np.ndarray, " steps"]:
        above = np.linspace(0, process.last - process.first, num_steps)[::-1]
        if num_steps == 1:
            above = np.array([process.last - process.first])
        return process.first + (np.rint(above) if process.is_chain else above)


@dataclass(frozen=True)
class Quadratic(Grid):
    """Even steps in the square root of t: shorter towards the data (Song et al. 2021, 2010.02502, appendix D.2)."""

    def places(self, process: Process, num_steps: int) -> Float[np.ndarray, " steps"]:
        start = _origin(process)
        return start + (process.last - start) * np.linspace(1, 0, num_steps + 1)[:-1] ** 2


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
        clean, noisy = _log_snr_ends(process)
        first = min(max(self.log_snr_min, noisy), clean)
        require("log_snr_min", self.log_snr_min, first > -np.inf, "a finite number, as the process ends at SNR 0")
        return times_at(process, np.linspace(first, clean, num_steps))


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
        own_min, own_max = np.exp(-0.5 * np.array(_log_snr_ends(process)))
        ends = [min(max(sigma, own_min), own_max) for sigma in (self.sigma_max, self.sigma_min)]
        root = np.linspace(ends[0] ** (1 / self.rho), ends[1] ** (1 / self.rho), num_steps)
        return times_at(process, -2 * self.rho * np.log(root))


@dataclass(frozen=True)
class Given(Grid):
    """Any times, falling; the 0 at the end of a chain may be left out.  num_steps must be None or their number."""

    timesteps: Any
    """Whole numbers in 1..T (or 0 at the end) for a chain, real ones for a continuous process; kept as a tuple."""

    def __post_init__(self) -> None:
        try:
            times = np.asarray(self.timesteps)
        except ValueError:  # lists of different lengths
            times = np.array(None)
        numbers = times.ndim == 1 and times.size > 0 and times.dtype.kind in "iuf"
        holds = numbers and bool(np.all(np.diff(times) < 0) and times[-1] >= 0 and times[0] > 0)
        require("timesteps", self.timesteps, holds, "numbers, falling, none below 0")
        object.__setattr__(self, "timesteps", tuple(time for time in times.tolist() if time > 0))

    def times(self, process: Process, num_steps: Whole | None) -> Shaped[np.ndarray, " times"]:
        check_process(process)
        times, count = np.array(self.timesteps), len(self.timesteps)
        require(
            "timesteps",
            self.timesteps[0],
            self.timesteps[0] <= process.last,
            f"at most {process.last}, the process's last step",
        )
        require("num_steps", num_steps, num_steps in (None, count), f"None, or {count}, the number of timesteps given")
        process.check_time(times, "timesteps")
        return np.append(times, process.clean).astype(np.int32 if process.is_chain else np.float32)


def steps_of(process: Process, times: Shaped[np.ndarray, " times"]) -> Step:
    """The steps from each of the times to the next, float32 [steps], for a scan."""
    return process.step(times[:-1], times[1:], times_before(times, times[:-1]))


def tail(times: Shaped[np.ndarray, " times"], t: int | float) -> Shaped[np.ndarray, " rest"]:
    """The times of a sampler that starts at t and then visits the `times` below t."""
    return np.concatenate([[t], times[times < t]]).astype(times.dtype)


def times_before(times: Shaped[np.ndarray, " times"], t: Shaped[np.ndarray, " steps"]) -> Shaped[np.ndarray, " steps"]:
    """For each t, the nearest of the `times` above it, from which a sampler came to t; t itself if there is none."""
    place = np.searchsorted(-times, -t)  # how many are above t
    return np.where(place > 0, times[place - 1], t).astype(times.dtype)


def as_time(process: Process, t: Any, name: str = "t") -> int | float:
    """One known time of the process as a number; ValueError for anything else."""
    ends = f"whole t in 1..{process.last}" if process.is_chain else f"t in [{process.first}, {process.last}]"
    try:
        process.check_time(t)
        holds = np.ndim(t) == 0 and not isinstance(t, bool)
    except ValueError:
        holds = False
    require(name, t, holds, f"one {ends}")
    return np.asarray(t).item()


def _log_snr_ends(process: Process) -> tuple[float, float]:
    """log SNR at the clean and at the noisy end."""
    if not is_known(*jax.tree.leaves(process)):
        raise ValueError("this grid depends on the process's numbers: build the process outside the jitted function")
    clean, noisy = in_float64(process.log_snr, [process.first, process.last])
    return float(clean), float(noisy)


def times_at(process: Process, log_snr: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """The (real) t at which log SNR takes each of the values."""
    if not process.is_chain:
        return in_float64(partial(times_of, process), log_snr)
    times = np.arange(1, process.last + 1)
    with jax.ensure_compile_time_eval():  # numbers rather than tracers, also inside a jitted function
        curve = np.asarray(process.log_snr(times), np.float64)
    return np.interp(-log_snr, -curve, times)
