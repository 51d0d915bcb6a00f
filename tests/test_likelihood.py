"""The probability flow's likelihood, against densities that are known: Gaussian data, mixtures, and levels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.tree_util import Partial

from ddpm_jax.diffusion.arrays import lookup
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.likelihood import log_likelihood
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.schedule import Cosine, Linear
from ddpm_jax.diffusion.targets import V, X, convert
from ddpm_jax.diffusion.variance import LearnedRange

# For functions that are right below t = 1, too.  The same settings everywhere: compiled once for each shape.
EXACT = {"trace": "exact", "bins": None}
ONE_PROBE = {**EXACT, "trace": "hutchinson"}


def end_at(schedule, t: float) -> float:
    """log SNR at a real t."""
    with jax.ensure_compile_time_eval():
        return float(schedule.log_snr(jnp.float32(t)))


@pytest.fixture(scope="module")
def schedule():
    return Cosine(1000).build()


# A mixture on the line.
WEIGHTS, MEANS, STDS = np.array([0.3, 0.5, 0.2]), np.array([-0.8, 0.1, 0.7]), np.array([0.1, 0.2, 0.05])
MIXTURE = Mixture.of(WEIGHTS, MEANS[:, None], STDS)


def mixture_log_prob(x, signal=1.0, noise=0.0):
    """log density of signal x + noise eps."""
    each = scipy.stats.norm.logpdf(x, signal * MEANS, np.hypot(signal * STDS, noise))
    return scipy.special.logsumexp(each, b=WEIGHTS, axis=-1)


ON_THE_LINE = np.linspace(-1.3, 1.1, 25, dtype=np.float32)[:, None]


def line_likelihood(schedule, x=ON_THE_LINE, **options):
    options = {**EXACT, "end": end_at(schedule, 0.01), **options}
    return log_likelihood(jax.random.key(0), MIXTURE.denoiser(schedule), x, **options)


def test_it_is_the_density_of_a_mixture(schedule):
    got = line_likelihood(schedule)
    np.testing.assert_allclose(got.log_prob, mixture_log_prob(ON_THE_LINE), atol=1e-3, rtol=3e-4)
    np.testing.assert_allclose(got.bits_per_dim, -got.log_prob / math.log(2), rtol=1e-5)
    assert 100 < int(got.evaluations) < 600  # twice those of the field: the trace of one dimension is one product


def test_the_flow_maps_quantiles_to_quantiles(schedule):
    """On the line a map that preserves order and carries one distribution to another can be no other."""
    quantile = scipy.stats.norm.cdf(ON_THE_LINE, MEANS, STDS) @ WEIGHTS
    inside = (quantile > 1e-4) & (quantile < 1 - 1e-4)
    latent = np.asarray(line_likelihood(schedule).latent)[:, 0]
    np.testing.assert_allclose(latent[inside], scipy.stats.norm.ppf(quantile[inside]), atol=2e-3)
    assert inside.sum() > 15


def test_where_the_chain_does_not_end_in_noise_that_is_what_is_missing():
    """log p(x) - log q(z_T) + log N(z_T; 0, I): Linear leaves a signal of 0.6%."""
    spec = Linear()
    got = line_likelihood(spec.build(), tolerance=1e-6)
    signal = np.sqrt(np.prod(1 - spec.betas()))
    latent = np.asarray(got.latent, np.float64)
    mismatch = scipy.stats.norm.logpdf(latent[:, 0]) - mixture_log_prob(latent, signal, np.sqrt(1 - signal**2))
    assert np.abs(mismatch).max() > 1e-3
    np.testing.assert_allclose(got.log_prob, mixture_log_prob(ON_THE_LINE) + mismatch, atol=1e-3)


@pytest.mark.parametrize("t", [1, 20])
def test_it_is_the_density_of_data_with_the_noise_of_its_end(schedule, t):
    noise = float(schedule.noise(t) / schedule.signal(t))
    got = line_likelihood(schedule, end=end_at(schedule, t), tolerance=1e-6)
    np.testing.assert_allclose(got.log_prob, mixture_log_prob(ON_THE_LINE, noise=noise), atol=1e-3)


def test_a_smaller_tolerance_costs_more_and_errs_less(schedule):
    coarse, default = (line_likelihood(schedule, tolerance=tolerance) for tolerance in (1e-2, 1e-5))
    errors = [np.abs(got.log_prob - mixture_log_prob(ON_THE_LINE)).max() for got in (coarse, default)]
    assert errors[0] > 5 * errors[1]
    assert coarse.evaluations < default.evaluations


def test_an_example_does_not_depend_on_its_batch(schedule):
    """But for the steps that the integrator chooses for all, and so to its tolerance."""
    other = np.where(np.arange(25)[:, None] < 10, ON_THE_LINE, 0.1).astype(np.float32)
    whole, some = line_likelihood(schedule), line_likelihood(schedule, other)
    np.testing.assert_allclose(some.log_prob[:10], whole.log_prob[:10], rtol=5e-4, atol=1e-3)


def test_too_few_steps_give_no_number(schedule):
    got = line_likelihood(schedule, tolerance=1e-12)
    assert np.all(np.isnan(got.log_prob))
    assert np.all(np.isnan(got.bits_per_dim))


# Gaussian data in three dimensions.
MEAN = np.array([0.3, -0.2, 0.1])
COVARIANCE = np.array([[0.25, 0.12, -0.05], [0.12, 0.16, 0.02], [-0.05, 0.02, 0.09]])
GAUSSIAN = scipy.stats.multivariate_normal(MEAN, COVARIANCE)


def gaussian_x(schedule, var, axes, gain, z_t, t):
    """E[x | z_t], for data of variance gain var along each of the `axes`, z_t [batch, 3]."""
    signal, noise = lookup(schedule.signal, t, z_t), lookup(schedule.noise, t, z_t)
    turned, var = (z_t - signal * MEAN) @ axes, gain * var
    return MEAN + (signal * var / (signal**2 * var + noise**2) * turned) @ axes.T


def gaussian_likelihood(schedule, x, covariance=COVARIANCE, gain=1.0, **options):
    var, axes = np.linalg.eigh(covariance)
    predict = Partial(gaussian_x, schedule, jnp.asarray(var, jnp.float32), jnp.asarray(axes, jnp.float32), gain)
    options = {**EXACT, "end": end_at(schedule, 0.01), **options}
    return log_likelihood(jax.random.key(0), Denoiser(predict, schedule, target=X()), x, **options)


POINTS = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 16).astype(np.float32)


@pytest.mark.slow
def test_it_is_the_density_of_correlated_gaussian_data(schedule):
    got = gaussian_likelihood(schedule, POINTS)
    np.testing.assert_allclose(got.log_prob, GAUSSIAN.logpdf(POINTS), atol=1e-3)
    np.testing.assert_allclose(got.bits_per_dim, -got.log_prob / (3 * math.log(2)), rtol=1e-5)


@pytest.mark.slow
def test_hutchinsons_estimate_is_unbiased(schedule):
    """Each example its own probe: for one x many times over, the mean is log p(x), within the standard error."""
    x = np.tile(POINTS[:1], (1024, 1))
    got = np.asarray(gaussian_likelihood(schedule, x, **ONE_PROBE).log_prob)
    error = got.std() / math.sqrt(len(got))
    assert 1e-3 < error < 0.1
    assert abs(got.mean() - GAUSSIAN.logpdf(x[0])) < 4 * error
    # Where no element depends on another the estimate is the trace, whatever the probe.
    diagonal = np.diag(np.diag(COVARIANCE))
    got = gaussian_likelihood(schedule, x, diagonal, **ONE_PROBE)
    np.testing.assert_allclose(got.log_prob, scipy.stats.multivariate_normal.logpdf(x, MEAN, diagonal), atol=1e-3)


@pytest.mark.slow
def test_probes_are_a_function_of_key_and_index(schedule):
    x = np.tile(POINTS[:1], (1024, 1))
    first, second = (gaussian_likelihood(schedule, x, **ONE_PROBE, first_index=index) for index in (0, 1000))
    np.testing.assert_allclose(first.log_prob[1000:], second.log_prob[:24], atol=1e-3)
    assert np.std(first.log_prob[:1000] - second.log_prob[24:]) > 0.1


@pytest.mark.slow
def test_it_differentiates(schedule):
    """In x it is the score; in a parameter of the network, here the data's variance, what the density says."""

    def value(x, gain):
        return gaussian_likelihood(schedule, x, gain=gain, max_steps=64).log_prob.mean()

    by_x, by_gain = jax.jit(jax.grad(value, argnums=(0, 1)))(jnp.asarray(POINTS), 1.0)
    score = -(POINTS - MEAN) @ np.linalg.inv(COVARIANCE)
    np.testing.assert_allclose(16 * by_x, score, rtol=1e-3, atol=2e-3)
    # d/dg log N(x; MEAN, g COVARIANCE) at g = 1.
    expected = -0.5 * ((POINTS - MEAN) * score).sum(1).mean() - 1.5
    np.testing.assert_allclose(by_gain, expected, atol=2e-3)


# Levels.


@pytest.mark.slow
def test_the_levels_of_a_density_share_its_mass(schedule):
    """2^-bits is on average over the added noise the mass of a level's bin, and all levels' together are 1.

    By Jensen's inequality the bits are then more than those of the mass, on average; for a density that hardly
    changes within a bin not by much.
    """
    bins, draws = 33, 64
    levels = np.linspace(-1, 1, bins)
    x = np.repeat(levels, draws).astype(np.float32)[:, None]
    got = line_likelihood(schedule, x, trace="hutchinson", bins=bins)
    bits = np.asarray(got.bits_per_dim, np.float64).reshape(bins, draws)
    half = 1 / (bins - 1)
    mass = (scipy.stats.norm.cdf(levels[:, None] + half, MEANS, STDS)
            - scipy.stats.norm.cdf(levels[:, None] - half, MEANS, STDS)) @ WEIGHTS  # fmt: skip
    likely = mass > 1e-3
    found = (2**-bits).mean(1)
    error = (2**-bits).std(1) / math.sqrt(draws)
    assert np.all(np.abs(found - mass)[likely] < 4.5 * error[likely] + 1e-3 * mass[likely])
    assert found.sum() == pytest.approx(mass.sum(), abs=4 * np.sqrt((error**2).sum()))
    excess = mass @ (bits.mean(1) + np.log2(mass))
    assert -0.005 < excess < 0.1


def iid_v(schedule, z_t, t):
    """v, and a share that nobody asks for: of images whose pixels are independently N(0.1, 0.2)."""
    signal, noise = lookup(schedule.signal, t, z_t), lookup(schedule.noise, t, z_t)
    x = 0.1 + signal * 0.2 / (signal**2 * 0.2 + noise**2) * (z_t - signal * 0.1)
    v = convert(schedule, x, z_t, t, X(), V())
    return jnp.concatenate([v, jnp.full_like(v, 7.0)], axis=-1).astype(jnp.float32)


@pytest.mark.slow
def test_images_and_a_learned_variance(schedule):
    """With the defaults: levels with noise added, the flow ending at z_1, one probe."""
    x = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 2)) / np.float32(127.5) - 1
    got = log_likelihood(
        jax.random.key(0), Denoiser(Partial(iid_v, schedule), schedule, target=V(), variance=LearnedRange()), x
    )
    noise = schedule.noise(1) / schedule.signal(1)
    bits = -(scipy.stats.norm.logpdf(x, 0.1, np.sqrt(0.2 + noise**2)).mean((1, 2, 3)) + math.log(2 / 255)) / math.log(2)
    assert got.latent.shape == x.shape
    assert {value.dtype for value in (got.log_prob, got.bits_per_dim, got.latent)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(got.bits_per_dim, bits, atol=0.01)  # the added noise moves them by so much
    np.testing.assert_allclose(
        got.bits_per_dim, -(got.log_prob + 32 * math.log(2 / 255)) / (32 * math.log(2)), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trace": "none"}, 'trace is \'none\'; expected "hutchinson" or "exact"'),
        ({"bins": 1}, "bins is 1; expected None or at least 2"),
        ({"end": math.inf}, "end is inf; expected None or a log SNR, a finite number"),
        ({"end": -20.4}, "end is -20.4; expected None or more than -19.84$"),
        ({"end": True}, "end is True; expected None or a log SNR"),
        ({"tolerance": 0.0}, "tolerance is 0.0; expected more than 0, less than 1"),
    ],
)
def test_what_is_wrong_is_named(unchecked, schedule, options, message):
    with pytest.raises(ValueError, match=message):
        line_likelihood(schedule, **options)
