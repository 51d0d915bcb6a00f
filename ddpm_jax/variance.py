"""The variance of the decoder, p(z_s | z_t) = N(mu_theta(z_t, t), var I), where it is not learned.

Both are optimal for a kind of data: FixedSmall where x is a single point, FixedLarge where x ~ N(0, I)
(Ho et al. 2020, section 3.2); for any other data the best one lies between.
"""

from dataclasses import dataclass

from jaxtyping import Array, Float

from ddpm_jax.arrays import Batch, Timesteps
from ddpm_jax.forward import posterior_weights, step_var
from ddpm_jax.schedule import NoiseSchedule


@dataclass(frozen=True)
class Variance:
    """A choice of var(t, earlier), shaped [batch, 1, ..., 1] to broadcast against z_t."""

    def __call__(self, schedule: NoiseSchedule, t: Timesteps, earlier: Timesteps, z_t: Batch) -> Float[Array, "..."]:
        raise NotImplementedError


@dataclass(frozen=True)
class FixedSmall(Variance):
    """The variance of q(z_s | z_t, x): beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) for s = t - 1."""

    def __call__(self, schedule: NoiseSchedule, t: Timesteps, earlier: Timesteps, z_t: Batch) -> Float[Array, "..."]:
        return posterior_weights(schedule, t, earlier, z_t)[2]


@dataclass(frozen=True)
class FixedLarge(Variance):
    """The variance of q(z_t | z_s): beta_t for s = t - 1."""

    def __call__(self, schedule: NoiseSchedule, t: Timesteps, earlier: Timesteps, z_t: Batch) -> Float[Array, "..."]:
        return step_var(schedule, t, earlier, z_t)
