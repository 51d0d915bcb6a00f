"""The normal distribution against scipy and numerical integration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from ddpm_jax.diffusion.gaussian import Normal

kl, log_prob = jax.jit(Normal.kl), jax.jit(Normal.log_prob)


def scalar(mean: float, std: float) -> Normal:
    return Normal(jnp.float32(mean), jnp.float32(std))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-3.0, 0.01), (0.5, 20.0)])
def test_log_prob_is_the_logarithm_of_the_density(mean, std):
    y = np.float32(mean) + np.float32(std) * np.linspace(-6, 6, 25, dtype=np.float32)
    got = log_prob(Normal(jnp.asarray(np.full(25, mean, np.float32)), jnp.float32(std)), y)
    expected = scipy.stats.norm.logpdf(y.astype(np.float64), np.float32(mean), np.float32(std))
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("mean", "std", "other_mean", "other_std"), [(0, 1, 0, 2), (1, 0.5, -1, 0.7), (0.3, 3, 0.2, 1), (0, 1, 5, 1)]
)
def test_kl_is_the_expectation_of_the_log_ratio(mean, std, other_mean, other_std):
    p, q = scipy.stats.norm(mean, std), scipy.stats.norm(other_mean, other_std)
    expected, _ = scipy.integrate.quad(
        lambda y: p.pdf(y) * (p.logpdf(y) - q.logpdf(y)), mean - 12 * std, mean + 12 * std
    )
    assert float(kl(scalar(mean, std), scalar(other_mean, other_std))) == pytest.approx(expected, rel=1e-5)


def test_kl_is_never_negative_and_zero_only_for_equals():
    means, stds = np.random.default_rng(0).normal(size=(2, 2, 10_000)).astype(np.float32)
    p, q = (Normal(jnp.asarray(mean), jnp.asarray(np.exp(std))) for mean, std in zip(means, stds, strict=True))
    assert np.all(np.asarray(kl(p, q)) > 0)
    np.testing.assert_array_equal(kl(p, p), 0.0)


@pytest.mark.parametrize("offset", [1e-2, 1e-3, 1e-4])
def test_kl_keeps_its_digits_between_close_distributions(offset):
    std, mean = np.float32(1 + offset), np.float32(offset)
    ratio = np.float64(std)
    expected = 0.5 * (ratio**2 - 1 + np.float64(mean) ** 2) - np.log1p(ratio - 1)
    assert float(kl(scalar(mean, std), scalar(0, 1))) == pytest.approx(expected, rel=2e-3)


def test_samples_have_the_mean_and_the_std(key):
    normal = Normal(jnp.broadcast_to(jnp.array([1.0, -2.0]), (50_000, 2)), jnp.array([0.5, 3.0]))
    samples, again, other = (np.asarray(normal.sample(k)) for k in (key, key, jax.random.key(1)))
    np.testing.assert_allclose(samples.mean(0), [1.0, -2.0], atol=0.05)
    np.testing.assert_allclose(samples.std(0), [0.5, 3.0], rtol=0.02)
    np.testing.assert_array_equal(samples, again)
    assert np.any(samples != other)


def test_a_point_is_drawn_exactly(key):
    mean = jnp.asarray(np.random.default_rng(0).normal(size=(50_000, 2)).astype(np.float32))
    np.testing.assert_array_equal(Normal(mean, jnp.zeros((50_000, 1))).sample(key), mean)


def test_it_is_a_pytree_that_vmaps_and_differentiates():
    mean, y = np.random.default_rng(0).normal(size=(2, 25)).astype(np.float32)
    normal = Normal(jnp.asarray(mean), jnp.asarray(np.full(25, 0.3, np.float32)))
    np.testing.assert_allclose(jax.vmap(log_prob)(normal, y), log_prob(normal, y), rtol=1e-5)
    gradient = jax.grad(lambda y: log_prob(normal, y).sum())(jnp.asarray(y))
    np.testing.assert_allclose(gradient, -(y - mean) / 0.3**2, rtol=1e-5)
