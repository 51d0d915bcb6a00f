"""The objective: what it draws, what it measures, and that it means the same for every target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ddpm_jax.forward import diffuse
from ddpm_jax.objective import Draws, draw, loss
from ddpm_jax.schedule import Cosine, Linear
from ddpm_jax.targets import Eps, Mean, Score, V, X, convert
from ddpm_jax.weighting import MinSnr, Simple, weights

TARGETS = (Eps(), X(), V(), Mean(), Score())
BATCH = (64, 3)
compiled_loss = jax.jit(loss, static_argnames=("predict", "target", "weighting"))


@pytest.fixture(scope="module")
def schedule():
    return Cosine(num_steps=100).build()


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=BATCH).astype(np.float32)


@pytest.fixture(scope="module")
def draws(schedule):
    return draw(jax.random.key(0), schedule, BATCH)


def guess_x(z_t, t):
    """Some prediction of x."""
    return jnp.tanh(z_t) + 0.01 * t[:, None]


def test_timesteps_are_uniform_from_1_to_T(key):
    draws = jax.jit(draw, static_argnums=2)(key, Linear(num_steps=20).build(), (20_000,))
    values, counts = np.unique(draws.t, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(1, 21))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_noise_is_standard_normal(key):
    eps = np.asarray(draw(key, Linear(num_steps=20).build(), (20_000,)).eps)
    assert scipy.stats.kstest(eps, scipy.stats.norm.cdf).pvalue > 1e-3


def test_draws_are_a_function_of_the_key(schedule, draws):
    again, other = (draw(jax.random.key(seed), schedule, BATCH) for seed in (0, 1))
    np.testing.assert_array_equal(again.t, draws.t)
    np.testing.assert_array_equal(again.eps, draws.eps)
    assert np.any(np.asarray(other.t) != draws.t)
    assert np.all(np.asarray(other.eps) != draws.eps)
    assert draws.t.shape == BATCH[:1]
    assert draws.eps.shape == BATCH


def test_by_default_it_is_the_mean_squared_error_of_the_noise(schedule, x, draws):
    got = compiled_loss(lambda z_t, t: 0.5 * z_t, schedule, x, draws)
    t, eps = np.asarray(draws.t), np.asarray(draws.eps)
    alpha_bar = np.asarray(schedule.alpha_bar)[t][:, None]
    z_t = np.sqrt(alpha_bar) * x + np.sqrt(1 - alpha_bar) * eps
    assert got.shape == BATCH[:1]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, ((0.5 * z_t - eps) ** 2).mean(1), rtol=1e-4)


@pytest.mark.parametrize("weighting", [Simple(), MinSnr()], ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_exact_answer_costs_nothing(schedule, x, draws, target, weighting):
    def exact(z_t, t):
        return target.encode(schedule, x, draws.eps, t)

    np.testing.assert_array_equal(loss(exact, schedule, x, draws, target, weighting), 0.0)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_min_snr_is_the_same_number_for_every_target(schedule, x, draws, target):
    def predict(z_t, t):
        return convert(schedule, guess_x(z_t, t), z_t, t, X(), target)

    got = compiled_loss(predict, schedule, x, draws, target=target, weighting=MinSnr(5.0))
    error = np.asarray(guess_x(diffuse(schedule, x, draws.t, draws.eps), draws.t)) - x
    snr = np.asarray(schedule.snr)[np.asarray(draws.t)]
    np.testing.assert_allclose(got, np.minimum(snr, 5.0) * (error**2).mean(1), rtol=2e-3, atol=1e-5)


def test_simple_on_the_noise_is_snr_on_the_data(schedule, draws):
    np.testing.assert_array_equal(weights(Simple(), schedule, draws.t, Eps()), 1.0)
    on_x = weights(MinSnr(gamma=1e9), schedule, draws.t, X())
    np.testing.assert_allclose(on_x, np.asarray(schedule.snr)[np.asarray(draws.t)])
    np.testing.assert_allclose(weights(MinSnr(gamma=1e9), schedule, draws.t, Eps()), 1.0, rtol=1e-6)


def test_its_minimum_is_the_conditional_expectation(schedule):
    """For x ~ N(0, v): E[eps | z_t] = k z_t, k = noise / (alpha_bar v + noise^2); the slope in k vanishes there."""
    x, v = 0.5 * jax.random.normal(jax.random.key(1), (200_000,)), 0.25
    t = 40
    draws = Draws(jnp.full(x.shape, t), jax.random.normal(jax.random.key(2), x.shape))
    alpha_bar, noise_var = float(schedule.alpha_bar[t]), float(schedule.noise_var[t])
    best = noise_var**0.5 / (alpha_bar * v + noise_var)

    @jax.jit
    @jax.value_and_grad
    def mean_loss(k):
        return loss(lambda z_t, t: k * z_t, schedule, x, draws).mean()

    value, slope = mean_loss(best)
    assert float(value) == pytest.approx(alpha_bar * v / (alpha_bar * v + noise_var), rel=0.02)
    assert abs(float(slope)) < 0.01
    assert float(mean_loss(best - 0.1)[1]) < -0.05
    assert float(mean_loss(best + 0.1)[1]) > 0.05


def test_it_is_float32_whatever_the_network_returns(schedule, x, draws):
    got = compiled_loss(lambda z_t, t: z_t.astype(jnp.bfloat16), schedule, x, draws)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, compiled_loss(lambda z_t, t: z_t, schedule, x, draws), rtol=0.05, atol=0.02)


def test_an_output_of_another_shape_is_an_error(schedule, x, draws):
    with pytest.raises(ValueError, match=r"returned shape \(64, 1\) for data of shape \(64, 3\)"):
        loss(lambda z_t, t: z_t[:, :1], schedule, x, draws)


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan")])
def test_gamma_is_positive(gamma):
    with pytest.raises(ValueError, match=f"gamma is {gamma}"):
        MinSnr(gamma)
