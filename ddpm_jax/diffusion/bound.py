r"""The variational bound (the negative ELBO): the nats, or bits, that a trained model needs to describe x without loss.

    -log p(x) <= KL(q(z_T | x) || N(0, I))                                                        `prior`
                 + sum_{t=2..T} E_q KL(q(z_{t-1} | z_t, x) || p(z_{t-1} | z_t))                   `term`, t >= 2
                 + E_q[ -log p(x | z_1) ]                                                         `term`, t = 1

(Ho et al. 2020, equation 5; *Understanding Deep Learning*, section 18.4.)  The inequality holds for any
model; each KL is between normals, so closed.  The last term codes data of `bins` levels: p(x | z_1) is the
normal's mass between the midpoints of neighbouring levels, the outermost reaching to infinity (equation 13).

A strided chain T = t_0 > t_1 > ... > t_K = 0 has the same bound with (t_{k-1}, t_k) for (t, t - 1) (Nichol & Dhariwal
2021, section 4).  Every number is the sum over an example's elements, [batch], in nats, unless it says otherwise.
The network is evaluated in full float32 (`ddpm_jax.devices.precision`).
"""

import math
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from ddpm_jax.devices.axes import rows_of, with_automatic_axes
from ddpm_jax.devices.precision import quoted
from ddpm_jax.diffusion.arrays import (
    Batch,
    Key,
    PerExample,
    Timesteps,
    Whole,
    as_data,
    check_shape,
    example_keys,
    normals,
    per_example,
)
from ddpm_jax.diffusion.denoiser import Denoiser, check_arguments, check_denoiser
from ddpm_jax.diffusion.discretised import PIXEL_LEVELS, discretised_log_prob
from ddpm_jax.diffusion.forward import check_step, diffuse, marginal, posterior_weights
from ddpm_jax.diffusion.gaussian import Normal
from ddpm_jax.diffusion.grids import Grid, Uniform, times_before
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.targets import Prediction
from ddpm_jax.diffusion.timesteps import strata
from ddpm_jax.errors import require, require_int

__all__ = ["Bound", "Term", "bits_per_dim", "bound", "estimate", "prior", "term", "term_of"]


@flax.struct.dataclass
class Term:
    """One term of the bound for each example, and the errors of what was predicted there, means over elements."""

    nats: PerExample
    x_mse: PerExample
    eps_mse: PerExample


@flax.struct.dataclass
class Bound:
    """All terms of the bound for each example; step k goes from t[k] to t[k + 1], the last one to 0."""

    prior: PerExample
    """KL(q(z_T | x) || N(0, I)), nats."""
    nats: Float[Array, "steps batch"]
    """The term of each step; the last one is the model's, -log p(x | z)."""
    x_mse: Float[Array, "steps batch"]
    """Mean squared error of the predicted x."""
    eps_mse: Float[Array, "steps batch"]
    """Mean squared error of the predicted eps."""
    t: Int[Array, " steps"]
    """The timestep of each step, falling from T."""
    dims: int = flax.struct.field(pytree_node=False)
    """Elements of an example."""

    @property
    def total(self) -> PerExample:
        """The bound on -log p(x), nats."""
        return self.prior + self.nats.sum(0)

    @property
    def bits_per_dim(self) -> PerExample:
        """The bound in bits for each element of x."""
        return self.total / (self.dims * math.log(2))

    def rate_distortion(self) -> tuple[Float[Array, " steps"], Float[Array, " steps"]]:
        """(rate, distortion) of progressive coding, at each t: both fall along a curve of the trade-off.

        rate [steps]: bits for each element that the receiver has been sent when it holds z_t, the prior's and
        those of the steps before; distortion [steps]: root mean squared error of the x it then predicts, on the
        scale 0..255.  (Ho et al. 2020, section 4.3 and figure 5.)
        """
        sent = self.prior.mean() + jnp.cumsum(self.nats.mean(1)) - self.nats.mean(1)
        return sent / (self.dims * math.log(2)), 127.5 * jnp.sqrt(self.x_mse.mean(1))


def prior(process: Process, x: Batch, t: Timesteps | None = None) -> PerExample:
    """KL(q(z_t | x) || N(0, I)) in nats, [batch]: what z_t still says of x; t is T if None."""
    q = marginal(process, x, process.num_steps if t is None else t)
    return _sum(q.kl(Normal(jnp.zeros_like(q.mean), jnp.ones_like(q.std))))


def term_of(
    model: Denoiser,
    prediction: Prediction,
    x: Batch,
    z_t: Batch,
    t: Timesteps,
    s: Timesteps,
    bins: Whole | None = PIXEL_LEVELS,
    u: Timesteps | None = None,
) -> PerExample:
    """The term of the step t -> s, given the prediction at z_t; arguments as in `term` and `Denoiser.normal`."""
    p = model.normal(prediction, z_t, t, s, u)
    _, b, var = posterior_weights(model.process, t, s, z_t)
    last = per_example(jnp.asarray(s) == 0, z_t)
    code = -(p.log_prob(jnp.asarray(x)) if bins is None else discretised_log_prob(p, x, bins))
    # Both means contain the same a z_t.  Without it their difference, b (x - x predicted), keeps its digits.
    q = Normal(mean=b * (x - prediction.x), std=jnp.sqrt(jnp.where(last, 1.0, var)))  # at s = 0 a point, and unused
    return _sum(jnp.where(last, code, q.kl(Normal(jnp.zeros_like(q.mean), p.std))))


@quoted
def term(
    model: Denoiser,
    x: Batch,
    t: Timesteps,
    eps: Batch,
    *,
    s: Timesteps | None = None,
    u: Timesteps | None = None,
    bins: Whole | None = PIXEL_LEVELS,
) -> Term:
    """The term of each example's step t -> s, from the one sample z_t = diffuse(x, t, eps).

    Args:
        model: the denoiser.
        x: the data, float32 [batch, ...].
        t: int32, [batch] or one for all, in 1..T.
        eps: standard normal noise, shaped like x.
        s: the end of the step, like t, in 0..t-1; None for t - 1.
        u: the time before t in a strided chain, like t, in t..T; None for even steps, 2 t - s, at most T.  It counts
            only in the last step, to s = 0 (`variance`).
        bins: the number of levels of the data; None for continuous data, whose last term is minus the log density.

    Returns:
        The term and the errors of the prediction, each [batch].

    Raises:
        ValueError: an argument has the wrong type or shape, or a time is out of range.
    """
    check_denoiser(model)
    check_step(model.process, t, s, u)
    x, bins = as_data(x, scaled=True), _levels(bins)
    check_shape("eps", eps, "x", x)
    return _term(model, x, t, jnp.asarray(t) - 1 if s is None else s, eps, bins, u)


def _term(
    model: Denoiser, x: Batch, t: Timesteps, s: Timesteps, eps: Batch, bins: int | None, u: Timesteps | None = None
) -> Term:
    x = jnp.asarray(x)
    z_t = diffuse(model.process, x, t, eps)
    t, s = (jnp.broadcast_to(jnp.asarray(time), x.shape[:1]) for time in (t, s))
    prediction = model.denoise(z_t, t)
    nats = term_of(model, prediction, x, z_t, t, s, bins, u)
    return Term(nats, _mean((prediction.x - x) ** 2), _mean((prediction.eps - eps) ** 2))


@quoted
def bound(
    key: Key,
    model: Denoiser,
    x: Batch,
    *,
    num_steps: Whole | None = None,
    grid: Grid = Uniform(),
    bins: Whole | None = PIXEL_LEVELS,
    first_index: Whole = 0,
) -> Bound:
    """Every term of the bound (the negative ELBO) for a batch, from one sample z_t for each term: unbiased.

    Args:
        key: the key; the noise of a term is a function of (key, example, t).
        model: the denoiser.
        x: the data, float32 [batch, ...].
        num_steps: the number of steps of a strided chain; None for all T steps.
        grid: which timesteps a strided chain visits.
        bins: the number of levels of the data, 256 for pixels; None for continuous data.
        first_index: the number of the first example, as in `sample`.

    Returns:
        All terms.  The network is evaluated once a step, in a scan, so memory grows with T only by the curves.

    Raises:
        ValueError: an argument has the wrong type or shape, or the grid does not fit the process.
    """
    check_arguments(key, model, first_index)
    require("grid", grid, isinstance(grid, Grid), "a Grid, such as Uniform()")
    times = grid.times(model.process, num_steps)
    steps = (times_before(times, times[:-1]), times[:-1], times[1:])
    x, bins = as_data(x, scaled=True), _levels(bins)

    def placed(spec: PartitionSpec) -> tuple[PartitionSpec, ...]:
        return PartitionSpec(rows_of(spec)), *(PartitionSpec(None, rows_of(spec)),) * 3

    args = (key, model, x, jax.tree.map(jnp.asarray, steps), first_index)
    of_prior, nats, x_mse, eps_mse = with_automatic_axes(partial(_bound, bins=bins), args, x, placed)
    return Bound(of_prior, nats, x_mse, eps_mse, jnp.asarray(times[:-1]), math.prod(x.shape[1:]))


@partial(jax.jit, static_argnames="bins")
def _bound(key: Key, model: Denoiser, x: Array, steps: Any, first_index: Any, *, bins: int | None) -> Any:
    """The prior's term, [batch], then the parts of `Bound` for each step, [steps, batch]; steps: (u, t, s)."""
    keys = example_keys(key, first_index, len(x))

    def step(_: None, times: tuple[Array, Array, Array]) -> tuple[None, tuple[PerExample, PerExample, PerExample]]:
        u, t, s = times
        one = _term(model, x, t, s, normals(keys, t, x.shape), bins, u)
        return None, (one.nats, one.x_mse, one.eps_mse)

    _, curves = jax.lax.scan(step, None, steps)
    return prior(model.process, x, steps[1][0]), *curves


@quoted
def estimate(
    key: Key,
    model: Denoiser,
    x: Batch,
    num_terms: Whole,
    *,
    bins: Whole | None = PIXEL_LEVELS,
    first_index: Whole = 0,
) -> PerExample:
    """An unbiased estimate of each example's bound, from `num_terms` random terms of its T.

    The timesteps are stratified: term k draws its own from the k-th of the `timesteps.strata` of 1..T.

    Args:
        key: the key; the draws of an example are a function of (key, its number).
        model: the denoiser.
        x: the data, float32 [batch, ...].
        num_terms: the number of terms, in 1..T.
        bins: the number of levels of the data; None for continuous data.
        first_index: the number of the first example, as in `sample`.

    Returns:
        Nats, float32 [batch].

    Raises:
        ValueError: an argument has the wrong type or shape, or there are fewer than num_terms terms.
    """
    check_arguments(key, model, first_index)
    num_terms, bins, last = require_int("num_terms", num_terms, 1), _levels(bins), model.process.num_steps
    require("num_terms", num_terms, num_terms <= last, f"at most {last}, all terms")
    run = partial(_estimate, num_terms=num_terms, bins=bins)
    x = as_data(x, scaled=True)
    return with_automatic_axes(run, (key, model, x, first_index), x, lambda spec: PartitionSpec(rows_of(spec)))


@partial(jax.jit, static_argnames=("num_terms", "bins"))
def _estimate(key: Key, model: Denoiser, x: Array, first_index: Any, *, num_terms: int, bins: int | None) -> Array:
    keys, num_steps = example_keys(key, first_index, len(x)), model.process.num_steps
    ends = strata(num_steps, num_terms)

    def step(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        k, start, length = part
        u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, k), (), jnp.float32))(keys)
        count = length.astype(jnp.float32)
        t = start + jnp.minimum(jnp.floor(count * u).astype(jnp.int32), length - 1)  # where rounding reaches the end
        eps = normals(keys, num_terms + k, x.shape)
        return total + count * _term(model, x, t, t - 1, eps, bins).nats, None

    of_parts = jnp.arange(num_terms), jnp.asarray(ends[:-1]), jnp.asarray(np.diff(ends))
    total, _ = jax.lax.scan(step, jnp.zeros(len(x), jnp.float32), of_parts)
    return prior(model.process, x) + total


def _levels(bins: Any) -> int | None:
    return None if bins is None else require_int("bins", bins, 2)


def bits_per_dim(nats: PerExample, x: Batch) -> PerExample:
    """Nats for each example as bits for each of its elements."""
    return nats / (math.prod(x.shape[1:]) * math.log(2))


def _sum(values: Array) -> PerExample:
    return values.reshape(len(values), -1).sum(1)


def _mean(values: Array) -> PerExample:
    return values.reshape(len(values), -1).mean(1)
