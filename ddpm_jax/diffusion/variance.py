"""The variance of the denoiser, p(z_s | z_t) = N(mean, var I): fixed, or read from the network.

    lower   the variance of q(z_s | z_t, x) = var_{t|s} (1 - alpha_bar_s) / (1 - alpha_bar_t)   best if x is a point
    upper   the variance of q(z_t | z_s) = var_{t|s}, which is beta_t for s = t - 1             best if x ~ N(0, I)

(Ho et al. 2020, section 3.2.)  For other data the best variance lies between these.  A network can learn where:
log var = f log upper + (1 - f) log lower, with f = `var_fraction` (Nichol & Dhariwal 2021, equation 15).

The last step, to s = 0, has lower = 0, which is wrong for p(x | z_t).  The published code takes the lower variance of
the step before it instead, u -> t in the chain ..., u, t, 0.  So a variance depends on three times: t, the end of the
step s, and the time u before t (u = t in the first step).  FixedLarge does the same in the last step.

The bound, the losses and the samplers share one variance, that of the `Denoiser`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Batch, Timesteps, per_example
from ddpm_jax.diffusion.forward import posterior_weights, step_var
from ddpm_jax.diffusion.process import Process

# One number for each example, or for each element: broadcasts against the batch.
Values = Float[Array, "..."]

__all__ = ["FixedLarge", "FixedSmall", "LearnedRange", "Variance", "lower", "upper"]


def lower(process: Process, t: Timesteps, s: Timesteps, u: Timesteps, like: Batch) -> Float[Array, "..."]:
    """The variance of q(z_s | z_t, x); at s = 0, where that is 0, the variance of q(z_t | z_u, x).

    Args:
        process: the forward process.
        t: int32, [batch] or one for all, in 1..T.
        s: the end of the step, like t, in 0..t-1.
        u: the time before t in the chain, like t, in t..T.  If u = t, the chain has one step, and the variance at s = 0
            is that of q(z_t | x).
        like: the batch that the result broadcasts against.

    Returns:
        float32 [batch, 1, ..., 1].
    """
    last, only = (per_example(jnp.asarray(a) == b, like) for a, b in ((s, 0), (u, t)))
    before = posterior_weights(process, u, t, like)[2]
    at_zero = jnp.where(only, step_var(process, t, s, like), before)
    return jnp.where(last, at_zero, posterior_weights(process, t, s, like)[2])


def upper(process: Process, t: Timesteps, s: Timesteps, like: Batch) -> Float[Array, "..."]:
    """The variance of q(z_t | z_s), float32 [batch, 1, ..., 1]; arguments as in `lower`."""
    return step_var(process, t, s, like)


@dataclass(frozen=True)
class Variance:
    """A choice between `lower` and `upper`; subclasses give `choose`, or all of `__call__`."""

    learned: ClassVar[bool] = False
    """Whether the network has twice the channels of the data; the second half, in -1..1, gives `var_fraction`."""

    def __call__(
        self,
        process: Process,
        t: Timesteps,
        s: Timesteps,
        u: Timesteps,
        like: Batch,
        var_fraction: Batch | None = None,
    ) -> Float[Array, "..."]:
        """The variance of p(z_s | z_t).

        Args:
            process, t, s, u, like: as in `lower`.
            var_fraction: the network's fraction in 0..1, shaped like `like`, if the variance is learned.

        Returns:
            float32, of a shape that broadcasts against `like`.

        Raises:
            ValueError: the variance is learned and var_fraction is None.
        """
        last = per_example(jnp.asarray(s) == 0, like)
        return self.choose(lower(process, t, s, u, like), upper(process, t, s, like), last, var_fraction)

    def choose(self, small: Values, large: Values, last: Any, var_fraction: Batch | None) -> Values:
        """The variance between the smallest and the largest.

        Args:
            small: `lower`, which broadcasts against the batch.
            large: `upper`, like small.
            last: True in the step to s = 0, like small.
            var_fraction: the network's fraction in 0..1, shaped like the batch; None if the variance is not learned.

        Returns:
            float32, of a shape that broadcasts against the batch.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class FixedSmall(Variance):
    """The lower end: beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) for s = t - 1."""

    def choose(self, small: Values, large: Values, last: Any, var_fraction: Batch | None) -> Values:
        return small


@dataclass(frozen=True)
class FixedLarge(Variance):
    """The upper end, beta_t for s = t - 1; in the last step the same as FixedSmall."""

    def choose(self, small: Values, large: Values, last: Any, var_fraction: Batch | None) -> Values:
        return jnp.where(last, small, large)


@dataclass(frozen=True)
class LearnedRange(Variance):
    """Between the two ends on a logarithmic scale, at the fraction that the network gives."""

    learned: ClassVar[bool] = True

    def choose(self, small: Values, large: Values, last: Any, var_fraction: Batch | None) -> Values:
        if var_fraction is None:
            raise ValueError("var_fraction is None; LearnedRange expects the network's, an array shaped like z_t")
        low, high = jnp.log(small), jnp.log(large)
        return jnp.exp(low + var_fraction * (high - low))
