r"""Forward processes: noise is added to data x, over a time t from clean to noise.

    z_t = signal(t) x + noise(t) eps,   eps ~ N(0, I),     SNR(t) = signal(t)^2 / noise(t)^2, falling

A process is any pair of functions.  `schedule` builds chains of T steps, with signal^2 + noise^2 = 1.  Here are the
processes in continuous time.  Each needs two functions, and one of your own needs no more:

    @dataclass(frozen=True)
    class Circular(Continuous):
        first: float = 0.001
        last: float = 0.999
        def signal(self, t): return jnp.cos(jnp.pi / 2 * t)
        def noise(self, t): return jnp.sin(jnp.pi / 2 * t)

The time of a continuous process runs from `first` to `last`, and SNR(first) is finite: one more step follows, to clean
data, with mean x predicted and standard deviation noise / signal of the time at which it begins.  The noisy end is
N(0, S I), S = signal^2 + noise^2, which a VarianceExploding process has far from 1.

Sources: Kingma et al. 2021 (arXiv 2107.00630), variance preserving, with linear log SNR; Hoogeboom et al. 2023
(2301.11093), cosine; Karras et al. 2022 (2206.00364), variance exploding; Liu et al. 2022 (2209.03003) and Lipman et
al. 2022 (2210.02747), rectified flow.
"""

import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Real

from ddpm_jax.devices.float64 import in_float64
from ddpm_jax.diffusion.arrays import Time, check_times, is_known
from ddpm_jax.diffusion.protocol import Process, Values
from ddpm_jax.diffusion.step import Step
from ddpm_jax.errors import check_fields, require, require_int, require_part, short_repr

__all__ = ["Continuous", "Process", "RectifiedFlow", "VarianceExploding", "VariancePreserving", "check_process"]


class Continuous(Process):
    """A process in real time; subclasses are frozen dataclasses that give `signal` and `noise`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        jax.tree_util.register_static(cls)

    def build(self) -> "Continuous":
        """The process itself, after a check of its functions; an experiment builds its schedule in this way."""
        try:
            jax.eval_shape(lambda t: (self.signal(t), self.noise(t)), jnp.zeros(2))
        except jax.errors.TracerArrayConversionError:
            raise ValueError(f"process is {self}, which computes in NumPy; expected functions of jax.numpy") from None
        require("last", self.last, self.first < self.last, f"more than first, which is {self.first}")
        ends = in_float64(lambda t: (self.signal(t), self.noise(t)), [self.first, self.last])
        for name, values in zip(("signal", "noise"), ends, strict=True):
            require(f"{type(self).__name__}.{name}", values, values.shape == (2,), "an elementwise function of t")
        (clean_signal, noisy_signal), (clean_noise, noisy_noise) = ends
        signs = clean_signal > 0 <= noisy_signal and clean_noise > 0 < noisy_noise and bool(np.isfinite(ends).all())
        falls = signs and noisy_signal / noisy_noise < clean_signal / clean_noise
        found = f"signal {ends[0].tolist()} and noise {ends[1].tolist()} at the ends"
        require(str(self), found, falls, "finite ones, noise > 0, and a falling SNR")
        return self

    def label(self, t: Time) -> Values:
        return 1000.0 * self.share(t)

    def share(self, t: Time) -> Values:
        return (jnp.asarray(t) - self.first) / (self.last - self.first)

    def at_share(self, share: Time) -> Real[Array, "..."]:
        return jnp.clip(self.first + (self.last - self.first) * jnp.asarray(share), self.first, self.last)

    def step(self, t: Time, s: Time, u: Time | None = None) -> Step:
        self.check_time(t)
        self.check_time(s, "s", clean=True)
        if is_known(t, s):
            # The times that a network sees are float32; their numbers follow from these in float64.
            t, s = (np.asarray(time, np.float32) for time in (t, s))
            require("s", s, np.all(s < t), f"times before t, {short_repr(t)}")
            parts = in_float64(partial(_numbers, self), t, s)
        else:
            parts = _numbers(self, t, s)
        numbers = (jnp.asarray(part, jnp.float32) for part in parts)
        t, s = (jnp.asarray(time, jnp.float32) for time in (t, s))
        # The number of the draw is a function of t, and not 0, which is that of the draw at the noisy end.
        return Step(t, s, *numbers, draw=1 + jax.lax.bitcast_convert_type(t, jnp.uint32))

    def check_time(self, t: Any, name: str = "t", clean: bool = False) -> None:
        check_times(t, self.first, self.last, name, self.clean if clean else None)


@partial(jax.jit, static_argnums=0)
def _numbers(process: Continuous, t: Array, s: Array) -> tuple[Array, ...]:
    """The numbers of a `Step`."""
    clean = s == process.clean
    before = jnp.where(clean, process.first, s)
    signal, noise = process.signal(t), process.noise(t)
    gap = jnp.where(clean, jnp.inf, process.log_snr(before) - process.log_snr(t))
    ends = jnp.where(clean, 1.0, process.signal(before)), jnp.where(clean, 0.0, process.noise(before))
    return signal, noise, *ends, gap, (noise / signal) ** 2


times_of = jax.jit(Process.time, static_argnums=0)  # of a continuous process, compiled once


@dataclass(frozen=True)
class VariancePreserving(Continuous):
    """signal^2 + noise^2 = 1, between two log SNRs."""

    log_snr_max: float = 13.3
    """log SNR at the clean end."""
    log_snr_min: float = -5.0
    """log SNR at the noisy end."""
    shape: Literal["linear", "cosine"] = "linear"
    """"linear": log SNR linear in t.  "cosine": noise / signal = tan of an angle that is linear in t."""

    def __post_init__(self) -> None:
        check_fields(self)
        require("log_snr_max", self.log_snr_max, self.log_snr_max > self.log_snr_min, f"more than {self.log_snr_min}")

    def log_snr(self, t: Time) -> Values:
        if self.shape == "linear":
            return self.log_snr_max + (self.log_snr_min - self.log_snr_max) * jnp.asarray(t)
        ends = [math.atan(math.exp(-end / 2)) for end in (self.log_snr_max, self.log_snr_min)]
        return -2 * jnp.log(jnp.tan(ends[0] + (ends[1] - ends[0]) * jnp.asarray(t)))

    def signal(self, t: Time) -> Values:
        return jnp.sqrt(jax.nn.sigmoid(self.log_snr(t)))

    def noise(self, t: Time) -> Values:
        return jnp.sqrt(jax.nn.sigmoid(-self.log_snr(t)))


@dataclass(frozen=True)
class VarianceExploding(Continuous):
    """signal = 1, and the logarithm of noise = sigma linear in t (EDM)."""

    sigma_min: float = 0.002
    """sigma at the clean end."""
    sigma_max: float = 80.0
    """sigma at the noisy end."""
    sigma_data: float = 0.5
    """The standard deviation of the data, for `input_scale`."""

    def __post_init__(self) -> None:
        check_fields(self)
        require("sigma_min", self.sigma_min, 0 < self.sigma_min < self.sigma_max, f"0 to sigma_max, {self.sigma_max}")
        require("sigma_data", self.sigma_data, self.sigma_data > 0, "more than 0")

    def signal(self, t: Time) -> Values:
        return jnp.ones_like(t, jnp.result_type(float))

    def noise(self, t: Time) -> Values:
        return self.sigma_min * jnp.exp(math.log(self.sigma_max / self.sigma_min) * jnp.asarray(t))

    def input_scale(self, t: Time) -> Values:
        return 1 / jnp.hypot(self.noise(t), self.sigma_data)


@dataclass(frozen=True)
class RectifiedFlow(Continuous):
    """A straight line from x to eps: signal = 1 - t, noise = t."""

    first: float = 0.001
    """The clean end, more than 0."""
    last: float = 0.999
    """The noisy end; at 1 it holds nothing of x, so the target cannot be Eps or Score."""

    def __post_init__(self) -> None:
        check_fields(self)
        require("first", self.first, 0 < self.first < self.last, f"more than 0, less than last, {self.last}")
        require("last", self.last, self.last <= 1, "at most 1")

    def signal(self, t: Time) -> Values:
        return 1 - self.noise(t)

    def noise(self, t: Time) -> Values:
        return jnp.asarray(t, jnp.result_type(float))


EXPECTED_PROCESS = "expected a process, such as Linear(num_steps=1000).build() or RectifiedFlow()"


def check_process(process: Any) -> None:
    """Raise ValueError unless `process` is a process."""
    if not isinstance(process, Process):
        advice = " (call its build())" if hasattr(process, "build") else ""
        raise ValueError(f"process is {short_repr(process)}; {EXPECTED_PROCESS}{advice}")
    if isinstance(process, Continuous):
        require_part("process", process, Continuous, "a continuous process")
        _checked(process)
    elif jax.tree_util.all_leaves([process]):
        name = type(process).__name__
        raise ValueError(f"process is a {name}, which is no pytree; expected one, such as a Continuous dataclass")


@cache
def _checked(process: Continuous) -> Continuous:
    """`Continuous.build`, once for a process."""
    return process.build()


def require_chain(process: Process, name: str) -> int:
    """T, the number of steps of a chain; ValueError for a continuous process, which `name` does not take."""
    check_process(process)
    require("process", process, process.is_chain, f"a chain, such as Linear().build(), for {name}")
    return require_int("num_steps", process.last, 1)
