"""What every forward process gives: functions of time, and the numbers of a step.

`chain` is the discrete kind, `process` the continuous one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from ddpm_jax.diffusion.arrays import Time
from ddpm_jax.diffusion.step import Step

Values = Float[Array, "..."]  # one number for each t


class Process:
    """A forward process: a pytree, so that jitted functions take it as an argument.

    t is a number or an array, whole numbers for a chain and real ones for a continuous process; results have its shape.
    """

    first: Any = 0.0
    """The clean end of t: the smallest time at which a network is evaluated."""
    last: Any = 1.0
    """The noisy end of t."""
    clean: Any = -math.inf
    """The time that stands for clean data."""
    is_chain = False
    """Whether time is discrete."""

    def signal(self, t: Time) -> Values:
        """The factor on x."""
        raise NotImplementedError

    def noise(self, t: Time) -> Values:
        """The factor on eps."""
        raise NotImplementedError

    def snr(self, t: Time) -> Values:
        """The signal-to-noise ratio, signal^2 / noise^2."""
        return (self.signal(t) / self.noise(t)) ** 2

    def log_snr(self, t: Time) -> Values:
        """log SNR."""
        return 2 * (jnp.log(self.signal(t)) - jnp.log(self.noise(t)))

    def rates(self, t: Time) -> tuple[Values, Values]:
        """(signal'(t), noise'(t)), at a real t."""
        t = jnp.asarray(t, jnp.result_type(float))
        return jax.jvp(lambda t: (self.signal(t), self.noise(t)), (t,), (jnp.ones_like(t),))[1]

    def log_snr_rate(self, t: Time) -> Values:
        """-d log SNR / dt, which is positive, at a real t."""
        t = jnp.asarray(t, jnp.result_type(float))
        return -jax.jvp(self.log_snr, (t,), (jnp.ones_like(t),))[1]

    def time(self, log_snr: Time, earliest: int | float | None = None) -> Values:
        """The real t at which log SNR takes a value, or the nearest end: the inverse of `log_snr`, by bisection.

        Args:
            log_snr: the values.
            earliest: the clean end of the search; None for `first`.
        """
        target = jnp.asarray(log_snr, jnp.result_type(float))
        ends = (self.first if earliest is None else earliest, self.last)
        low, high = (jnp.full(target.shape, end, target.dtype) for end in ends)

        def halve(_: Any, ends: tuple[Values, Values]) -> tuple[Values, Values]:
            middle = (ends[0] + ends[1]) / 2
            early = self.log_snr(middle) > target
            return jnp.where(early, middle, ends[0]), jnp.where(early, ends[1], middle)

        low, high = jax.lax.fori_loop(0, 30 if target.dtype == jnp.float32 else 60, halve, (low, high))
        return jnp.where(target <= self.log_snr(high), high, low)

    def label(self, t: Time) -> Real[Array, "..."]:
        """What a network is given for t: about 0 to 1000, the range that its sinusoidal embedding resolves."""
        raise NotImplementedError

    def input_scale(self, t: Time) -> Values:
        """What a network's input is multiplied by."""
        return jnp.ones(jnp.shape(t))

    def share(self, t: Time) -> Values:
        """Where t lies between the clean end, 0, and the noisy end, 1."""
        raise NotImplementedError

    def at_share(self, share: Time) -> Real[Array, "..."]:
        """The time at a share of 0 to 1; each timestep of a chain has the same part of it."""
        raise NotImplementedError

    def step(self, t: Time, s: Time, u: Time | None = None) -> Step:
        """The step from t to s.

        Args:
            t: the time at which it begins.
            s: the time at which it ends, before t; `clean` for clean data.
            u: for a chain, the time before t in it, in t..T, which counts in the last step; None for even steps.

        Raises:
            ValueError: a time is out of range.
        """
        raise NotImplementedError

    def check_time(self, t: Any, name: str = "t", clean: bool = False) -> None:
        """Raise ValueError unless t lies between the ends; a traced t is not checked.

        Args:
            t: the time, one or [batch].
            name: its name in messages.
            clean: whether it may be clean data.
        """
        raise NotImplementedError
