"""The variance of the decoder, p(z_s | z_t) = N(mu_theta(z_t, t), var I): fixed, or read from the network.

    lower   var of q(z_s | z_t, x) = var_{t|s} (1 - alpha_bar_s) / (1 - alpha_bar_t)      best if x is a point
    upper   var of q(z_t | z_s) = var_{t|s}, which is beta_t for s = t - 1                best if x ~ N(0, I)

(Ho et al. 2020, section 3.2); for any other data the best variance lies between, and a network can learn
where: log var = share log upper + (1 - share) log lower (Nichol & Dhariwal 2021, equation 15).

The last step, to s = 0, has lower = 0, the wrong answer for p(x | z_t).  The published code takes the
lower variance of the step before instead, "to get a better decoder log likelihood": that of t = 2 for t = 1, and
in a strided chain, which is evenly spaced there, that of 2 t -> t.  FixedLarge does the same.

One choice of variance is shared by the bound, the losses and the samplers (`Decoder`).
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.arrays import Batch, Timesteps, per_example
from ddpm_jax.forward import posterior_weights, step_var
from ddpm_jax.schedule import NoiseSchedule


def lower(schedule: NoiseSchedule, t: Timesteps, earlier: Timesteps, like: Batch) -> Float[Array, "..."]:
    """The variance of q(z_earlier | z_t, x), and at earlier = 0 that of the step before: never 0."""
    t, earlier = jnp.asarray(t), jnp.asarray(earlier)
    last = per_example(earlier == 0, like)
    # Where a chain has one step only, there is no step before it.
    only = per_example(2 * t > schedule.num_steps, like)
    before = posterior_weights(schedule, jnp.minimum(2 * t, schedule.num_steps), t, like)[2]
    first_entry = jnp.where(only, step_var(schedule, t, earlier, like), before)
    return jnp.where(last, first_entry, posterior_weights(schedule, t, earlier, like)[2])


def upper(schedule: NoiseSchedule, t: Timesteps, earlier: Timesteps, like: Batch) -> Float[Array, "..."]:
    """The variance of q(z_t | z_earlier)."""
    return step_var(schedule, t, earlier, like)


@dataclass(frozen=True)
class Variance:
    """A choice of the variance.  Subclasses give `__call__`; `learned` ones are told the network's share."""

    learned: ClassVar[bool] = False
    """Whether the network has twice the data's channels: the second half says `share`, from -1 (0) to 1 (1)."""

    def __call__(
        self, schedule: NoiseSchedule, t: Timesteps, earlier: Timesteps, z_t: Batch, share: Batch | None = None
    ) -> Float[Array, "..."]:
        """The variance, shaped to broadcast against z_t; 0 <= earlier < t; share: as z_t, where it is learned."""
        raise NotImplementedError


@dataclass(frozen=True)
class FixedSmall(Variance):
    """The lower end: beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) for s = t - 1."""

    def __call__(
        self, schedule: NoiseSchedule, t: Timesteps, earlier: Timesteps, z_t: Batch, share: Batch | None = None
    ) -> Float[Array, "..."]:
        return lower(schedule, t, earlier, z_t)


@dataclass(frozen=True)
class FixedLarge(Variance):
    """The upper end, beta_t for s = t - 1; in the last step the same as FixedSmall."""

    def __call__(
        self, schedule: NoiseSchedule, t: Timesteps, earlier: Timesteps, z_t: Batch, share: Batch | None = None
    ) -> Float[Array, "..."]:
        last = per_example(jnp.asarray(earlier) == 0, z_t)
        small, large = (end(schedule, t, earlier, z_t) for end in (lower, upper))
        return jnp.where(last, small, large)


@dataclass(frozen=True)
class LearnedRange(Variance):
    """Where the network says, between the two ends on a logarithmic scale; it needs twice the channels."""

    learned: ClassVar[bool] = True

    def __call__(
        self, schedule: NoiseSchedule, t: Timesteps, earlier: Timesteps, z_t: Batch, share: Batch | None = None
    ) -> Float[Array, "..."]:
        if share is None:
            raise ValueError("share is None; LearnedRange expects the network's share, an array shaped like z_t")
        small, large = (jnp.log(end(schedule, t, earlier, z_t)) for end in (lower, upper))
        return jnp.exp(small + share * (large - small))
