"""How much each timestep counts in the loss.

A weighting is a frozen dataclass called with (schedule, t); it returns one weight per timestep, which
multiplies the squared error of the network's output, or, where `of_x` is set, of the x that the output
stands for, so that it means the same whatever the network predicts.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.arrays import Timesteps
from ddpm_jax.check import require
from ddpm_jax.schedule import NoiseSchedule
from ddpm_jax.targets import Target


@dataclass(frozen=True)
class Weighting:
    """A function of (schedule, t); subclasses give `__call__`."""

    of_x: ClassVar[bool] = False

    def __call__(self, schedule: NoiseSchedule, t: Timesteps) -> Float[Array, "..."]:
        """The weight of each timestep, shaped like t."""
        raise NotImplementedError


@dataclass(frozen=True)
class Simple(Weighting):
    """1 for every timestep: L_simple (Ho et al. 2020, equation 14)."""

    def __call__(self, schedule: NoiseSchedule, t: Timesteps) -> Float[Array, "..."]:
        return jnp.ones_like(schedule.snr[jnp.asarray(t)])


@dataclass(frozen=True)
class MinSnr(Weighting):
    """min(snr_t, gamma) on the error of x (Hang et al. 2023, arXiv 2303.09556, section 3.4)."""

    gamma: float = 5.0
    """Where the signal-to-noise ratio is cut; the paper uses 5."""

    of_x: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require("gamma", self.gamma, self.gamma > 0, "more than 0")

    def __call__(self, schedule: NoiseSchedule, t: Timesteps) -> Float[Array, "..."]:
        return jnp.minimum(schedule.snr[jnp.asarray(t)], self.gamma)


def weights(weighting: Weighting, schedule: NoiseSchedule, t: Timesteps, target: Target) -> Float[Array, "..."]:
    """The weights on the squared error of the output of a network that predicts `target`."""
    weight = weighting(schedule, t)
    return weight / target.error_ratio(schedule, t) if weighting.of_x else weight
