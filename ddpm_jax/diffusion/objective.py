"""The training objective: a loss of each example at a random timestep.

    SquaredError   w(t) || target(x, eps, t) - predict(z_t, t) ||^2 / D      z_t = signal_t x + noise_t eps
                   (Ho et al. 2020, equations 12 and 14), D the number of elements of x
    FullBound      T times the t-th term of the variational bound, bits for each element: its mean over t, and the
                   prior's term, which has no parameters, are the bound itself
    Hybrid         SquaredError + vlb_weight FullBound, the mean's gradient stopped in the second, which so teaches the
                   variance alone (Nichol & Dhariwal 2021, equation 16)

`draw` makes the random numbers, `loss` uses them: with the same draws the loss is a pure function of
the network.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion.arrays import Batch, Key, PerExample, Predict, Whole, as_data, check_timesteps, stream
from ddpm_jax.diffusion.bound import PIXEL_LEVELS, bits_per_dim, term_of
from ddpm_jax.diffusion.denoiser import Decoder
from ddpm_jax.diffusion.forward import diffuse
from ddpm_jax.diffusion.schedule import Chain, check_built
from ddpm_jax.diffusion.targets import Eps, Target
from ddpm_jax.diffusion.timesteps import UniformTimesteps
from ddpm_jax.diffusion.variance import FixedSmall
from ddpm_jax.diffusion.weighting import Simple, Weighting, weights
from ddpm_jax.errors import convert_numbers, require, require_int, require_key, require_shape


class Draws(NamedTuple):
    """What is random in the loss of a batch: timesteps in 1..T and noise."""

    t: Int[Array, " batch"]
    eps: Float[Array, "batch *dims"]


def draw(key: Key, schedule: Chain, shape: tuple[Whole, ...]) -> Draws:
    """t uniform on 1..T for each example, and eps ~ N(0, I), for a batch of `shape` = [batch, ...]."""
    require_key(key)
    check_built(schedule)
    shape = require_shape("shape", shape, "(batch, ...) with every size at least 1")
    t, _ = UniformTimesteps().draw(stream(key, "t"), (), schedule.num_steps, shape[0])
    return Draws(t, draw_noise(key, shape))


def draw_noise(key: Key, shape: tuple[int, ...]) -> Float[Array, "batch *dims"]:
    """eps ~ N(0, I), from its own stream of `key`."""
    return jax.random.normal(stream(key, "eps"), shape, jnp.float32)


@dataclass(frozen=True)
class Objective:
    """A loss of each example; subclasses give `__call__`."""

    def __call__(self, decoder: Decoder, x: Batch, draws: Draws) -> PerExample:
        """The loss of each example, float32 [batch]; decoder: of the network as it is, without clipping."""
        raise NotImplementedError


@dataclass(frozen=True)
class SquaredError(Objective):
    """The weighted squared error of what the network predicts, averaged over elements."""

    weighting: Weighting = Simple()
    """How much each timestep counts."""

    def __post_init__(self) -> None:
        is_one = isinstance(self.weighting, Weighting)
        require("weighting", type(self.weighting).__name__, is_one, "a Weighting, such as Simple(), or Weights(array)")

    def __call__(self, decoder: Decoder, x: Batch, draws: Draws) -> PerExample:
        output, _ = decoder.output(diffuse(decoder.schedule, x, draws.t, draws.eps), draws.t)
        return self.of_output(decoder, output, x, draws)

    def of_output(self, decoder: Decoder, output: Batch, x: Batch, draws: Draws) -> PerExample:
        """The same, given the network's output."""
        error = output - decoder.target.encode(decoder.schedule, x, draws.eps, draws.t)
        weight = weights(self.weighting, decoder.schedule, draws.t, decoder.target)
        return weight * jnp.mean(error**2, axis=range(1, error.ndim))


@dataclass(frozen=True)
class FullBound(Objective):
    """T times the t-th term of the bound, in bits for each element."""

    bins: int | None = PIXEL_LEVELS
    """Levels of the data, as in `bound`; None for continuous data."""

    def __post_init__(self) -> None:
        convert_numbers(self)
        if self.bins is not None:
            require_int("bins", self.bins, 2, "None or at least 2")

    def __call__(self, decoder: Decoder, x: Batch, draws: Draws) -> PerExample:
        z_t = diffuse(decoder.schedule, x, draws.t, draws.eps)
        output, share = decoder.output(z_t, draws.t)
        return self.of_output(decoder, output, share, x, z_t, draws)

    def of_output(
        self, decoder: Decoder, output: Batch, share: Float[Array, "..."] | None, x: Batch, z_t: Batch, draws: Draws
    ) -> PerExample:
        """The same, given the network's output."""
        prediction = decoder.read(output, share, z_t, draws.t)
        nats = term_of(decoder, prediction, jnp.asarray(x), z_t, draws.t, draws.t - 1, self.bins)
        return decoder.schedule.num_steps * bits_per_dim(nats, x)


@dataclass(frozen=True)
class Hybrid(Objective):
    """The squared error teaches the mean, the bound the variance: L_simple + vlb_weight L_vlb."""

    vlb_weight: float = 0.001
    """The paper's lambda."""
    weighting: Weighting = Simple()
    """How much each timestep counts in the squared error."""
    bins: int | None = PIXEL_LEVELS
    """Levels of the data, as in `bound`; None for continuous data."""

    def __post_init__(self) -> None:
        convert_numbers(self)
        require("vlb_weight", self.vlb_weight, 0 < self.vlb_weight < float("inf"), "more than 0")
        FullBound(self.bins)
        SquaredError(self.weighting)

    def __call__(self, decoder: Decoder, x: Batch, draws: Draws) -> PerExample:
        z_t = diffuse(decoder.schedule, x, draws.t, draws.eps)
        output, share = decoder.output(z_t, draws.t)
        simple = SquaredError(self.weighting).of_output(decoder, output, x, draws)
        stopped = jax.lax.stop_gradient(output)
        return simple + self.vlb_weight * FullBound(self.bins).of_output(decoder, stopped, share, x, z_t, draws)


def loss(
    predict: Predict,
    schedule: Chain,
    x: Batch,
    draws: Draws,
    target: Target = Eps(),
    weighting: Weighting = Simple(),
) -> PerExample:
    """The weighted squared error of each example, averaged over its elements: float32 [batch].

    Raises ValueError where the network's output is not shaped like x, or a t is outside 1..T.
    """
    decoder = Decoder.of(predict, schedule, target, FixedSmall(), clip=False)
    require("draws", draws, isinstance(draws, Draws), "Draws(t, eps), such as those of draw(key, schedule, x.shape)")
    check_timesteps(draws.t, 1, schedule.num_steps)
    return SquaredError(weighting)(decoder, as_data(x, scaled=True), draws)
