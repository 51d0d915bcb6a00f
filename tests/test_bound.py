"""The bound: above the true negative log-likelihood, tending to it, and each term what its equation says.

For Gaussian data and for Gaussian mixtures the exact denoiser and the likelihood are known in closed form.  Then a
term is a polynomial, or a smooth function, of the noise, and a few points with weights integrate over it: no
chance is left in these proofs.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.tree_util import Partial

from ddpm_jax.diffusion.arrays import example_keys, lookup
from ddpm_jax.diffusion.bound import bits_per_dim, bound, estimate, prior, term
from ddpm_jax.diffusion.clipping import Clip, NoClipping
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.discretised import discretised_log_prob
from ddpm_jax.diffusion.forward import diffuse
from ddpm_jax.diffusion.gaussian import Normal
from ddpm_jax.diffusion.grids import Given, Karras, Quadratic, Uniform
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.schedule import Cosine, Linear, from_betas
from ddpm_jax.diffusion.targets import V, X
from ddpm_jax.diffusion.timesteps import strata
from ddpm_jax.diffusion.variance import FixedLarge, FixedSmall, LearnedRange

MEAN = np.array([0.7, -0.3, 0.1], np.float32)  # Gaussian data: x ~ N(MEAN, diag VAR)
VAR = np.array([0.25, 0.04, 0.9], np.float32)
VARIANCES = (FixedSmall(), FixedLarge())


def gaussian_moments(schedule, z_t, t):
    """(mean, variance) of x given z_t."""
    signal, noise_var = lookup(schedule.signal, t, z_t), lookup(schedule.noise_var, t, z_t)
    whole = signal**2 * VAR + noise_var
    return MEAN + signal * VAR / whole * (z_t - signal * MEAN), VAR * noise_var / whole


def gaussian_x(schedule, z_t, t):
    """E[x | z_t]."""
    return gaussian_moments(schedule, z_t, t)[0]


def gaussian_nll(x):
    return -scipy.stats.norm.logpdf(x, MEAN, np.sqrt(VAR)).sum(-1)


def gaussian_examples(count: int) -> np.ndarray:
    eps = np.random.default_rng(0).normal(size=(count, 3))
    return (MEAN + np.sqrt(VAR) * eps).astype(np.float32)


# A mixture on the line.
WEIGHTS, MEANS, STDS = np.array([0.3, 0.5, 0.2]), np.array([-0.8, 0.1, 0.7]), np.array([0.1, 0.2, 0.05])
MIXTURE = Mixture.of(WEIGHTS, MEANS[:, None], STDS)


def mixture_x(schedule, z_t, t):
    """E[x | z_t], z_t [batch, 1]."""
    return MIXTURE.denoiser(schedule).predict(z_t, t)


def mixture_nll(x):
    return -scipy.special.logsumexp(scipy.stats.norm.logpdf(x, MEANS, STDS), b=WEIGHTS, axis=-1)


LONG = Cosine(300)
STEPS = (10, 30, 100, 300)  # each a chain of even steps


@partial(jax.jit, static_argnames=("posterior_mean", "variance"))
def some_terms(schedule, x, t, earlier, eps, posterior_mean, variance):
    """The term of continuous data for each row of (x, t, earlier, eps), with the exact denoiser."""

    def predict(z_t, t):
        return posterior_mean(schedule, z_t, t)

    return term(Denoiser(predict, schedule, X(), variance), x, t, eps, s=earlier, bins=None).nats


def expected_bound(num_steps, x, nodes: int, posterior_mean, variance) -> np.ndarray:
    """The bound of each example, averaged over the noise by Gauss-Hermite quadrature; ten steps at a time.

    All elements have the same noise: right where the elements' terms are added, as these are.
    """
    schedule = LONG.build()
    times = Uniform().times(schedule, num_steps)
    points, mass = np.polynomial.hermite_e.hermegauss(nodes)
    total = np.asarray(prior(schedule, x), np.float64)
    for start in range(0, num_steps, 10):
        grid = np.meshgrid(np.arange(len(x)), np.arange(start, start + 10), points, indexing="ij")
        rows, step, eps = (axis.ravel() for axis in grid)
        noise = np.repeat(eps[:, None], x.shape[1], axis=1).astype(np.float32)
        each = x[rows], times[step], times[step + 1], noise
        nats = np.asarray(some_terms(schedule, *each, posterior_mean, variance), np.float64)
        total = total + (nats.reshape(len(x), 10, nodes) @ (mass / mass.sum())).sum(1)
    return total


# The bound against the truth.


def gaussian_excess(num_steps, variance) -> tuple[np.ndarray, float]:
    """What the bound costs beyond the entropy of Gaussian data: in each step, the last one first, and in the prior.

    The decoder's mean is exact, so the cost is KL(N(0, true) || N(0, model)) between normals that differ in variance.
    """
    alpha_bar = np.cumprod(np.append(1.0, 1 - LONG.betas()))[:: 300 // num_steps, None]
    now, before = alpha_bar[1:], alpha_bar[:-1]
    beta, var = 1 - now / before, VAR.astype(np.float64)
    var_x = var * (1 - now) / (now * var + 1 - now)
    smallest = beta * (1 - before) / (1 - now)
    true = smallest + before * beta**2 / (1 - now) ** 2 * var_x
    model = smallest if variance == FixedSmall() else beta
    model = np.concatenate([smallest[1:2], model[1:]])
    ratio, whole = true / model, now[-1] * var + 1 - now[-1]
    start = 0.5 * (whole + now[-1] * MEAN**2 - 1 - np.log(whole))
    return 0.5 * (ratio - 1 - np.log(ratio)).sum(1), start.sum()


@pytest.mark.parametrize("variance", VARIANCES, ids=str)
def test_for_gaussian_data_it_is_above_the_entropy_by_what_the_variance_costs(variance):
    """On average over the data; two points integrate a parabola, over the noise as over the data."""
    x = np.stack([MEAN - np.sqrt(VAR), MEAN + np.sqrt(VAR)])
    entropy, steps = gaussian_nll(x).mean(), []
    for num_steps in STEPS:
        gap = expected_bound(num_steps, x, 2, gaussian_x, variance).mean() - entropy
        each, start = gaussian_excess(num_steps, variance)
        assert gap == pytest.approx(each.sum() + start, abs=5e-4)
        assert gap > 0.1
        steps.append(each[1:].sum())
    # The step to x is coded at a cost that stays; the others, where beta is nearly right, tend to the truth.
    if variance == FixedLarge():
        assert all(later < 0.5 * earlier for earlier, later in itertools.pairwise(steps))


@pytest.mark.parametrize("variance", VARIANCES, ids=str)
def test_for_a_mixture_it_is_above_the_entropy_and_falls_with_the_steps(variance):
    x = np.linspace(-1.2, 1.2, 49, dtype=np.float32)[:, None]
    p = np.exp(-mixture_nll(x)) * 0.05
    assert p.sum() == pytest.approx(1, abs=1e-3)
    excess = []
    for num_steps in STEPS[:3]:
        gap = expected_bound(num_steps, x, 24, mixture_x, variance) - mixture_nll(x)
        excess.append((gap * p).sum())
    assert excess[0] > 1.1 * excess[1] > 1.2 * excess[2] > 0.1


def exact_decoder(schedule):
    """The network whose decoder is p(z_{t-1} | z_t) itself: the posterior's mean, and the share of its variance."""

    def predict(z_t, t):
        x, var_x = gaussian_moments(schedule, z_t, t)
        step = schedule.step(t, t - 1).like(z_t)
        small, large = jnp.log(step.lower), jnp.log(step.upper)
        share = (jnp.log(step.var + step.b**2 * var_x) - small) / (large - small)
        return jnp.concatenate([x, 2 * share - 1], axis=-1)

    return predict


@jax.jit
def exact_terms(schedule, x, t, eps):
    spread = exact_decoder(schedule)(diffuse(schedule, x, t, eps), t)[:, x.shape[1] :]
    model = Denoiser(exact_decoder(schedule), schedule, X(), LearnedRange())
    return term(model, x, t, eps, bins=None).nats, spread


@pytest.mark.parametrize("spec", [Cosine(30), Linear(num_steps=40, beta_start=1e-3, beta_end=0.1)], ids=str)
def test_with_the_exact_variance_it_is_the_truth(spec):
    """bound(x) = -log p(x) + E_{q(z_T | x)}[log q(z_T) - log N(z_T; 0, I)], example by example.

    So it is the true -log p(x) where the chain ends in noise; and the true variance lies between the two ends.
    """
    x, points, t = gaussian_examples(16), np.array([-1, 1], np.float32), np.arange(1, spec.num_steps + 1)
    schedule = spec.build()
    rows, t, eps = (axis.ravel() for axis in np.meshgrid(np.arange(16), t, points, indexing="ij"))
    nats, spread = exact_terms(schedule, x[rows], t, np.repeat(eps[:, None], 3, axis=1))
    assert np.abs(spread).max() < 1 + 1e-4
    total = np.asarray(nats, np.float64).reshape(16, -1).sum(1) / 2 + np.asarray(prior(schedule, x))
    # log q(z_T) - log N(z_T; 0, I) is a parabola in the noise, too.
    alpha_bar = np.prod(1 - spec.betas())
    last, whole = (
        np.sqrt(alpha_bar) * x + np.sqrt(1 - alpha_bar) * points[:, None, None],
        alpha_bar * VAR + 1 - alpha_bar,
    )
    aggregate = scipy.stats.norm(np.sqrt(alpha_bar) * MEAN, np.sqrt(whole))
    mismatch = (aggregate.logpdf(last) - scipy.stats.norm.logpdf(last)).sum(-1).mean(0)
    np.testing.assert_allclose(total, gaussian_nll(x) + mismatch, atol=2e-5)
    assert np.abs(mismatch).max() < (1e-5 if spec == Cosine(30) else 0.2)


# The terms, against their formulas in float64.


def log_mass(x, mean, std, bins: int) -> np.ndarray:
    """log of the mass of each bin, by scipy in float64."""
    half = 1 / (bins - 1)
    low = np.where(x < -1 + half, -np.inf, (x - half - mean) / std)
    high = np.where(x > 1 - half, np.inf, (x + half - mean) / std)
    low, high = np.where(low + high > 0, (-high, -low), (low, high))
    small, large = scipy.special.log_ndtr(low), scipy.special.log_ndtr(high)
    return large + np.log(-np.expm1(small - large))


def numpy_term(spec, x, t, s, eps, variance, clip, bins, later=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nats, x_mse, eps_mse) of a step t -> s of the network 0.5 tanh(z), which predicts eps; nothing but NumPy."""
    alpha_bar = np.cumprod(np.append(1.0, 1 - spec.betas()))
    later = np.minimum(2 * t, spec.num_steps) if later is None else later
    end = np.where(s == 0, later, t)  # the step whose smaller variance is taken
    first = np.where(s == 0, t, s)
    now, before = alpha_bar[t][:, None], alpha_bar[s][:, None]
    z = np.sqrt(now) * x + np.sqrt(1 - now) * eps
    predicted = (z - np.sqrt(1 - now) * 0.5 * np.tanh(z)) / np.sqrt(now)
    predicted = np.clip(predicted, -1, 1) if clip else predicted
    step = 1 - now / before
    a, b = np.sqrt(now / before) * (1 - before) / (1 - now), np.sqrt(before) * step / (1 - now)
    small = ((1 - alpha_bar[end] / alpha_bar[first]) * (1 - alpha_bar[first]) / (1 - alpha_bar[end]))[:, None]
    var = np.where(s[:, None] == 0, small, step) if variance == FixedLarge() else small
    true, mean = step * (1 - before) / (1 - now), a * z + b * predicted
    with np.errstate(divide="ignore"):
        kl = 0.5 * (true / var - 1 - np.log(true / var) + (a * z + b * x - mean) ** 2 / var)
    p = mean, np.sqrt(var)
    code = -scipy.stats.norm.logpdf(x, *p) if bins is None else -log_mass(x, *p, bins)
    nats = np.where(s[:, None] == 0, code, kl).sum(1)
    eps_error = eps - (z - np.sqrt(now) * predicted) / np.sqrt(1 - now)
    return nats, ((predicted - x) ** 2).mean(1), (eps_error**2).mean(1)


SPEC = Cosine(num_steps=20)


def network(z_t, t):
    return 0.5 * jnp.tanh(z_t)


@pytest.fixture(scope="module")
def schedule():
    return SPEC.build()


@pytest.fixture(scope="module")
def batch():
    """(x, t, eps): every t twice; x among 256 levels, both ends among them."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 6)) / 127.5 - 1
    x[:2], x[2:4] = -1, 1
    return x.astype(np.float32), np.resize(np.arange(1, 21), 40), rng.normal(size=(40, 6)).astype(np.float32)


@partial(jax.jit, static_argnames=("variance", "clip", "bins"))
def network_term(schedule, x, t, eps, variance=FixedSmall(), clip=Clip(), **options):
    return term(Denoiser(network, schedule, variance=variance, clip=clip), x, t, eps, **options)


OPTIONS = [
    (FixedSmall(), NoClipping(), None),
    (FixedLarge(), Clip(), 256),
    (FixedSmall(), Clip(), 256),
    (FixedLarge(), NoClipping(), 17),
]


@pytest.mark.parametrize(("variance", "clip", "bins"), OPTIONS)
def test_a_term_is_its_formula(schedule, batch, variance, clip, bins):
    x, t, eps = batch
    got = network_term(schedule, x, t, eps, variance=variance, clip=clip, bins=bins)
    exact = (values.astype(np.float64) for values in (x, eps))
    nats, x_mse, eps_mse = numpy_term(SPEC, next(exact), t, t - 1, next(exact), variance, clip == Clip(), bins)
    assert {value.dtype for value in jax.tree.leaves(got)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(got.nats, nats, rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(got.x_mse, x_mse, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.eps_mse, eps_mse, rtol=1e-4, atol=1e-6)


def test_a_term_of_any_step_is_its_formula(schedule, batch):
    x, t, eps = batch
    s = np.maximum(t - 4, 0)
    got = network_term(schedule, x, t, eps, s=s, variance=FixedLarge())
    nats, _, _ = numpy_term(SPEC, x.astype(np.float64), t, s, eps.astype(np.float64), FixedLarge(), True, 256)
    np.testing.assert_allclose(got.nats, nats, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("spec", [Linear(), Cosine(), Cosine(50)], ids=str)
def test_a_term_keeps_its_digits_where_x_is_predicted_well(spec):
    """Of an x that is off by 1e-3 or more: b^2 error^2 / (2 var) and its gradient in float64, to 1e-4, at every t."""
    schedule, t = spec.build(), np.arange(2, spec.num_steps + 1)
    x, eps = np.random.default_rng(0).uniform(-1, 1, (2, len(t), 3)).astype(np.float32)
    alpha_bar = np.cumprod(np.append(1.0, 1 - spec.betas()))
    now, before = alpha_bar[t], alpha_bar[t - 1]
    b2_by_var = (before / (1 - before) - now / (1 - now))[:, None]  # Kingma et al. 2021, equation 13: snr_s - snr_t

    @jax.jit
    @jax.value_and_grad
    def nats(predicted):
        return term(Denoiser(lambda z_t, t: predicted, schedule, X()), x, t, eps, bins=None).nats.sum()

    for size in (1e-3, 0.1, 1.0):
        predicted = (x + size * np.where(eps > 0, 1, -1)).astype(np.float32)
        error = predicted.astype(np.float64) - x
        value, gradient = nats(predicted)
        np.testing.assert_allclose(value, (0.5 * b2_by_var * error**2).sum(), rtol=1e-4)
        np.testing.assert_allclose(gradient, b2_by_var * error, rtol=1e-4)


def test_the_prior_is_its_formula(schedule, batch):
    x = batch[0].astype(np.float64)
    alpha_bar = np.cumprod(np.append(1.0, 1 - SPEC.betas()))
    for t in (None, 20, 11):
        now = alpha_bar[20 if t is None else t]
        expected = 0.5 * (now * x**2 + (1 - now) - 1 - np.log1p(-now)).sum(1)
        np.testing.assert_allclose(prior(schedule, batch[0], t), expected, rtol=1e-4, atol=1e-7)


def test_one_timestep_for_all_or_one_for_each(schedule, batch):
    """An example's term does not depend on what the others' timesteps are, the last step among them."""
    x, t, eps = batch
    mixed = network_term(schedule, x, t, eps)
    for one in (1, 2, 20):
        alone = network_term(schedule, x, np.int32(one), eps)
        for got, expected in zip(jax.tree.leaves(alone), jax.tree.leaves(mixed), strict=True):
            np.testing.assert_allclose(got[t == one], expected[t == one], rtol=1e-5)


def test_the_errors_of_x_and_of_the_noise_differ_by_snr(schedule, batch):
    x, t, eps = batch
    for clip in (NoClipping(), Clip()):
        got = network_term(schedule, x, t, eps, clip=clip)
        np.testing.assert_allclose(got.eps_mse, schedule.snr(t) * got.x_mse, rtol=1e-4, atol=1e-6)


def test_clipping_changes_an_example_only_where_its_x_leaves_the_data_range(schedule, batch):
    x, t, eps = batch
    z = np.asarray(diffuse(schedule, x, t, eps))
    predicted = (z - np.asarray(schedule.noises)[t, None] * 0.5 * np.tanh(z)) / np.asarray(schedule.signals)[t, None]
    outside = (np.abs(predicted) > 1).any(1)
    assert 0 < outside.sum() < len(x)
    free, clipped = (network_term(schedule, x, t, eps, clip=clip) for clip in (Clip(-1e6, 1e6), Clip()))
    np.testing.assert_allclose(free.nats[~outside], clipped.nats[~outside], rtol=1e-4, atol=1e-4)
    assert np.all(free.x_mse[outside] > clipped.x_mse[outside])


# The whole.


@jax.jit
def noise_of(key, t):
    """The noise at t of the examples 0..3."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), (6,)))(example_keys(key, 0, 4))


def test_it_is_the_sum_of_its_terms(schedule, batch, key):
    """Each with the noise of its example's own key and its own t."""
    x = batch[0][:4]
    got = bound(key, Denoiser(network, schedule, clip=Clip()), x)
    terms = [network_term(schedule, x, np.int32(t), noise_of(key, t)) for t in range(20, 0, -1)]
    for name in ("nats", "x_mse", "eps_mse"):
        expected = np.stack([getattr(each, name) for each in terms])
        np.testing.assert_allclose(getattr(got, name), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.total, got.prior + got.nats.sum(0), rtol=1e-6)
    np.testing.assert_allclose(got.bits_per_dim, got.total / (6 * math.log(2)), rtol=1e-6)
    np.testing.assert_allclose(bits_per_dim(got.total, x), got.bits_per_dim, rtol=1e-6)
    np.testing.assert_array_equal(got.t, np.arange(20, 0, -1))
    assert (got.dims, got.nats.shape, got.total.dtype) == (6, (20, 4), jnp.float32)


def test_an_example_is_the_same_in_any_batch(schedule, batch, key):
    x, some = batch[0], slice(2, 6)
    bounds = [
        bound(key, Denoiser(network, schedule, clip=Clip()), x[part], first_index=part.start).nats
        for part in (slice(0, 4), some)
    ]
    np.testing.assert_allclose(bounds[0][:, 2:], bounds[1][:, :2], rtol=1e-5, atol=1e-6)
    estimates = [
        estimate(key, Denoiser(network, schedule, clip=Clip()), x[part], 4, first_index=part.start)
        for part in (slice(0, 4), some)
    ]
    np.testing.assert_allclose(estimates[0][2:], estimates[1][:2], rtol=1e-5)
    other = bound(jax.random.key(1), Denoiser(network, schedule, clip=Clip()), x[:4])
    assert np.all(np.asarray(other.nats) != bounds[0])


@pytest.mark.parametrize("grid", [Uniform(), Quadratic(), Karras(sigma_max=2.0), Given((15, 11, 7, 2, 1))], ids=str)
def test_a_strided_chain_has_the_bound_of_its_own_steps(schedule, batch, key, grid):
    """The same formulas between its neighbours; the prior's is that of the t where the chain begins."""
    x = batch[0][:4]
    times = grid.times(schedule, None if isinstance(grid, Given) else 5)
    got = bound(
        key, Denoiser(network, schedule, variance=FixedLarge(), clip=Clip()), x, num_steps=len(times) - 1, grid=grid
    )
    np.testing.assert_array_equal(got.t, times[:-1])
    nats = []
    for u, t, s in zip((times[0], *times), times[:-1], times[1:], strict=False):
        eps = noise_of(key, t)
        u, *both = (np.full(4, time) for time in (u, t, s))
        options = FixedLarge(), True, 256, u
        nats.append(numpy_term(SPEC, x.astype(float), *both, np.asarray(eps, float), *options)[0])
    np.testing.assert_allclose(got.nats, np.stack(nats), rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(got.prior, prior(schedule, x, int(times[0])), rtol=1e-5)
    assert (times[0] < 20) == isinstance(grid, Karras | Given)


def test_a_chain_of_every_step_is_the_whole_chain(schedule, batch, key):
    x = batch[0][:4]
    for grid in (Uniform(), Quadratic()):
        strided = bound(key, Denoiser(network, schedule, clip=Clip()), x, num_steps=20, grid=grid)
        np.testing.assert_array_equal(strided.nats, bound(key, Denoiser(network, schedule, clip=Clip()), x).nats)


def displaced(x, z_t, t):
    """A network whose terms do not depend on the noise: its x is off by what depends on t alone."""
    return x + (0.1 + 0.02 * jnp.asarray(t, jnp.float32)).reshape(-1, 1)


@pytest.fixture(scope="module")
def fixed_terms(schedule, batch):
    """(x, the bound of that network, its estimate from a key and a number of terms)."""
    x = jnp.asarray(batch[0][:4])
    model = Denoiser(Partial(displaced, x), schedule, X())
    whole = bound(jax.random.key(0), model, x, bins=None).total
    return whole, lambda key, num_terms: estimate(key, model, x, num_terms, bins=None)


def test_an_estimate_with_as_many_terms_as_steps_visits_each_once(fixed_terms):
    whole, estimate = fixed_terms
    for seed in range(3):
        np.testing.assert_allclose(estimate(jax.random.key(seed), 20), whole, rtol=1e-5)


@pytest.mark.parametrize(("num_steps", "count"), [(1000, 1), (1000, 20), (1000, 999), (20, 20), (5, 3), (1, 1)])
def test_the_parts_of_an_estimate_hold_every_timestep_once_and_grow(num_steps, count):
    ends = strata(num_steps, count)
    lengths = np.diff(ends)
    assert (len(ends), ends[0], ends[-1]) == (count + 1, 1, num_steps + 1)
    assert lengths.min() >= 1
    assert np.all(np.diff(lengths) >= -1)  # rounding apart
    with pytest.raises(ValueError, match="num_terms is 6; expected at most 5"):
        estimate(
            jax.random.key(0), Denoiser(lambda z, t: z, from_betas(np.full(5, 0.1)), clip=Clip()), jnp.zeros((2, 3)), 6
        )


def test_an_estimate_is_unbiased(fixed_terms):
    """Its mean over many keys is the bound, within the standard error."""
    whole, estimate = fixed_terms
    keys = jax.random.split(jax.random.key(1), 4000)
    got = np.asarray(jax.jit(jax.vmap(lambda key: estimate(key, 6)))(keys))
    error = got.std(0) / math.sqrt(len(keys))
    assert np.all(np.abs(got.mean(0) - whole) < 4 * error + 1e-4 * np.abs(whole))
    assert np.all(error > 0)


@pytest.mark.slow
def test_an_estimate_with_its_own_noise_is_unbiased(schedule, batch):
    """Both the bound and its estimate, over many keys, for a network that is not exact and levels that are discrete."""
    x = batch[0][4:6]
    keys = jax.random.split(jax.random.key(1), 2000)

    @jax.jit
    @jax.vmap
    def both(key):
        return estimate(key, Denoiser(network, schedule, clip=Clip()), x, 8), bound(
            key, Denoiser(network, schedule, clip=Clip()), x
        ).total

    estimates, wholes = map(np.asarray, both(keys))
    error = np.sqrt((estimates.var(0) + wholes.var(0)) / len(keys))
    assert np.all(np.abs(estimates.mean(0) - wholes.mean(0)) < 4 * error)
    assert np.all(error < 0.03 * wholes.mean(0))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(key):
    """But for the three curves [steps, batch] and the tables."""
    x = np.zeros((8, 16, 16, 3), np.float32)
    needed = {}
    for num_steps in (50, 500):
        schedule = Cosine(num_steps).build()
        compiled = (
            jax.jit(lambda x, schedule=schedule: bound(key, Denoiser(network, schedule, clip=Clip()), x))
            .lower(x)
            .compile()
        )
        needed[num_steps] = compiled.memory_analysis().temp_size_in_bytes
    curves = 450 * (3 * 8 + 8) * 4
    assert needed[500] - needed[50] < 2 * curves < x.nbytes * 10


# Rate and distortion.


def test_the_rate_is_what_has_been_sent_before(schedule, batch, key):
    got = bound(key, Denoiser(network, schedule, clip=Clip()), batch[0][:4])
    rate, distortion = got.rate_distortion()
    bit = 6 * math.log(2)
    assert float(rate[0]) == pytest.approx(float(got.prior.mean()) / bit, rel=1e-4)
    assert float(rate[-1]) == pytest.approx(float((got.total - got.nats[-1]).mean()) / bit, rel=1e-5)
    np.testing.assert_allclose(np.diff(rate) * bit, np.asarray(got.nats).mean(1)[:-1], rtol=1e-3, atol=1e-4)
    assert np.all(np.diff(rate) >= 0)
    assert rate.shape == distortion.shape == got.t.shape


def test_the_distortion_of_the_exact_denoiser_is_the_posteriors_std(schedule, key):
    x = gaussian_examples(8000)
    model = Denoiser(partial(gaussian_x, schedule), schedule, X())
    _, distortion = bound(key, model, x, bins=None).rate_distortion()
    alpha_bar = np.cumprod(np.append(1.0, 1 - SPEC.betas()))[20:0:-1, None]
    var_x = VAR * (1 - alpha_bar) / (alpha_bar * VAR + 1 - alpha_bar)
    np.testing.assert_allclose(distortion, 127.5 * np.sqrt(var_x.mean(1)), rtol=0.02)
    assert np.all(np.diff(distortion) < 0)


# The last term: the mass of a bin.

MEANS_OF_BINS = np.linspace(-3, 3, 25, dtype=np.float32)[:, None]


@partial(jax.jit, static_argnames="bins")
def mass_and_slopes(mean, std, x, bins):
    """log mass, and its derivatives in the mean and in log std, times std and 1."""

    def value(mean, log_std):
        return discretised_log_prob(Normal(mean, jnp.exp(log_std)), x, bins)

    log_std = jnp.log(std)
    by_mean, by_log_std = jax.grad(lambda m, s: value(m, s).sum(), argnums=(0, 1))(mean, log_std)
    return discretised_log_prob(Normal(mean, std), x, bins), std * by_mean, by_log_std


def every_bin(bins: int, std: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, std, x), [means, bins]: each bin at each mean."""
    levels = np.linspace(-1, 1, bins, dtype=np.float32)
    return tuple(np.broadcast_to(a, (25, bins)).copy() for a in (MEANS_OF_BINS, np.float32(std), levels))


@pytest.mark.parametrize("std", [1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("bins", [2, 17, 256])
def test_the_bins_share_the_mass_and_each_is_exact_in_the_tails_too(bins, std):
    """To a few parts in 1e5, values and slopes, from the middle to 30,000 standard deviations."""
    mean, stds, x = every_bin(bins, std)
    got, by_mean, by_log_std = (np.asarray(a, np.float64) for a in mass_and_slopes(mean, stds, x, bins))
    np.testing.assert_allclose(scipy.special.logsumexp(got, axis=1), 0, atol=1e-6)
    mean, stds, x = (a.astype(np.float64) for a in (mean, stds, x))
    exact = log_mass(x, mean, stds, bins)
    np.testing.assert_allclose(got, exact, rtol=5e-5, atol=5e-5)
    # d log mass = (phi(high) d high - phi(low) d low) / mass, d high / d mean = -1 / std, d high / d log std = -high.
    half = 1 / (bins - 1)
    low, high = (x - half - mean) / stds, (x + half - mean) / stds
    at_low, at_high = (np.exp(scipy.stats.norm.logpdf(end) - exact) for end in (low, high))
    at_low[:, 0], at_high[:, -1] = 0, 0
    np.testing.assert_allclose(by_mean, at_low - at_high, rtol=5e-4, atol=5e-4)
    np.testing.assert_allclose(by_log_std, low * at_low - high * at_high, rtol=5e-4, atol=5e-4)


def test_a_mass_differentiates_forwards_too():
    mean, std, x = every_bin(17, 0.1)
    value = jax.jit(lambda mean: discretised_log_prob(Normal(mean, jnp.asarray(std)), x, 17))
    _, forwards = jax.jvp(value, (jnp.asarray(mean),), (jnp.ones_like(mean),))
    np.testing.assert_allclose(0.1 * forwards, mass_and_slopes(mean, std, x, 17)[1], rtol=1e-4, atol=1e-4)


def test_narrow_bins_are_the_density_times_the_width():
    x = np.linspace(-1, 1, 4001, dtype=np.float32)[1:-1]
    got = jax.jit(lambda x: discretised_log_prob(Normal(jnp.zeros_like(x), jnp.full_like(x, 0.5)), x, 4001))(x)
    np.testing.assert_allclose(got, scipy.stats.norm.logpdf(x, 0, 0.5) + math.log(2 / 4000), atol=2e-3)


# Transformations, and what is refused.


def test_a_batch_that_mixes_last_and_other_steps_has_finite_gradients(schedule, batch):
    """Of the network's parameters, the variance's among them, as finite differences have them."""
    x, t, eps = batch
    t = np.resize([1, 1, 2, 20], 40)

    def nats(parameters, bins):
        def predict(z_t, t):
            output = parameters[0] * jnp.tanh(z_t)
            return jnp.concatenate([output, parameters[1] + parameters[2] * z_t], axis=-1)

        return term(Denoiser(predict, schedule, target=V(), variance=LearnedRange()), x, t, eps, bins=bins).nats.mean()

    at, h = jnp.array([0.5, 0.1, 0.2]), 1e-2
    moved = at + h * jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
    for bins in (None, 256):
        one = partial(nats, bins=bins)
        gradient, values = jax.jit(lambda at, moved, one=one: (jax.grad(one)(at), jax.lax.map(one, moved)))(at, moved)
        values = np.asarray(values, np.float64)
        np.testing.assert_allclose(gradient, (values[:3] - values[3:]) / (2 * h), rtol=5e-3)


def test_the_exact_answer_leaves_nothing_to_send(schedule, batch):
    """Every KL is 0 with FixedSmall, and its gradient finite."""
    x, t, eps = batch

    @jax.jit
    @jax.value_and_grad
    def nats(shift):
        each = term(Denoiser(lambda z_t, t: x + shift, schedule, target=X(), clip=Clip()), x, t, eps, bins=None).nats
        return jnp.where(t > 1, each, 0.0).sum()

    value, slope = nats(0.0)
    assert float(value) == pytest.approx(0, abs=1e-6)
    assert abs(float(slope)) < 1e-2


def test_it_vmaps(schedule, batch):
    x, t, eps = batch
    mapped = jax.jit(
        jax.vmap(lambda x, t, eps: term(Denoiser(network, schedule, clip=Clip()), x[None], t, eps[None]).nats[0])
    )(x, t, eps)
    np.testing.assert_allclose(mapped, network_term(schedule, x, t, eps).nats, rtol=1e-4, atol=1e-5)


def test_images_and_bfloat16_networks(schedule, key):
    x = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)
    shape = (2, 4, 4, 6)
    got = bound(
        key,
        Denoiser(lambda z, t: jnp.zeros(shape, jnp.bfloat16), schedule, variance=LearnedRange(), clip=Clip()),
        x,
        num_steps=4,
    )
    assert got.nats.shape == (4, 2)
    assert got.total.dtype == jnp.float32
    assert np.all(np.isfinite(got.total))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, x: term(Denoiser(network, s, clip=Clip()), x, 0, x), r"t = 0 is outside 1\.\.20"),
        (lambda s, x: term(Denoiser(network, s, clip=Clip()), x, np.array([3, 21]), x), r"t = 21 is outside 1\.\.20"),
        (lambda s, x: prior(s, x, 21), r"t = 21 is outside 0\.\.20"),
        (
            lambda s, x: discretised_log_prob(Normal(jnp.zeros(2), jnp.ones(2)), x[0], 1),
            "bins is 1; expected a whole number",
        ),
        (
            lambda s, x: bound(jax.random.key(0), Denoiser(network, s, clip=Clip()), x, num_steps=21),
            "num_steps is 21; expected 1 to 20",
        ),
        (
            lambda s, x: bound(jax.random.key(0), Denoiser(network, s, clip=Clip()), x, bins=1),
            "bins is 1; expected a whole number",
        ),
        (
            lambda s, x: estimate(jax.random.key(0), Denoiser(network, s, clip=Clip()), x, 0),
            "num_terms is 0; expected a whole number",
        ),
        (
            lambda s, x: bound(jax.random.key(0), Denoiser(network, s, variance=LearnedRange(), clip=Clip()), x),
            r"returned shape \(2, 2\) for data of shape \(2, 2\); LearnedRange expects \(2, 4\)",
        ),
    ],
)
def test_what_is_wrong_is_named(schedule, call, message):
    with pytest.raises(ValueError, match=message):
        call(schedule, np.zeros((2, 2), np.float32))
