"""The objective: what it draws, what it measures, and that it means the same for every target."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ddpm_jax.diffusion.arrays import example_keys
from ddpm_jax.diffusion.bound import bits_per_dim, bound, prior, term
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.forward import diffuse
from ddpm_jax.diffusion.objective import Draws, FullBound, Hybrid, SquaredError, draw
from ddpm_jax.diffusion.schedule import Cosine, Linear
from ddpm_jax.diffusion.targets import Eps, Mean, Score, V, X, convert
from ddpm_jax.diffusion.variance import FixedLarge, FixedSmall, LearnedRange
from ddpm_jax.diffusion.weighting import P2, MinSnr, Simple, Vlb, Weights, weights
from ddpm_jax.storage import specs

TARGETS = (Eps(), X(), V(), Mean(), Score())
BATCH = (64, 3)


@partial(jax.jit, static_argnames=("predict", "target", "weighting"))
def compiled_loss(predict, schedule, x, draws, target=Eps(), weighting=Simple()):
    return SquaredError(weighting)(Denoiser(predict, schedule, target), x, draws)


weight = jax.jit(lambda weighting, *arguments: weighting(*arguments), static_argnums=0)


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

    np.testing.assert_array_equal(SquaredError(weighting)(Denoiser(exact, schedule, target=target), x, draws), 0.0)


WEIGHTINGS_OF_X = {
    MinSnr(5.0): lambda snr, before: np.minimum(snr, 5.0),
    P2(): lambda snr, before: snr / (1 + snr),
    P2(gamma=0.5, k=2.0): lambda snr, before: snr / (2 + snr) ** 0.5,
    Vlb(): lambda snr, before: (before - snr) / 2,
}


@pytest.mark.parametrize("weighting", WEIGHTINGS_OF_X, ids=str)
def test_a_weighting_of_the_data_is_the_same_number_for_every_target(schedule, x, draws, weighting):
    """That of its paper, times the squared error of the x that the output stands for."""

    @jax.jit
    def losses(x, draws):
        def predict(target, z_t, t):
            return convert(schedule, guess_x(z_t, t), z_t, t, X(), target)

        return [
            SquaredError(weighting)(Denoiser(partial(predict, target), schedule, target=target), x, draws)
            for target in TARGETS
        ]

    t = np.maximum(draws.t, 2)
    draws = Draws(jnp.asarray(t), draws.eps)
    error = np.asarray(guess_x(diffuse(schedule, x, t, draws.eps), t)) - x
    alpha_bar = np.cumprod(np.append(1.0, 1 - Cosine(num_steps=100).betas()))
    snr, before = alpha_bar[t] / (1 - alpha_bar[t]), alpha_bar[t - 1] / (1 - alpha_bar[t - 1])
    expected = WEIGHTINGS_OF_X[weighting](snr, before) * (error**2).mean(1)
    for target, got in zip(TARGETS, losses(x, draws), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-5, err_msg=str(target))


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()], ids=str)
def test_the_gradient_of_the_bound_is_the_same_for_every_target(schedule, x, draws, variance):
    """A network of two parameters, its output mapped to each target; t = 1 is among the timesteps."""
    draws = Draws(draws.t.at[:2].set(1), draws.eps)

    @jax.jit
    def gradients(parameters):
        def mean_loss(parameters, target):
            def predict(z_t, t):
                return convert(schedule, parameters[0] * guess_x(z_t, t) + parameters[1], z_t, t, X(), target)

            return SquaredError(Vlb(variance))(Denoiser(predict, schedule, target=target), x, draws).mean()

        return [jax.grad(mean_loss)(parameters, target) for target in TARGETS]

    of_x = gradients(jnp.array([0.8, 0.05]))
    for target, gradient in zip(TARGETS, of_x, strict=True):
        np.testing.assert_allclose(gradient, of_x[TARGETS.index(X())], rtol=1e-3, err_msg=str(target))
        assert np.all(np.abs(gradient) > 0.1)


@pytest.mark.parametrize("variance", [FixedSmall(), FixedLarge()], ids=str)
def test_the_weighted_error_is_the_term_of_the_bound(schedule, x, draws, variance):
    """In nats, times the elements; up to what the variance costs whatever the network, which is nothing for t >= 2
    with FixedSmall."""
    t = draws.t.at[:2].set(1)

    @jax.jit
    def both(eps):
        def nats(predict):
            return term(Denoiser(predict, schedule, X(), variance), x, t, eps, bins=None).nats

        error = SquaredError(Vlb(variance))(Denoiser(guess_x, schedule, target=X()), x, Draws(t, eps))
        return 3 * error, nats(guess_x), nats(lambda z_t, t: x)

    error, guessed, exact = map(np.asarray, both(draws.eps))
    np.testing.assert_allclose(error, guessed - exact, rtol=1e-3, atol=2e-5)
    if variance == FixedSmall():
        np.testing.assert_allclose(error[2:], guessed[2:], rtol=1e-3, atol=1e-5)


def test_the_weight_of_the_bound_is_half_the_fall_of_snr(spec):
    """For t >= 2 with FixedSmall; with FixedLarge b^2 / (2 beta), of Ho et al. 2020."""
    alpha_bar = np.cumprod(np.append(1.0, 1 - spec.betas()))
    t = np.arange(2, spec.num_steps + 1)
    now, before = alpha_bar[t], alpha_bar[t - 1]
    small, large = (weight(Vlb(variance), spec.build(), t) for variance in (FixedSmall(), FixedLarge()))
    np.testing.assert_allclose(small, (before / (1 - before) - now / (1 - now)) / 2, rtol=1e-4)
    beta = 1 - now / before
    # In the noise: beta^2 / (2 sigma^2 (1 - beta) (1 - alpha_bar)), equation 12.
    of_noise = beta**2 / (2 * beta * (1 - beta) * (1 - now))
    np.testing.assert_allclose(np.asarray(large) / (now / (1 - now)), of_noise, rtol=1e-4)


def test_p2_without_gamma_is_the_simple_loss_of_the_noise(schedule, draws):
    np.testing.assert_allclose(weights(P2(gamma=0.0), schedule, draws.t, Eps()), 1.0, rtol=1e-6)
    k, snr = 3.0, np.asarray(schedule.snr(draws.t))
    np.testing.assert_allclose(weights(P2(k=k), schedule, draws.t, Eps()), 1 / (k + snr), rtol=1e-5)


@pytest.mark.parametrize("make", [np.asarray, list, tuple])
def test_any_weights_of_the_output(schedule, x, draws, make):
    values = np.linspace(0.0, 2.0, 100)
    given = Weights(make(values))
    np.testing.assert_allclose(weights(given, schedule, draws.t, V()), values[np.asarray(draws.t) - 1], rtol=1e-6)
    assert hash(given) == hash(Weights(list(values)))
    assert specs.decode(specs.encode(given), Path()) == given


def test_weights_for_another_chain_are_an_error(schedule):
    with pytest.raises(ValueError, match="there are 99 weights; the process has 100 steps"):
        Weights(np.ones(99))(schedule, np.array([1]))


def test_simple_on_the_noise_is_snr_on_the_data(schedule, draws):
    np.testing.assert_array_equal(weights(Simple(), schedule, draws.t, Eps()), 1.0)
    on_x = weights(MinSnr(gamma=1e9), schedule, draws.t, X())
    np.testing.assert_allclose(on_x, np.asarray(schedule.snr(draws.t)))
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
        return SquaredError()(Denoiser(lambda z_t, t: k * z_t, schedule), x, draws).mean()

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
        SquaredError()(Denoiser(lambda z_t, t: z_t[:, :1], schedule), x, draws)


# Objectives that know of the variance.


def outputs(parameters, z_t, t):
    """A network with a variance: two parameters for the mean, two for the spread."""
    mean = parameters["mean"][0] * jnp.tanh(z_t) + parameters["mean"][1]
    return jnp.concatenate([mean, parameters["spread"][0] * z_t + parameters["spread"][1]], axis=-1)


PARAMETERS = {"mean": jnp.array([0.5, 0.1]), "spread": jnp.array([0.3, -0.2])}


@pytest.mark.parametrize("bins", [256, None])
def test_hybrid_teaches_the_mean_by_the_squared_error_and_the_variance_by_the_bound(schedule, x, draws, bins):
    """Its gradient in the mean's parameters is the squared error's, in the variance's vlb_weight times the bound's."""
    draws = Draws(draws.t.at[:2].set(1), draws.eps)
    objectives = (Hybrid(0.01, MinSnr(), bins), SquaredError(MinSnr()), FullBound(bins))

    @jax.jit
    def all_gradients(parameters):
        def mean_loss(parameters, objective):
            decoder = Denoiser(partial(outputs, parameters), schedule, V(), LearnedRange())
            return objective(decoder, x, draws).mean()

        return [jax.value_and_grad(mean_loss)(parameters, objective) for objective in objectives]

    (hybrid, of_hybrid), (simple, of_simple), (full, of_full) = all_gradients(PARAMETERS)
    np.testing.assert_allclose(hybrid, simple + 0.01 * full, rtol=1e-5)
    np.testing.assert_allclose(of_hybrid["mean"], of_simple["mean"], rtol=1e-6)
    np.testing.assert_array_equal(of_simple["spread"], 0.0)
    np.testing.assert_allclose(of_hybrid["spread"], 0.01 * of_full["spread"], rtol=1e-5)
    assert np.all(np.abs(of_hybrid["spread"]) > 1e-4)
    assert np.all(np.abs(0.01 * of_full["mean"]) > 1e-4)


@pytest.mark.parametrize("bins", [256, None])
def test_the_full_bound_over_all_timesteps_is_the_bound(bins, key):
    """Its mean over t, with the prior's term, in bits for each element."""
    schedule = Cosine(num_steps=12).build()
    x = np.random.default_rng(0).integers(0, 256, (3, 4)).astype(np.float32) / 127.5 - 1
    predict = partial(outputs, PARAMETERS)
    whole = bound(key, Denoiser(predict, schedule, target=V(), variance=LearnedRange()), x, bins=bins)

    @jax.jit
    def of_each_timestep(keys):
        def one(t):
            eps = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), (4,)))(keys)
            decoder = Denoiser(predict, schedule, V(), LearnedRange())
            return FullBound(bins)(decoder, x, Draws(jnp.full(3, t), eps))

        return jax.vmap(one)(jnp.arange(1, 13))

    losses = np.asarray(of_each_timestep(example_keys(key, 0, 3)))
    expected = losses.mean(0) + np.asarray(bits_per_dim(prior(schedule, x), x))
    np.testing.assert_allclose(whole.bits_per_dim, expected, rtol=1e-4)
    np.testing.assert_allclose(losses[::-1] / 12 * 4 * np.log(2), whole.nats, rtol=1e-4, atol=1e-5)


def test_the_full_bound_is_finite_for_any_output(schedule, x, draws):
    """Its gradient too: an untrained network's x and spread may be far from anything."""
    draws = Draws(draws.t.at[:4].set(1), draws.eps)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(output):
        losses = FullBound()(Denoiser(lambda z_t, t: output, schedule, Eps(), LearnedRange()), x, draws)
        return losses.mean(), losses

    for size in (0.0, 1.0, 30.0):
        output = size * np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
        output[:, 3:] /= 10 * max(size, 1)
        slope, losses = gradient(jnp.asarray(output))
        assert np.all(np.isfinite(losses))
        assert np.all(np.isfinite(slope))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinSnr(0.0), "gamma is 0.0; expected more than 0"),
        (lambda: MinSnr(-1.0), "gamma is -1.0"),
        (lambda: MinSnr(float("nan")), "gamma is nan"),
        (lambda: P2(gamma=-0.5), "gamma is -0.5; expected 0 or more"),
        (lambda: P2(k=0.0), "k is 0.0; expected more than 0"),
        (lambda: P2(k=float("nan")), "k is nan"),
        (lambda: Vlb(LearnedRange()), r"variance is LearnedRange\(\); expected FixedSmall\(\) or FixedLarge\(\)"),
        (lambda: Weights([1.0, -0.5]), r"values is \[1.0, -0.5\]; expected a list of T numbers, each finite and 0"),
        (lambda: Weights([1.0, float("nan")]), "each finite and 0 or more"),
        (lambda: Weights([]), "each finite and 0 or more"),
        (lambda: Weights(np.ones((2, 2))), "a list of T numbers"),
        (lambda: FullBound(bins=1), "bins is 1; expected None or at least 2"),
        (lambda: Hybrid(bins=1), "bins is 1; expected None or at least 2"),
        (lambda: Hybrid(vlb_weight=0.0), "vlb_weight is 0.0; expected more than 0"),
        (lambda: Hybrid(vlb_weight=float("inf")), "vlb_weight is inf; expected more than 0"),
    ],
)
def test_a_wrong_value_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("t", [0, 101])
def test_timesteps_outside_the_chain_are_an_error(schedule, x, t):
    draws = Draws(jnp.full(len(x), t), jnp.zeros_like(x))
    for call in (
        lambda: SquaredError()(Denoiser(lambda z_t, t: z_t, schedule), x, draws),
        lambda: convert(schedule, x, x, draws.t, Eps(), V()),
    ):
        with pytest.raises(ValueError, match=rf"t = {t} is outside 1..100"):
            call()
