r"""One step of a process, from t to an earlier s, and the posterior that every process shares.

With S = signal^2 + noise^2 and r = SNR_t / SNR_s, for s < t:

    q(z_t | z_s)     = N( (signal_t / signal_s) z_s,  var_{t|s} I ),      var_{t|s} = noise_t^2 (1 - r)    `forward_var`
    q(z_s | z_t, x)  = N( a z_t + b x,  var I )                                          `a`, `b`, `var`
        a = (signal_t / signal_s) (noise_s / noise_t)^2,    b = signal_s (1 - r),    var = noise_s^2 (1 - r)

(Ho et al. 2020, equation 7, for a chain with S = 1 and s = t - 1; Kingma et al. 2021, arXiv 2107.00630, appendix A.)
For a chain var_{t|t-1} is beta_t.  This form of `a` also holds where SNR_t = 0.

The variance of p(z_s | z_t) lies between two ends.  The lower one is var, the best if x is a point.  The upper one,
(S_s / S_t) var_{t|s}, is the best if x ~ N(0, I), as then cov(z_s, z_t) = (signal_t / signal_s) S_s and
var[z_s | z_t] = S_s - (signal_t / signal_s)^2 S_s^2 / S_t.  In the last step, to clean data, var is 0, which is wrong
for p(x | z_t); the process gives another variance in its place, `last_var`.

Everything follows from five numbers.  1 - r comes from the difference of two log SNRs, `gap`, because SNR_t / SNR_s
leaves few digits of 1 - r for neighbours.
"""

import dataclasses
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Real

from ddpm_jax.diffusion.arrays import Batch, per_example

__all__ = ["Step"]

Value = Float[Array, "..."]


@flax.struct.dataclass
class Step:
    """The numbers of a step t -> s, float32: one for all examples, [batch], or [steps] for a scan."""

    t: Real[Array, "..."]
    """The time at which the step begins."""
    s: Real[Array, "..."]
    """The time at which it ends, before t; `Process.clean` for clean data."""
    signal_t: Value
    noise_t: Value
    signal_s: Value
    noise_s: Value
    gap: Value
    """log SNR_s - log SNR_t; infinite if one of them is."""
    last_var: Value
    """The variance of p(x | z_t), for a step to clean data."""
    draw: Integer[Array, "..."]
    """The number of the noise that the step draws: a function of t."""
    rise: tuple[Value, Value] | None = None
    """(factor, std): what z is multiplied by, and the noise that is added, before the step; None for neither."""

    def like(self, z: Batch) -> "Step":
        """The step with its numbers shaped [batch, 1, ..., 1], or scalars, to broadcast against z."""
        names = ("signal_t", "noise_t", "signal_s", "noise_s", "gap", "last_var")
        return dataclasses.replace(self, **{name: per_example(getattr(self, name), z) for name in names})

    @property
    def is_last(self) -> Any:
        """Whether the step ends at clean data."""
        return self.noise_s == 0

    @property
    def rest(self) -> Value:
        """1 - SNR_t / SNR_s."""
        return -jnp.expm1(-self.gap)

    @property
    def a(self) -> Value:
        """The factor on z_t in the mean of q(z_s | z_t, x)."""
        return self.signal_t / self.signal_s * (self.noise_s / self.noise_t) ** 2

    @property
    def b(self) -> Value:
        """The factor on x."""
        return self.signal_s * self.rest

    @property
    def var(self) -> Value:
        """The variance of q(z_s | z_t, x)."""
        return self.noise_s**2 * self.rest

    @property
    def forward_var(self) -> Value:
        """The variance of q(z_t | z_s)."""
        return self.noise_t**2 * self.rest

    @property
    def lower(self) -> Value:
        """The variance of p(z_s | z_t) for data that are a point; `last_var` in the last step."""
        return jnp.where(self.is_last, self.last_var, self.var)

    @property
    def upper(self) -> Value:
        """The variance of p(z_s | z_t) for x ~ N(0, I)."""
        scale = (self.signal_s**2 + self.noise_s**2) / (self.signal_t**2 + self.noise_t**2)
        return scale * self.forward_var

    @property
    def stretch(self) -> Value:
        """noise_s / noise_t, the factor on z_t of a deterministic step."""
        return self.noise_s / self.noise_t

    def deterministic(self, z_t: Batch, x: Batch) -> Float[Array, "batch *dims"]:
        """z_s = (noise_s / noise_t) z_t + (signal_s - signal_t noise_s / noise_t) x: the noise of z_t stays the same.

        Args:
            z_t: the latent, float32 [batch, ...].
            x: the data, shaped like z_t.
        """
        return self.stretch * z_t + (self.signal_s - self.signal_t * self.stretch) * x
