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

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from ddpm_jax.devices.axes import take
from ddpm_jax.diffusion.arrays import Table, Time, at_time, check_timesteps, is_known
from ddpm_jax.diffusion.process import EXPECTED_PROCESS, Process
from ddpm_jax.diffusion.step import Step
from ddpm_jax.errors import check_fields, require, require_int, short_repr

__all__ = ["Betas", "Chain", "Cosine", "Linear", "ScaledLinear", "Schedule", "Sigmoid", "betas_of", "check_betas"]
__all__ += ["ZeroTerminal", "from_betas", "resample"]


@flax.struct.dataclass
class Chain(Process):
    """A process of T steps, as tables, each float32 [T+1], index t in 0..T.

    `signal`, `noise` and `log_snr` at a real t are those of the smooth curves through the tables (`arrays.curve`).
    """

    beta: Table
    alpha_bar: Table
    noise_var: Table  # 1 - alpha_bar, computed without cancellation
    signals: Table
    noises: Table
    log_snrs: Float[Array, "2 steps"]  # float32 parts whose sum is log SNR, so that differences keep their digits

    is_chain = True
    first = 1
    clean = 0

    @property
    def last(self) -> int:
        """T."""
        return self.beta.shape[0] - 1

    @property
    def num_steps(self) -> int:
        """T, the number of steps of the chain."""
        return self.last

    def signal(self, t: Time) -> Float[Array, "..."]:
        return at_time(self.signals, t)

    def noise(self, t: Time) -> Float[Array, "..."]:
        return at_time(self.noises, t)

    def log_snr(self, t: Time) -> Float[Array, "..."]:
        if jnp.issubdtype(jnp.asarray(t).dtype, jnp.floating):
            return super().log_snr(t)
        return at_time(self.log_snrs[0], t)

    def label(self, t: Time) -> Any:
        """t - 1: published networks count timesteps from 0."""
        return jnp.asarray(t) - 1

    def share(self, t: Time) -> Float[Array, "..."]:
        return (jnp.asarray(t) - 1) / self.last

    def at_share(self, share: Time) -> Int[Array, "..."]:
        return jnp.minimum(1 + jnp.floor(self.last * jnp.asarray(share)).astype(jnp.int32), self.last)

    def check_time(self, t: Any, name: str = "t", clean: bool = False) -> None:
        check_timesteps(t, 0 if clean else 1, self.last, name)

    def step(self, t: Time, s: Time, u: Time | None = None) -> Step:
        self._check_step(t, s, u)
        t, s = jnp.asarray(t), jnp.asarray(s)
        u = jnp.minimum(2 * t - s, self.last) if u is None else jnp.asarray(u)
        (signal_t, noise_t), (signal_s, noise_s) = ((take(self.signals, i), take(self.noises, i)) for i in (t, s))
        # The last step has the variance of the step before it, u -> t, as in the published code.
        before = jnp.where(u == t, 1.0, -jnp.expm1(-self._gap(u, t)))
        return Step(t, s, signal_t, noise_t, signal_s, noise_s, self._gap(t, s), noise_t**2 * before, t)

    def _gap(self, t: Array, s: Array) -> Array:
        """log SNR_s - log SNR_t; infinite if one of them is."""
        high, low = (take(table, s) - take(table, t) for table in self.log_snrs)
        return high + low

    def _check_step(self, t: Time, s: Time, u: Time | None) -> None:
        """Raise ValueError unless t is in 1..T, s in 0..t-1 and u in t..T."""
        self.check_time(t)
        self.check_time(s, "s", clean=True)
        if is_known(t, s) and np.any(np.asarray(s) >= np.asarray(t)):
            raise ValueError(f"s is {s} and t is {t}; s must be smaller than t")
        if u is not None:
            self.check_time(u, "u")
            if is_known(t, u) and np.any(np.asarray(u) < np.asarray(t)):
                raise ValueError(f"u is {u} and t is {t}; u must be at least t")


def check_betas(betas: Any) -> Float64[np.ndarray, " T"]:
    """beta_1..beta_T as float64; ValueError unless each is strictly between 0 and 1, the last one at most 1."""
    try:
        betas = np.asarray(betas, np.float64)
    except (TypeError, ValueError):  # lists of different lengths, or no numbers
        raise ValueError(f"betas is {short_repr(betas)}; expected (T,) numbers with T at least 1") from None
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas has shape {betas.shape}; expected (T,) with T at least 1")
    wrong = np.flatnonzero(~((betas > 0) & (betas < np.append(np.ones(len(betas) - 1), np.nextafter(1.0, 2.0)))))
    if wrong.size:
        t = int(wrong[0]) + 1
        raise ValueError(
            f"beta at t = {t} is {betas[t - 1]:g}; every beta must lie strictly between 0 and 1, and only the last one "
            "may be 1"
        )
    return betas


def from_betas(betas: Float64[np.ndarray, " T"]) -> Chain:
    """The tables for beta_1..beta_T, computed in float64 and stored in float32.

    1 - alpha_bar is summed from positive terms, 1 - alpha_bar_t = sum_{i<=t} alpha_bar_{i-1} beta_i:
    subtracting a float32 alpha_bar from 1 would leave three digits at t = 1.  A last beta of 1 leaves no signal at T.

    Raises ValueError where a beta is not in (0, 1).
    """
    betas = check_betas(betas)
    beta = np.concatenate([[0.0], betas])
    with np.errstate(divide="ignore"):
        log_alpha_bar = np.cumsum(np.log1p(-beta))
        alpha_bar = np.exp(log_alpha_bar)
        noise_var = np.cumsum(np.concatenate([[0.0], alpha_bar[:-1] * betas]))
        log_snr = log_alpha_bar - np.log(noise_var)
    high = log_snr.astype(np.float32)
    low = np.where(np.isfinite(log_snr), log_snr - np.where(np.isfinite(high), high, 0.0), 0.0)
    tables = (beta, alpha_bar, noise_var, np.sqrt(alpha_bar), np.sqrt(noise_var), np.stack([high, low]))
    return Chain(*(jnp.asarray(table, jnp.float32) for table in tables))


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
