"""The variance of the decoder, p(z_s | z_t) = N(mu_theta(z_t, t), var I): fixed, or read from the network.

    lower   var of q(z_s | z_t, x) = var_{t|s} (1 - alpha_bar_s) / (1 - alpha_bar_t)      best if x is a point
    upper   var of q(z_t | z_s) = var_{t|s}, which is beta_t for s = t - 1                best if x ~ N(0, I)

(Ho et al. 2020, section 3.2); for any other data the best variance lies between, and a network can learn
where: log var = share log upper + (1 - share) log lower (Nichol & Dhariwal 2021, equation 15).

The last step, to s = 0, has lower = 0, the wrong answer for p(x | z_t).  The published code takes the lower variance
of the chain's step before it instead, that of u -> t for the chain ..., u, t, 0 ("to get a better decoder log
likelihood").  So a variance is a function of three times: t, the end of the step, `earlier`, and u, `later`, from which
the chain came to t (t itself for the first step, which has none before it).  FixedLarge does the same.

One choice of variance is shared by the bound, the losses and the samplers (`Decoder`).
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Batch, Timesteps, per_example
from ddpm_jax.diffusion.forward import posterior_weights, step_var
from ddpm_jax.diffusion.schedule import Chain


def lower(schedule: Chain, t: Timesteps, earlier: Timesteps, later: Timesteps, like: Batch) -> Float[Array, "..."]:
    """The variance of q(z_earlier | z_t, x); at earlier = 0, where that is 0, the variance of q(z_t | z_later, x).

    A chain of one step, later = t, has no step before its last one: there it is the variance of q(z_t | x).
    """
    last, only = (per_example(jnp.asarray(a) == b, like) for a, b in ((earlier, 0), (later, t)))
    before = posterior_weights(schedule, later, t, like)[2]
    at_zero = jnp.where(only, step_var(schedule, t, earlier, like), before)
    return jnp.where(last, at_zero, posterior_weights(schedule, t, earlier, like)[2])


def upper(schedule: Chain, t: Timesteps, earlier: Timesteps, like: Batch) -> Float[Array, "..."]:
    """The variance of q(z_t | z_earlier)."""
    return step_var(schedule, t, earlier, like)


@dataclass(frozen=True)
class Variance:
    """A choice of the variance.  Subclasses give `__call__`; `learned` ones are told the network's share."""

    learned: ClassVar[bool] = False
    """Whether the network has twice the data's channels: the second half says `share`, from -1 (0) to 1 (1)."""

    def __call__(
        self,
        schedule: Chain,
        t: Timesteps,
        earlier: Timesteps,
        later: Timesteps,
        z_t: Batch,
        share: Batch | None = None,
    ) -> Float[Array, "..."]:
        """The variance, shaped to broadcast against z_t; 0 <= earlier < t <= later <= T.

        later: the time from which the chain came to t, t itself in its first step.  share: the network's, shaped like
        z_t, for a learned variance.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class FixedSmall(Variance):
    """The lower end: beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) for s = t - 1."""

    def __call__(
        self,
        schedule: Chain,
        t: Timesteps,
        earlier: Timesteps,
        later: Timesteps,
        z_t: Batch,
        share: Batch | None = None,
    ) -> Float[Array, "..."]:
        return lower(schedule, t, earlier, later, z_t)


@dataclass(frozen=True)
class FixedLarge(Variance):
    """The upper end, beta_t for s = t - 1; in the last step the same as FixedSmall."""

    def __call__(
        self,
        schedule: Chain,
        t: Timesteps,
        earlier: Timesteps,
        later: Timesteps,
        z_t: Batch,
        share: Batch | None = None,
    ) -> Float[Array, "..."]:
        last = per_example(jnp.asarray(earlier) == 0, z_t)
        small, large = lower(schedule, t, earlier, later, z_t), upper(schedule, t, earlier, z_t)
        return jnp.where(last, small, large)


@dataclass(frozen=True)
class LearnedRange(Variance):
    """Where the network says, between the two ends on a logarithmic scale; it needs twice the channels."""

    learned: ClassVar[bool] = True

    def __call__(
        self,
        schedule: Chain,
        t: Timesteps,
        earlier: Timesteps,
        later: Timesteps,
        z_t: Batch,
        share: Batch | None = None,
    ) -> Float[Array, "..."]:
        if share is None:
            raise ValueError("share is None; LearnedRange expects the network's share, an array shaped like z_t")
        small = jnp.log(lower(schedule, t, earlier, later, z_t))
        large = jnp.log(upper(schedule, t, earlier, z_t))
        return jnp.exp(small + share * (large - small))
