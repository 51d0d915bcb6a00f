"""The training objective: a loss of each example at a random timestep.

    SquaredError   w(t) || target(x, eps, t) - predict(z_t, t) ||^2 / D      z_t = signal_t x + noise_t eps
                   (Ho et al. 2020, equations 12 and 14), D the number of elements of x
    FullBound      T times the t-th term of the variational bound, bits for each element: its mean over t, and the
                   prior's term, which has no parameters, are the bound itself.  For a continuous process, the limit of
                   infinitely many steps, without the term of the step to clean data
    Hybrid         SquaredError + vlb_weight FullBound, the mean's gradient stopped in the second, which so teaches the
                   variance alone (Nichol & Dhariwal 2021, equation 16)

`draw` makes the random numbers, an objective uses them: with the same draws the loss is a pure function of the network.

    losses = SquaredError(MinSnr(5))(model, x, draw(key, model.process, x.shape))                    float32 [batch]
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.arrays import Batch, Key, PerExample, Time, Whole, as_data, stream
from ddpm_jax.diffusion.bound import bits_per_dim, rate_of, term_of
from ddpm_jax.diffusion.denoiser import Denoiser, check_denoiser
from ddpm_jax.diffusion.discretised import PIXEL_LEVELS
from ddpm_jax.diffusion.forward import diffuse
from ddpm_jax.diffusion.process import Process, check_process
from ddpm_jax.diffusion.timesteps import UniformTimesteps
from ddpm_jax.diffusion.weighting import Simple, Weighting, weights
from ddpm_jax.errors import check_fields, require, require_int, require_key, require_shape

__all__ = ["Draws", "FullBound", "Hybrid", "Objective", "SquaredError", "draw"]


class Draws(NamedTuple):
    """What is random in the loss of a batch: times, [batch], and noise."""

    t: Time
    eps: Float[Array, "batch *dims"]


def draw(key: Key, process: Process, shape: tuple[Whole, ...]) -> Draws:
    """The random numbers of the loss of a batch: t uniform for each example, and eps ~ N(0, I).

    Args:
        key: the key.
        process: the forward process.
        shape: (batch, ...), that of the data.

    Returns:
        t, [batch], int32 in 1..T for a chain, float32 for a continuous process; and eps, float32 of `shape`.

    Raises:
        ValueError: an argument has the wrong type, or a size is not at least 1.
    """
    require_key(key)
    check_process(process)
    shape = require_shape("shape", shape, "(batch, ...) with every size at least 1")
    t, _ = UniformTimesteps().draw(stream(key, "t"), (), process, shape[0])
    return Draws(t, draw_noise(key, shape))


def draw_noise(key: Key, shape: tuple[int, ...]) -> Float[Array, "batch *dims"]:
    """eps ~ N(0, I), from its own stream of `key`."""
    return jax.random.normal(stream(key, "eps"), shape, jnp.float32)


@dataclass(frozen=True)
class Objective:
    """A loss of each example; subclasses give `losses`."""

    def __call__(self, model: Denoiser, x: Batch, draws: Draws) -> PerExample:
        """The loss of each example.

        Args:
            model: the denoiser; its clipping is ignored.
            x: the data, float32 [batch, ...].
            draws: the timesteps and the noise, such as those of `draw`.

        Returns:
            float32 [batch].

        Raises:
            ValueError: an argument has the wrong type or shape, or a t is out of range.
        """
        check_denoiser(model)
        require("draws", draws, isinstance(draws, Draws), "Draws(t, eps), such as those of draw(key, process, x.shape)")
        model.process.check_time(draws.t)
        x = as_data(x, scaled=True)
        z_t = diffuse(model.process, x, draws.t, draws.eps)
        return self.losses(model.unclipped, *model.output(z_t, draws.t), x, z_t, draws)

    def losses(
        self, model: Denoiser, output: Batch, of_variance: Batch | None, x: Batch, z_t: Batch, draws: Draws
    ) -> PerExample:
        """The loss of each example.

        Args:
            model: the denoiser, without clipping.
            output: the output for the target at z_t, as `Denoiser.output` returns it.
            of_variance: the output for the variance; None if it is not learned.
            x: the data, float32 [batch, ...].
            z_t: diffuse(x, t, eps).
            draws: t and eps.

        Returns:
            float32 [batch].
        """
        raise NotImplementedError


@dataclass(frozen=True)
class SquaredError(Objective):
    """The weighted squared error of the network's output, averaged over elements."""

    weighting: Weighting = Simple()
    """How much each timestep counts."""

    def __post_init__(self) -> None:
        is_one = isinstance(self.weighting, Weighting)
        require("weighting", type(self.weighting).__name__, is_one, "a Weighting, such as Simple(), or Weights(array)")

    def losses(
        self, model: Denoiser, output: Batch, of_variance: Batch | None, x: Batch, z_t: Batch, draws: Draws
    ) -> PerExample:
        error = output - model.target.encode(model.process, x, draws.eps, draws.t)
        weight = weights(self.weighting, model.process, draws.t, model.target)
        return weight * jnp.mean(error**2, axis=range(1, error.ndim))


@dataclass(frozen=True)
class FullBound(Objective):
    """T times the t-th term of the bound, in bits for each element; for a continuous process, that of the limit."""

    bins: int | None = PIXEL_LEVELS
    """The number of levels of the data, as in `bound`; None for continuous data."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.bins is not None:
            require_int("bins", self.bins, 2, "None or at least 2")

    def losses(
        self, model: Denoiser, output: Batch, of_variance: Batch | None, x: Batch, z_t: Batch, draws: Draws
    ) -> PerExample:
        prediction = model.read(output, of_variance, z_t, draws.t)
        process, t = model.process, jnp.asarray(draws.t)
        if not process.is_chain:
            length = (process.last - process.first) * process.log_snr_rate(t)
            return length * bits_per_dim(rate_of(model, prediction, x, t), x)
        return process.last * bits_per_dim(term_of(model, prediction, x, z_t, process.step(t, t - 1), self.bins), x)


@dataclass(frozen=True)
class Hybrid(Objective):
    """The squared error trains the mean, the bound trains the variance: L_simple + vlb_weight L_vlb."""

    vlb_weight: float = 0.001
    """The paper's lambda."""
    weighting: Weighting = Simple()
    """How much each timestep counts in the squared error."""
    bins: int | None = PIXEL_LEVELS
    """The number of levels of the data, as in `bound`; None for continuous data."""

    def __post_init__(self) -> None:
        check_fields(self)
        require("vlb_weight", self.vlb_weight, 0 < self.vlb_weight < float("inf"), "more than 0")
        FullBound(self.bins)
        SquaredError(self.weighting)

    def losses(
        self, model: Denoiser, output: Batch, of_variance: Batch | None, x: Batch, z_t: Batch, draws: Draws
    ) -> PerExample:
        simple = SquaredError(self.weighting).losses(model, output, of_variance, x, z_t, draws)
        stopped = jax.lax.stop_gradient(output)
        return simple + self.vlb_weight * FullBound(self.bins).losses(model, stopped, of_variance, x, z_t, draws)
