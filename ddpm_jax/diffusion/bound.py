r"""The variational bound (the negative ELBO): the nats, or bits, that a trained model needs to describe x without loss.

    -log p(x) <= KL(q(z_T | x) || N(0, S_T I))                                                    `prior`
                 + sum_{t=2..T} E_q KL(q(z_{t-1} | z_t, x) || p(z_{t-1} | z_t))                   `term`, t >= 2
                 + E_q[ -log p(x | z_1) ]                                                         `term`, t = 1

(Ho et al. 2020, equation 5; *Understanding Deep Learning*, section 18.4.)  The inequality holds for any
model; each KL is between normals, so closed.  The last term codes data of `bins` levels: p(x | z_1) is the
normal's mass between the midpoints of neighbouring levels, the outermost reaching to infinity (equation 13).

A strided chain T = t_0 > t_1 > ... > t_K = 0 has the same bound with (t_{k-1}, t_k) for (t, t - 1) (Nichol & Dhariwal
2021, section 4), and so has a grid of a continuous process, whose last step leads to clean data.  If its steps become
infinitely many, the sum becomes an integral (Kingma et al. 2021, arXiv 2107.00630, equation 17), whatever the variance,

    E_q int SNR / 2 || x - x predicted at z_t ||^2 d(log SNR)                                     `rate_of`, `estimate`

Every number is the sum over an example's elements, [batch], in nats, unless it says otherwise.
The network is evaluated in full float32 (`ddpm_jax.devices.precision`).
"""

import math
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Shaped

from ddpm_jax.devices.axes import rows_of, with_automatic_axes
from ddpm_jax.devices.precision import quoted
from ddpm_jax.diffusion.arrays import Batch, Key, PerExample, Whole, as_data, example_keys, normals
from ddpm_jax.diffusion.denoiser import Denoiser, check_arguments
from ddpm_jax.diffusion.discretised import PIXEL_LEVELS
from ddpm_jax.diffusion.forward import diffuse
from ddpm_jax.diffusion.grids import Grid, Uniform, steps_of
from ddpm_jax.diffusion.step import Step
from ddpm_jax.diffusion.terms import Term, bits_per_dim, levels_of, prior, rate_of, term, term_at, term_of
from ddpm_jax.diffusion.timesteps import strata
from ddpm_jax.errors import require, require_int

__all__ = ["Bound", "Term", "bits_per_dim", "bound", "estimate", "prior", "rate_of", "term", "term_of"]


# The end of the integral over log SNR, for a process that ends in pure noise.  The rest is below float32's rounding.
LOWEST_LOG_SNR = -30.0


@flax.struct.dataclass
class Bound:
    """All terms of the bound for each example; step k goes from t[k] to t[k + 1], the last one to clean data."""

    prior: PerExample
    """KL(q(z_T | x) || N(0, S_T I)), nats."""
    nats: Float[Array, "steps batch"]
    """The term of each step; the last one is the model's, -log p(x | z)."""
    x_mse: Float[Array, "steps batch"]
    """Mean squared error of the predicted x."""
    eps_mse: Float[Array, "steps batch"]
    """Mean squared error of the predicted eps."""
    t: Shaped[Array, " steps"]
    """The time at which each step begins, falling from the noisy end."""
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
        num_steps: the number of steps of a strided chain, or of a continuous process; None for all T steps of a chain.
        grid: which times the steps visit.  In a continuous process, Uniform() is tighter for few steps, Linspace() for
            many.
        bins: the number of levels of the data, 256 for pixels; None for continuous data.
        first_index: the number of the first example, as in `sample`.

    Returns:
        All terms.  The network is evaluated once a step, in a scan, so memory grows with T only by the curves.

    Raises:
        ValueError: an argument has the wrong type or shape, or the grid does not fit the process.
    """
    check_arguments(key, model, first_index)
    require("grid", grid, isinstance(grid, Grid), "a Grid, such as Uniform()")
    steps = steps_of(model.process, grid.times(model.process, num_steps))
    x, bins = as_data(x, scaled=True), levels_of(bins)

    def placed(spec: PartitionSpec) -> tuple[PartitionSpec, ...]:
        return PartitionSpec(rows_of(spec)), *(PartitionSpec(None, rows_of(spec)),) * 3

    args = (key, model, x, steps, first_index)
    of_prior, nats, x_mse, eps_mse = with_automatic_axes(partial(_bound, bins=bins), args, x, placed)
    return Bound(of_prior, nats, x_mse, eps_mse, steps.t, math.prod(x.shape[1:]))


@partial(jax.jit, static_argnames="bins")
def _bound(key: Key, model: Denoiser, x: Array, steps: Step, first_index: Any, *, bins: int | None) -> Any:
    """The prior's term, [batch], then the parts of `Bound` for each step, [steps, batch]."""
    keys = example_keys(key, first_index, len(x))

    def one_step(_: None, step: Step) -> tuple[None, tuple[PerExample, PerExample, PerExample]]:
        one = term_at(model, x, step, normals(keys, step.draw, x.shape), bins)
        return None, (one.nats, one.x_mse, one.eps_mse)

    _, curves = jax.lax.scan(one_step, None, steps)
    return prior(model.process, x, steps.t[0]), *curves


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
    """An unbiased estimate of each example's bound, from `num_terms` random terms.

    In a chain, term k draws its timestep from the k-th of the `timesteps.strata` of 1..T.  In a continuous process the
    bound is that of infinitely many steps.  Term k draws log SNR from the k-th of `num_terms` equal parts of its range,
    and one more evaluation gives the term of the step to clean data.

    Args:
        key: the key; the draws of an example are a function of (key, its number).
        model: the denoiser.
        x: the data, float32 [batch, ...].
        num_terms: the number of terms, in 1..T for a chain.
        bins: the number of levels of the data; None for continuous data.
        first_index: the number of the first example, as in `sample`.

    Returns:
        Nats, float32 [batch].

    Raises:
        ValueError: an argument has the wrong type or shape, or there are fewer than num_terms terms.
    """
    check_arguments(key, model, first_index)
    num_terms, bins, process = require_int("num_terms", num_terms, 1), levels_of(bins), model.process
    if process.is_chain:
        require("num_terms", num_terms, num_terms <= process.last, f"at most {process.last}, all terms")
    else:
        limit = not model.variance.learned
        require("variance", model.variance, limit, "a fixed one: the limit of infinitely many steps has no other")
    run = partial(_estimate, num_terms=num_terms, bins=bins)
    x = as_data(x, scaled=True)
    return with_automatic_axes(run, (key, model, x, first_index), x, lambda spec: PartitionSpec(rows_of(spec)))


@partial(jax.jit, static_argnames=("num_terms", "bins"))
def _estimate(key: Key, model: Denoiser, x: Array, first_index: Any, *, num_terms: int, bins: int | None) -> Array:
    keys, process = example_keys(key, first_index, len(x)), model.process
    if process.is_chain:
        ends = jnp.asarray(strata(process.last, num_terms))
    else:
        clean, noisy = process.log_snr(jnp.float32([process.first, process.last]))
        ends = jnp.linspace(clean, jnp.maximum(noisy, LOWEST_LOG_SNR), num_terms + 1)

    def one_part(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        k, start, length = part
        u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, k), (), jnp.float32))(keys)
        eps = normals(keys, num_terms + k, x.shape)
        if not process.is_chain:
            t = process.time(start + length * u)
            prediction = model.denoise(diffuse(process, x, t, eps), t)
            return total - length * rate_of(model, prediction, x, t), None
        count = length.astype(jnp.float32)
        t = start + jnp.minimum(jnp.floor(count * u).astype(jnp.int32), length - 1)  # where rounding reaches the end
        return total + count * term_at(model, x, process.step(t, t - 1), eps, bins).nats, None

    of_parts = jnp.arange(num_terms), ends[:-1], jnp.diff(ends)
    total, _ = jax.lax.scan(one_part, jnp.zeros(len(x), jnp.float32), of_parts)
    if not process.is_chain:
        last = process.step(process.first, process.clean)
        total += term_at(model, x, last, normals(keys, 2 * num_terms, x.shape), bins).nats
    return prior(process, x) + total
