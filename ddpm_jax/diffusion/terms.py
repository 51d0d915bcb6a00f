r"""One term of the variational bound, and its limit for short steps (`bound`).

t -> s < t:           KL(q(z_s | z_t, x) || p(z_s | z_t))                     `term_of`
the last step:        -log p(x | z_t)                                         `term_of`
the noisy end:        KL(q(z_T | x) || N(0, S_T I))                           `prior`
s -> t:               SNR / 2 ||x - x predicted||^2 for each unit of log SNR  `rate_of`
"""

import math
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array

from ddpm_jax.devices.precision import quoted
from ddpm_jax.diffusion.arrays import Batch, PerExample, Time, Whole, as_data, check_shape, lookup
from ddpm_jax.diffusion.denoiser import Denoiser, check_denoiser
from ddpm_jax.diffusion.discretised import PIXEL_LEVELS, discretised_log_prob
from ddpm_jax.diffusion.forward import before, diffuse, marginal
from ddpm_jax.diffusion.gaussian import Normal
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.step import Step
from ddpm_jax.diffusion.targets import Prediction
from ddpm_jax.errors import require_int


@flax.struct.dataclass
class Term:
    """One term of the bound for each example, and the errors of what was predicted there, means over elements."""

    nats: PerExample
    x_mse: PerExample
    eps_mse: PerExample


def prior(process: Process, x: Batch, t: Time | None = None) -> PerExample:
    """KL(q(z_t | x) || N(0, S_t I)) in nats, [batch]: what z_t still says of x; t is the noisy end if None.

    Args:
        process: the forward process.
        x: the data, float32 [batch, ...].
        t: the time, one or [batch]; None for the noisy end.
    """
    end: Time = process.last if t is None else t
    q = marginal(process, x, end)
    scale = jnp.hypot(lookup(process.signal, end, x), q.std)
    return _sum(q.kl(Normal(jnp.zeros_like(q.mean), jnp.broadcast_to(scale, q.std.shape))))


def term_of(
    model: Denoiser, prediction: Prediction, x: Batch, z_t: Batch, step: Step, bins: Whole | None = PIXEL_LEVELS
) -> PerExample:
    """The term of a step, given the prediction at z_t; arguments as in `term` and `Denoiser.normal`."""
    step = step.like(z_t)
    p = model.normal(prediction, z_t, step)
    code = -(p.log_prob(jnp.asarray(x)) if bins is None else discretised_log_prob(p, x, bins))
    # Both means contain the same a z_t.  Without it their difference, b (x - x predicted), keeps its digits.
    var = jnp.where(step.is_last, 1.0, step.var)  # in the last step q is a point, and unused
    q = Normal(mean=step.b * (x - prediction.x), std=jnp.sqrt(var))
    return _sum(jnp.where(step.is_last, code, q.kl(Normal(jnp.zeros_like(q.mean), p.std))))


def rate_of(model: Denoiser, prediction: Prediction, x: Batch, t: Time) -> PerExample:
    """SNR / 2 ||x - x predicted||^2: nats per unit of log SNR in the limit of infinitely many steps, float32 [batch].

    Args:
        model: the denoiser.
        prediction: the prediction at z_t.
        x: the data, float32 [batch, ...].
        t: the time, [batch].
    """
    return 0.5 * model.process.snr(t) * _sum((jnp.asarray(x) - prediction.x) ** 2)


@quoted
def term(
    model: Denoiser,
    x: Batch,
    t: Time,
    eps: Batch,
    *,
    s: Time | None = None,
    u: Time | None = None,
    bins: Whole | None = PIXEL_LEVELS,
) -> Term:
    """The term of each example's step t -> s, from the one sample z_t = diffuse(x, t, eps).

    Args:
        model: the denoiser.
        x: the data, float32 [batch, ...].
        t: [batch] or one for all; int32 in 1..T for a chain.
        eps: standard normal noise, shaped like x.
        s: the end of the step, like t, before it; None for t - 1, in a chain.
        u: the time before t in a strided chain, like t, in t..T; None for even steps, 2 t - s, at most T.  It counts
            only in the last step, to s = 0 (`variance`).
        bins: the number of levels of the data; None for continuous data, whose last term is minus the log density.

    Returns:
        The term and the errors of the prediction, each [batch].

    Raises:
        ValueError: an argument has the wrong type or shape, or a time is out of range.
    """
    check_denoiser(model)
    step = model.process.step(t, before(model.process, t) if s is None else s, u)
    x, bins = as_data(x, scaled=True), levels_of(bins)
    check_shape("eps", eps, "x", x)
    return term_at(model, x, step, eps, bins)


def term_at(model: Denoiser, x: Array, step: Step, eps: Batch, bins: int | None) -> Term:
    z_t = diffuse(model.process, x, step.t, eps)
    prediction = model.denoise(z_t, jnp.broadcast_to(step.t, x.shape[:1]))
    nats = term_of(model, prediction, x, z_t, step, bins)
    return Term(nats, _mean((prediction.x - x) ** 2), _mean((prediction.eps - eps) ** 2))


def levels_of(bins: Any) -> int | None:
    return None if bins is None else require_int("bins", bins, 2)


def bits_per_dim(nats: PerExample, x: Batch) -> PerExample:
    """Nats for each example as bits for each of its elements.

    Args:
        nats: float32 [batch].
        x: the data, [batch, ...], of which the shape counts.

    Returns:
        float32 [batch].
    """
    return nats / (math.prod(x.shape[1:]) * math.log(2))


def _sum(values: Array) -> PerExample:
    return values.reshape(len(values), -1).sum(1)


def _mean(values: Array) -> PerExample:
    return values.reshape(len(values), -1).mean(1)
