r"""The variational bound: how many nats, or bits, a trained decoder needs to describe x without loss.

    -log p(x) <= KL(q(z_T | x) || N(0, I))                                                        `prior`
                 + sum_{t=2..T} E_q KL(q(z_{t-1} | z_t, x) || p(z_{t-1} | z_t))                   `term`, t >= 2
                 + E_q[ -log p(x | z_1) ]                                                         `term`, t = 1

(Ho et al. 2020, equation 5; *Understanding Deep Learning*, section 18.4.)  The inequality holds for any
decoder; each KL is between normals, so closed.  The last term codes data of `bins` levels: p(x | z_1) is the
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
from jax.scipy.special import log_ndtr
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from ddpm_jax.devices.axes import rows_of, with_automatic_axes
from ddpm_jax.devices.precision import quoted
from ddpm_jax.diffusion.arrays import (
    Batch,
    Key,
    PerExample,
    Predict,
    Timesteps,
    Whole,
    as_data,
    check_shape,
    example_keys,
    normals,
    per_example,
)
from ddpm_jax.diffusion.clipping import Clipping
from ddpm_jax.diffusion.denoiser import Decoder
from ddpm_jax.diffusion.forward import check_step, diffuse, marginal, posterior_weights
from ddpm_jax.diffusion.gaussian import Normal
from ddpm_jax.diffusion.grids import Grid, Uniform, times_before
from ddpm_jax.diffusion.schedule import Chain
from ddpm_jax.diffusion.targets import Eps, Prediction, Target
from ddpm_jax.diffusion.variance import FixedSmall, Variance
from ddpm_jax.errors import require, require_int, require_key

PIXEL_LEVELS = 256


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
    """The term of each step; the last one is the decoder's, -log p(x | z)."""
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


def prior(schedule: Chain, x: Batch, t: Timesteps | None = None) -> PerExample:
    """KL(q(z_T | x) || N(0, I)): what z_T, or z_t where the chain begins at another t, still says of x."""
    q = marginal(schedule, x, schedule.num_steps if t is None else t)
    return _sum(q.kl(Normal(jnp.zeros_like(q.mean), jnp.ones_like(q.std))))


def discretised_log_prob(normal: Normal, x: Batch, bins: Whole = PIXEL_LEVELS) -> Float[Array, "batch *dims"]:
    """log of the normal's mass in the bin of each element of x, in nats; the masses of all `bins` bins sum to 1.

    x: one of the `bins` levels -1, ..., 1, evenly spaced; its bin ends halfway to the neighbouring levels, at
    infinity for the first and the last (Ho et al. 2020, equation 13).  Accurate in the tails, where masses are
    far below what float32 can hold.
    """
    half = 1.0 / (require_int("bins", bins, 2) - 1)
    x = jnp.asarray(x)
    low = jnp.where(x <= -1 + half, -jnp.inf, (x - half - normal.mean) / normal.std)
    high = jnp.where(x >= 1 - half, jnp.inf, (x + half - normal.mean) / normal.std)
    # The same mass, mirrored into the left half, where log Phi has all its digits.
    mirror = low + high > 0
    low, high = jnp.where(mirror, -high, low), jnp.where(mirror, -low, high)
    return _log_difference(_log_cdf(high), _log_cdf(low))


@jax.custom_jvp
def _log_cdf(z: Array) -> Array:
    """log Phi(z), with a slope that keeps its digits however far z is in the left tail, and is 0 at -inf."""
    return log_ndtr(z)


@_log_cdf.defjvp
def _log_cdf_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The slope phi / Phi: phi(z) / Phi(z) = -z / (1 - 1/z^2 + 3/z^4 - ...) in the tail, where both are too small."""
    (z,), (tangent,) = primals, tangents
    value, tail = log_ndtr(z), (z < -10) & jnp.isfinite(z)
    near, far = jnp.maximum(z, -10.0), jnp.where(tail, z, -10.0)
    u = 1 / far**2
    series = 1 - u * (1 - 3 * u * (1 - 5 * u * (1 - 7 * u * (1 - 9 * u))))
    ratio = jnp.exp(-0.5 * near**2 - log_ndtr(near) - 0.5 * math.log(2 * math.pi))
    slope = jnp.where(jnp.isneginf(z), 0.0, jnp.where(tail, -far / series, ratio))
    return value, slope * tangent


def _log_difference(large: Array, small: Array) -> Array:
    """log(exp(large) - exp(small)), small < large."""
    # Equal where the bin is too narrow for float32: then the mass is less than rounding, not 0.
    gap = jnp.minimum(small - large, -jnp.finfo(jnp.float32).tiny)
    return large + jnp.where(gap > -math.log(2), jnp.log(-jnp.expm1(gap)), jnp.log1p(-jnp.exp(gap)))


def term_of(
    decoder: Decoder,
    prediction: Prediction,
    x: Batch,
    z_t: Batch,
    t: Timesteps,
    earlier: Timesteps,
    bins: Whole | None = PIXEL_LEVELS,
    later: Timesteps | None = None,
) -> PerExample:
    """The term of the step t -> earlier, given what was predicted at z_t; the decoder's term where earlier = 0.

    later: as in `Decoder.normal`.
    """
    p = decoder.normal(prediction, z_t, t, earlier, later)
    _, b, var = posterior_weights(decoder.schedule, t, earlier, z_t)
    last = per_example(jnp.asarray(earlier) == 0, z_t)
    code = -(p.log_prob(jnp.asarray(x)) if bins is None else discretised_log_prob(p, x, bins))
    # Both means hold the same a z_t.  Without it their difference, b (x - x predicted), keeps its digits.
    q = Normal(mean=b * (x - prediction.x), std=jnp.sqrt(jnp.where(last, 1.0, var)))  # at s = 0 a point, and unused
    return _sum(jnp.where(last, code, q.kl(Normal(jnp.zeros_like(q.mean), p.std))))


@quoted
def term(
    predict: Predict,
    schedule: Chain,
    x: Batch,
    t: Timesteps,
    eps: Batch,
    *,
    earlier: Timesteps | None = None,
    later: Timesteps | None = None,
    target: Target = Eps(),
    variance: Variance = FixedSmall(),
    clip: bool | Clipping = True,
    bins: Whole | None = PIXEL_LEVELS,
) -> Term:
    """The term of each example's t, from the one draw z_t = diffuse(x, t, eps); t in 1..T, [batch] or one for all.

    earlier: the step's end; None: t - 1.  later: the time from which a strided chain comes to t, t itself if it starts
    there; None: that of even steps, 2 t - earlier, at most T.  It counts only where earlier = 0 (`variance`).  clip:
    whether, or how, the predicted x is clipped, as it is in the paper's evaluation.  bins: the levels of the data; None
    for continuous data, where the last term is minus the log density.
    """
    check_step(schedule, t, earlier, later)
    x, bins = as_data(x, scaled=True), _levels(bins)
    check_shape("eps", eps, "x", x)
    earlier = jnp.asarray(t) - 1 if earlier is None else earlier
    return _term(Decoder.of(predict, schedule, target, variance, clip), x, t, earlier, eps, bins, later)


def _term(
    decoder: Decoder,
    x: Batch,
    t: Timesteps,
    earlier: Timesteps,
    eps: Batch,
    bins: int | None,
    later: Timesteps | None = None,
) -> Term:
    x = jnp.asarray(x)
    z_t = diffuse(decoder.schedule, x, t, eps)
    t, earlier = (jnp.broadcast_to(jnp.asarray(time), x.shape[:1]) for time in (t, earlier))
    prediction = decoder.denoise(z_t, t)
    nats = term_of(decoder, prediction, x, z_t, t, earlier, bins, later)
    return Term(nats, _mean((prediction.x - x) ** 2), _mean((prediction.eps - eps) ** 2))


@quoted
def bound(
    key: Key,
    predict: Predict,
    schedule: Chain,
    x: Batch,
    *,
    num_steps: Whole | None = None,
    grid: Grid = Uniform(),
    target: Target = Eps(),
    variance: Variance = FixedSmall(),
    clip: bool | Clipping = True,
    bins: Whole | None = PIXEL_LEVELS,
    first_index: Whole = 0,
) -> Bound:
    """Every term for a batch, one draw of z_t for each: unbiased, and each term a function of (key, example, t).

    num_steps, grid: a strided chain; all T steps unless given.  first_index: the number of the first example, as
    in `sample`.  One network evaluation a step, in a scan: memory does not grow with T but for the curves.
    """
    require_key(key)
    decoder = Decoder.of(predict, schedule, target, variance, clip)
    require("grid", grid, isinstance(grid, Grid), "a Grid, such as Uniform()")
    times = grid.times(schedule, num_steps)
    steps = (times_before(times, times[:-1]), times[:-1], times[1:])
    x, bins = as_data(x, scaled=True), _levels(bins)

    def placed(spec: PartitionSpec) -> tuple[PartitionSpec, ...]:
        return PartitionSpec(rows_of(spec)), *(PartitionSpec(None, rows_of(spec)),) * 3

    args = (key, decoder, x, jax.tree.map(jnp.asarray, steps), first_index)
    of_prior, nats, x_mse, eps_mse = with_automatic_axes(partial(_bound, bins=bins), args, x, placed)
    return Bound(of_prior, nats, x_mse, eps_mse, jnp.asarray(times[:-1]), math.prod(x.shape[1:]))


@partial(jax.jit, static_argnames="bins")
def _bound(key: Key, decoder: Decoder, x: Array, steps: Any, first_index: Any, *, bins: int | None) -> Any:
    """The prior's term, [batch], then what `Bound` has of each step, [steps, batch]; steps: (later, t, earlier)."""
    keys = example_keys(key, first_index, len(x))

    def step(_: None, times: tuple[Array, Array, Array]) -> tuple[None, tuple[PerExample, PerExample, PerExample]]:
        later, t, earlier = times
        one = _term(decoder, x, t, earlier, normals(keys, t, x.shape), bins, later)
        return None, (one.nats, one.x_mse, one.eps_mse)

    _, curves = jax.lax.scan(step, None, steps)
    return prior(decoder.schedule, x, steps[1][0]), *curves


@quoted
def estimate(
    key: Key,
    predict: Predict,
    schedule: Chain,
    x: Batch,
    num_terms: Whole,
    *,
    target: Target = Eps(),
    variance: Variance = FixedSmall(),
    clip: bool | Clipping = True,
    bins: Whole | None = PIXEL_LEVELS,
    first_index: Whole = 0,
) -> PerExample:
    """An unbiased estimate of each example's bound in nats from `num_terms` <= T random ones of its T terms.

    The timesteps are stratified: term k draws its own from the k-th of the `parts` of 1..T.
    """
    require_key(key)
    decoder = Decoder.of(predict, schedule, target, variance, clip)
    num_terms, bins = require_int("num_terms", num_terms, 1), _levels(bins)
    require("num_terms", num_terms, num_terms <= schedule.num_steps, f"at most {schedule.num_steps}, all terms")
    run = partial(_estimate, num_terms=num_terms, bins=bins)
    x = as_data(x, scaled=True)
    return with_automatic_axes(run, (key, decoder, x, first_index), x, lambda spec: PartitionSpec(rows_of(spec)))


def parts(num_steps: int, count: int) -> Int[np.ndarray, " ends"]:
    """1 = a_0 < a_1 < ... < a_K = T + 1, K = count: part k of 1..T is a_k, ..., a_{k+1} - 1.

    As nearly as whole numbers allow their lengths grow by one factor: where x is predicted about as well as it can be
    (an error of z_t's own noise), term t is in proportion to 1/t, so each part has about as much of the sum, and the
    first terms, which are large, all count.
    """
    ends = np.rint((num_steps + 1.0) ** (np.arange(count + 1) / count)).astype(int)
    ends = np.maximum.accumulate(ends - np.arange(count + 1)) + np.arange(count + 1)  # each at least one longer
    return np.minimum(ends, num_steps + 1 - np.arange(count, -1, -1))


@partial(jax.jit, static_argnames=("num_terms", "bins"))
def _estimate(key: Key, decoder: Decoder, x: Array, first_index: Any, *, num_terms: int, bins: int | None) -> Array:
    keys, num_steps = example_keys(key, first_index, len(x)), decoder.schedule.num_steps
    ends = parts(num_steps, num_terms)

    def step(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        k, start, length = part
        u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, k), (), jnp.float32))(keys)
        count = length.astype(jnp.float32)
        t = start + jnp.minimum(jnp.floor(count * u).astype(jnp.int32), length - 1)  # where rounding reaches the end
        eps = normals(keys, num_terms + k, x.shape)
        return total + count * _term(decoder, x, t, t - 1, eps, bins).nats, None

    of_parts = jnp.arange(num_terms), jnp.asarray(ends[:-1]), jnp.asarray(np.diff(ends))
    total, _ = jax.lax.scan(step, jnp.zeros(len(x), jnp.float32), of_parts)
    return prior(decoder.schedule, x) + total


def _levels(bins: Any) -> int | None:
    return None if bins is None else require_int("bins", bins, 2)


def bits_per_dim(nats: PerExample, x: Batch) -> PerExample:
    """Nats for each example as bits for each of its elements."""
    return nats / (math.prod(x.shape[1:]) * math.log(2))


def _sum(values: Array) -> PerExample:
    return values.reshape(len(values), -1).sum(1)


def _mean(values: Array) -> PerExample:
    return values.reshape(len(values), -1).mean(1)
