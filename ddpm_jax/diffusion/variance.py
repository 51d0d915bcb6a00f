"""The variance of the denoiser, p(z_s | z_t) = N(mean, var I): fixed, or read from the network.

    lower   the variance of q(z_s | z_t, x)                                                best if x is a point
    upper   (S_s / S_t) times that of q(z_t | z_s), S = signal^2 + noise^2: beta_t in a chain    best if x ~ N(0, I)

(Ho et al. 2020, section 3.2; `step`.)  For other data the best variance lies between these.  A network can learn where:
log var = f log upper + (1 - f) log lower, with f = `var_fraction` (Nichol & Dhariwal 2021, equation 15).

The last step, to clean data, has lower = 0, which is wrong for p(x | z_t).  A chain takes the lower variance of the
step before it instead, as the published code does; a continuous process takes 1 / SNR_t.  FixedLarge does the same.

The bound, the losses and the samplers share one variance, that of the `Denoiser`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Batch
from ddpm_jax.diffusion.step import Step

# One number for each example, or for each element: broadcasts against the batch.
Values = Float[Array, "..."]

__all__ = ["FixedLarge", "FixedSmall", "LearnedRange", "Variance"]


@dataclass(frozen=True)
class Variance:
    """A choice between the two ends; subclasses give `choose`, or all of `__call__`."""

    learned: ClassVar[bool] = False
    """Whether the network has twice the channels of the data; the second half, in -1..1, gives `var_fraction`."""

    def __call__(self, step: Step, var_fraction: Batch | None = None) -> Values:
        """The variance of p(z_s | z_t).

        Args:
            step: the step t -> s.
            var_fraction: the network's fraction in 0..1, shaped like the batch, if the variance is learned.

        Returns:
            float32, of a shape that broadcasts against the step's numbers and the batch.

        Raises:
            ValueError: the variance is learned and var_fraction is None.
        """
        return self.choose(step.lower, step.upper, step.is_last, var_fraction)

    def choose(self, small: Values, large: Values, last: Any, var_fraction: Batch | None) -> Values:
        """The variance between the smallest and the largest.

        Args:
            small: the lower end, which broadcasts against the batch.
            large: the upper end, like small.
            last: True in the step to clean data, like small.
            var_fraction: the network's fraction in 0..1, shaped like the batch; None if the variance is not learned.

        Returns:
            float32, of a shape that broadcasts against the batch.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class FixedSmall(Variance):
    """The lower end: beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) in a chain, for s = t - 1."""

    def choose(self, small: Values, large: Values, last: Any, var_fraction: Batch | None) -> Values:
        return small


@dataclass(frozen=True)
class FixedLarge(Variance):
    """The upper end, beta_t in a chain, for s = t - 1; in the last step the same as FixedSmall."""

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
