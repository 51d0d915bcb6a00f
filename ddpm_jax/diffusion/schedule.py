"""Noise schedules: how much noise the forward process adds at each of its T steps.

    beta_t       in (0, 1), t = 1..T       the share of variance replaced by noise in step t
    alpha_bar_t  = prod_{i<=t} (1-beta_i)  the share of the data's variance left after t steps
    signal_t     = sqrt(alpha_bar_t)       the factor on x
    noise_t      = sqrt(1 - alpha_bar_t)   the factor on eps
    snr_t        = alpha_bar_t / (1 - alpha_bar_t)

(*Understanding Deep Learning* writes alpha_t for alpha_bar_t.)  Tables run over t = 0..T; index 0 is
clean data, so beta_0 = 0, alpha_bar_0 = 1, noise_0 = 0 and snr_0 = inf.

A schedule is specified by a frozen dataclass that gives its betas in float64; `build` turns them into
the float32 tables.  Your own needs only `num_steps` and `betas`:

    @dataclass(frozen=True)
    class Constant(Schedule):
        num_steps: int = 100
        def betas(self):
            return np.full(self.num_steps, 0.05)

Sources: Ho et al. 2020 (arXiv 2006.11239) section 4, linear; Nichol & Dhariwal 2021 (2102.09672)
section 3.2, cosine; Rombach et al. 2022 (2112.10752) appendix E and its code, scaled linear; Jabri et
al. 2022 (2212.11972) section 4 and Chen 2023 (2301.10972) section 2, sigmoid.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float64

from ddpm_jax.diffusion.chain import Chain, check_betas, from_betas
from ddpm_jax.diffusion.process import EXPECTED_PROCESS, Process
from ddpm_jax.errors import check_fields, require, require_int

__all__ = ["Betas", "Chain", "Cosine", "Linear", "ScaledLinear", "Schedule", "Sigmoid", "betas_of", "check_betas"]
__all__ += ["ZeroTerminal", "from_betas", "resample"]


def resample(betas: Float64[np.ndarray, " S"], num_steps: int) -> Float64[np.ndarray, " T"]:
    """Betas of a chain of `num_steps` = T steps along the same curve alpha_bar(u) as a chain of S steps.

    log alpha_bar is interpolated linearly in u = t / T, so alpha_bar_T is the same for every T.

    Args:
        betas: beta_1..beta_S, float64 [S].
        num_steps: T.

    Returns:
        float64 [T].
    """
    if len(betas) == num_steps:
        return betas
    log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
    curve = np.interp(np.linspace(0, len(betas), num_steps + 1), np.arange(len(betas) + 1), log_alpha_bar)
    return -np.expm1(np.diff(curve))


def betas_of(alpha_bar: Callable[[np.ndarray], np.ndarray], num_steps: int, max_beta: float) -> np.ndarray:
    """Betas of a decreasing curve: 1 - alpha_bar(t/T) / alpha_bar((t-1)/T).

    Args:
        alpha_bar: the curve, a function of u in [0, 1].
        num_steps: T.
        max_beta: the largest beta; larger ones are reduced to it.

    Returns:
        float64 [T].
    """
    curve = alpha_bar(np.linspace(0.0, 1.0, num_steps + 1, dtype=np.float64))
    return np.minimum(1.0 - curve[1:] / curve[:-1], max_beta)


@dataclass(frozen=True)
class Schedule:
    """What a schedule is made from; subclasses give `num_steps` and `betas`."""

    def betas(self) -> Float64[np.ndarray, " T"]:
        """beta_1..beta_T in float64."""
        raise NotImplementedError

    def build(self) -> Chain:
        """The float32 tables of this schedule."""
        return from_betas(self.betas())

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What only the built process has; or any other attribute that does not exist."""
            if name in dir(Process) or name in Chain.__dataclass_fields__:
                raise ValueError(f"process is {self}; {EXPECTED_PROCESS} (call its build())")
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


# The length of the chains that the published linear betas were chosen for.
PUBLISHED_STEPS = 1000


@dataclass(frozen=True)
class Linear(Schedule):
    """Betas linear in t (Ho et al. 2020): 1e-4 to 0.02 over 1000 steps.

    With another num_steps, and no ends given, the published curve alpha_bar(t / T) is kept and sampled at other places.
    OpenAI's code (improved-diffusion, guided-diffusion) multiplies the ends by 1000 / T instead, which is nearly the
    same curve: `Linear(T, beta_start=0.1 / T, beta_end=20 / T)`, for T above 20.
    """

    num_steps: int = 1000
    """T, the number of steps of the chain."""
    beta_start: float | None = None
    """beta at t = 1, taken as given; None: the published one, with its 1000 steps resampled to num_steps."""
    beta_end: float | None = None
    """beta at t = T, taken as given; None: the published one, with its 1000 steps resampled to num_steps."""

    published: ClassVar[tuple[float, float]] = (1e-4, 0.02)
    power: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_fields(self)
        require_int("num_steps", self.num_steps, 1, "at least 1")
        if (self.beta_start is None) != (self.beta_end is None):
            raise ValueError(
                f"beta_start is {self.beta_start} and beta_end {self.beta_end}; "
                "give both (taken as they are) or neither (the published ones, resampled to num_steps)"
            )
        start, end = self._ends()
        if not 0 < start <= end < 1:
            raise ValueError(f"beta_start is {start:g} and beta_end {end:g}; expected 0 < beta_start <= beta_end < 1")

    def _ends(self) -> tuple[float, float]:
        if self.beta_start is None or self.beta_end is None:
            return self.published
        return self.beta_start, self.beta_end

    def betas(self) -> Float64[np.ndarray, " T"]:
        start, end = self._ends()
        steps = PUBLISHED_STEPS if self.beta_start is None else self.num_steps
        line = np.linspace(start ** (1 / self.power), end ** (1 / self.power), steps, dtype=np.float64)
        return resample(line**self.power, self.num_steps)


@dataclass(frozen=True)
class ScaledLinear(Linear):
    """Square roots of the betas linear in t (latent diffusion): 0.00085 to 0.012 over 1000 steps."""

    published: ClassVar[tuple[float, float]] = (0.00085, 0.012)
    power: ClassVar[int] = 2


@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha_bar(u) = cos^2(pi/2 (u + offset) / (1 + offset)), normalised to 1 at u = t/T = 0."""

    num_steps: int = 1000
    """T, the number of steps of the chain."""
    offset: float = 0.008
    """Keeps beta from vanishing near t = 0; the paper's s."""
    max_beta: float = 0.999
    """Betas are cut here, since the curve ends at alpha_bar = 0."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_int("num_steps", self.num_steps, 1, "at least 1")
        require("max_beta", self.max_beta, 0 < self.max_beta < 1, "more than 0, less than 1")
        require("offset", self.offset, self.offset >= 0, "0 or more")

    def betas(self) -> Float64[np.ndarray, " T"]:
        def alpha_bar(u: np.ndarray) -> np.ndarray:
            return np.cos(0.5 * math.pi * (u + self.offset) / (1 + self.offset)) ** 2

        return betas_of(alpha_bar, self.num_steps, self.max_beta)


@dataclass(frozen=True)
class Sigmoid(Schedule):
    """alpha_bar(u) falls along a sigmoid between `start` and `end`, scaled to run from 1 to 0."""

    num_steps: int = 1000
    """T, the number of steps of the chain."""
    start: float = -3.0
    """The sigmoid's argument at u = t/T = 0."""
    end: float = 3.0
    """The sigmoid's argument at u = 1."""
    temperature: float = 1.0
    """Divides the argument; the paper's tau."""
    max_beta: float = 0.999
    """Betas are cut here, since the curve ends at alpha_bar = 0."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_int("num_steps", self.num_steps, 1, "at least 1")
        require("max_beta", self.max_beta, 0 < self.max_beta < 1, "more than 0, less than 1")
        if not self.start < self.end:
            raise ValueError(f"start is {self.start:g} and end {self.end:g}; expected start < end")
        require("temperature", self.temperature, self.temperature > 0, "more than 0")

    def betas(self) -> Float64[np.ndarray, " T"]:
        def fall(argument: np.ndarray) -> np.ndarray:
            return 1.0 / (1.0 + np.exp(argument / self.temperature))

        ends = fall(np.array([self.start, self.end]))

        def alpha_bar(u: np.ndarray) -> np.ndarray:
            return (fall(self.start + u * (self.end - self.start)) - ends[1]) / (ends[0] - ends[1])

        return betas_of(alpha_bar, self.num_steps, self.max_beta)


@dataclass(frozen=True)
class Betas(Schedule):
    """Any betas: an array, list or tuple of beta_1..beta_T."""

    values: Any
    """beta_1..beta_T, each strictly between 0 and 1; kept as a tuple of floats."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(check_betas(self.values).tolist()))

    @property
    def num_steps(self) -> int:
        return len(self.values)

    def betas(self) -> Float64[np.ndarray, " T"]:
        return np.array(self.values, np.float64)


@dataclass(frozen=True)
class ZeroTerminal(Schedule):
    """Another schedule, rescaled so that z_T holds nothing of x (Lin et al. 2024, arXiv 2305.08891, algorithm 1).

    signal is shifted by a constant, so that signal_T = 0, and scaled, so that signal_1 stays.  The target must not be
    Eps or Score, from which x does not follow at T.
    """

    of: Schedule = Linear()
    """The schedule that is rescaled."""

    def __post_init__(self) -> None:
        require("of", self.of, isinstance(self.of, Schedule), "a Schedule, such as Linear()")
        require("of.num_steps", self.num_steps, self.num_steps > 1, "at least 2")

    @property
    def num_steps(self) -> int:
        return len(self.of.betas())

    def betas(self) -> Float64[np.ndarray, " T"]:
        signal = np.exp(0.5 * np.cumsum(np.log1p(-self.of.betas())))
        shifted = np.append((signal[:-1] - signal[-1]) * signal[0] / (signal[0] - signal[-1]), 0.0)
        return 1 - (shifted / np.append(1.0, shifted[:-1])) ** 2
