"""The forward process: its formulas agree with each other, by composition and by Bayes' rule, at every timestep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import forward
from ddpm_jax.diffusion.gaussian import Normal
from ddpm_jax.diffusion.schedule import Betas, Chain, Linear, Schedule
from ddpm_jax.diffusion.variance import FixedLarge, FixedSmall

# Compiled whole: run eagerly, every operation is compiled by itself.
transition, marginal, diffuse, noise_between, posterior, chain, log_prob, step_of = map(
    jax.jit,
    (
        forward.transition,
        forward.marginal,
        forward.diffuse,
        forward.noise_between,
        forward.posterior,
        forward.chain,
        Normal.log_prob,
        Chain.step,
    ),
)


@jax.jit
def weights(schedule: Chain, t: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(a, b, var) of q(z_s | z_t, x), and the variance of q(z_t | z_s)."""
    step = schedule.step(t, s)
    return step.a, step.b, step.var, step.forward_var


def normals(*shape: int) -> np.ndarray:
    """Standard normal float32 numbers, the same ones every time."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def pairs(spec: Schedule) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(t, s) with t = 1..T and s < t: neighbours, strides, halves, and the data."""
    t = np.arange(1, spec.num_steps + 1)
    return {
        "neighbours": (t, t - 1),
        "strides": (t, np.maximum(t - max(spec.num_steps // 10, 2), 0)),
        "halves": (t, t // 2),
        "to the data": (t, np.zeros_like(t)),
    }


class Exact:
    """The same quantities in extended precision, written from the definitions."""

    def __init__(self, spec: Schedule) -> None:
        self.alpha_bar = np.cumprod(np.r_[1.0, 1 - spec.betas()].astype(np.longdouble))

    def step(self, t: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(c, var): q(z_t | z_s) = N(c z_s, var)."""
        ratio = self.alpha_bar[t] / self.alpha_bar[s]
        return np.sqrt(ratio), 1 - ratio

    def posterior(self, t: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(a, b, var) of the product of N(z_s; signal_s x, noise_s^2) and N(z_t; c z_s, var), s > 0."""
        c, var_step = self.step(t, s)
        prior = 1 / (1 - self.alpha_bar[s])
        var = 1 / (prior + c**2 / var_step)
        return var * c / var_step, var * prior * np.sqrt(self.alpha_bar[s]), var


def test_single_steps_compose_to_the_marginal(spec):
    schedule, t, ones = spec.build(), np.arange(1, spec.num_steps + 1), np.ones(spec.num_steps, np.float32)
    step, whole = transition(schedule, ones, t), marginal(schedule, ones, t)
    factor, var = np.asarray(step.mean, np.float64), np.asarray(step.std, np.float64) ** 2
    expected = [0.0]
    for i in range(spec.num_steps):
        expected.append(factor[i] ** 2 * expected[-1] + var[i])
    np.testing.assert_allclose(np.asarray(whole.std) ** 2, expected[1:], rtol=2e-6)
    np.testing.assert_allclose(whole.mean, np.cumprod(factor), rtol=2e-5)


def test_a_jump_from_s_composes_with_the_marginal_at_s(spec):
    schedule = spec.build()
    signal, noise_var = np.asarray(schedule.signals), np.asarray(schedule.noise_var)
    for t, s in pairs(spec).values():
        factor = signal[t] / signal[s]
        var = factor**2 * noise_var[s] + step_of(schedule, t, s).forward_var
        np.testing.assert_allclose(var, noise_var[t], rtol=1e-6)


def test_the_chain_has_the_moments_of_the_marginal(key):
    schedule, x = Betas((0.1, 0.2, 0.05, 0.4)).build(), np.full((40_000,), 0.8, np.float32)
    path, again, other = (np.asarray(chain(k, schedule, x)) for k in (key, key, jax.random.key(1)))
    assert path.shape == (4, 40_000)
    signal, noise_var = np.asarray(schedule.signals)[1:], np.asarray(schedule.noise_var)[1:]
    np.testing.assert_allclose(path.mean(1), signal * x[0], atol=0.02)
    earlier, later = np.minimum.outer(np.arange(4), np.arange(4)), np.maximum.outer(np.arange(4), np.arange(4))
    np.testing.assert_allclose(np.cov(path), signal[later] / signal[earlier] * noise_var[earlier], atol=0.015)
    np.testing.assert_array_equal(path, again)
    assert np.all(path != other)


def test_posterior_and_step_keep_float32_precision(spec):
    schedule, exact = spec.build(), Exact(spec)
    for name, (t, s) in pairs(spec).items():
        *found, forward_var = weights(schedule, t, s)
        np.testing.assert_allclose(forward_var, exact.step(t, s)[1].astype(float), rtol=2e-5, err_msg=name)
        later = s > 0
        expected = exact.posterior(t[later], s[later])
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(np.asarray(got)[later], want.astype(float), rtol=2e-5, err_msg=name)


def test_single_steps_are_exact_to_float32(spec):
    schedule, exact = spec.build(), Exact(spec)
    t = np.arange(1, spec.num_steps + 1)
    *found, forward_var = weights(schedule, t, t - 1)
    np.testing.assert_allclose(forward_var, np.asarray(schedule.beta)[1:], rtol=1e-6)
    expected = exact.posterior(t[1:], t[1:] - 1)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(got)[1:], want.astype(float), rtol=1e-6)


def test_posterior_obeys_bayes_rule(spec):
    schedule = spec.build()
    signal = np.asarray(schedule.signals)
    for t, s in pairs(spec).values():
        t, s = np.maximum(t, 2), np.maximum(s, 1)
        x, eps_s, eps_t = normals(3, spec.num_steps)
        prior, whole = marginal(schedule, x, s), marginal(schedule, x, t)
        z_s = np.asarray(prior.mean) + np.asarray(prior.std) * eps_s
        std = np.sqrt(step_of(schedule, t, s).forward_var)
        step = Normal(jnp.asarray(signal[t] / signal[s] * z_s), jnp.asarray(std))
        z_t = np.asarray(step.mean) + std * eps_t
        expected = log_prob(step, z_t) + log_prob(prior, z_s) - log_prob(whole, z_t)
        np.testing.assert_allclose(log_prob(posterior(schedule, z_t, x, t, s), z_s), expected, atol=2e-3)


def test_posterior_of_the_data_is_the_data(spec):
    schedule, t = spec.build(), np.arange(1, spec.num_steps + 1)
    x, z_t = normals(2, spec.num_steps)
    neighbour = posterior(schedule, z_t, x, t)
    assert np.asarray(neighbour.mean)[0] == x[0]
    assert np.asarray(neighbour.std)[0] == 0
    jump = posterior(schedule, z_t, x, t, np.zeros_like(t))
    np.testing.assert_array_equal(jump.mean, x)
    np.testing.assert_array_equal(jump.std, 0.0)


def test_posterior_steps_to_the_neighbour_by_default(spec):
    schedule, t = spec.build(), np.arange(1, spec.num_steps + 1)
    x, z_t = normals(2, spec.num_steps)
    default, named = posterior(schedule, z_t, x, t), posterior(schedule, z_t, x, t, t - 1)
    np.testing.assert_allclose(default.mean, named.mean, rtol=2e-5, atol=3e-5)
    np.testing.assert_allclose(default.std, named.std, rtol=2e-5)


def test_noise_between_undoes_diffuse(spec):
    schedule, t = spec.build(), np.arange(1, spec.num_steps + 1)
    x, eps = normals(2, spec.num_steps)
    z_t, normal = diffuse(schedule, x, t, eps), marginal(schedule, x, t)
    np.testing.assert_allclose(z_t, np.asarray(normal.mean) + np.asarray(normal.std) * eps, atol=1e-6)
    error = np.abs(np.asarray(noise_between(schedule, z_t, x, t)) - eps)
    assert np.all(error < 1e-6 / np.asarray(schedule.noises)[1:])
    np.testing.assert_array_equal(diffuse(schedule, x, np.zeros_like(t), eps), x)


def test_fixed_variances_are_optimal_for_a_point_and_for_a_standard_normal(spec):
    """var(z_s | z_t) = posterior variance + b^2 var(x | z_t), with var(x | z_t) = 0 and 1 - alpha_bar_t; s > 0."""
    schedule = spec.build()
    small, large = jax.jit(FixedSmall().__call__), jax.jit(FixedLarge().__call__)
    for t, s in pairs(spec).values():
        noisy, step = s > 0, step_of(schedule, t, s)
        _, b, var, _ = (np.asarray(value)[noisy] for value in weights(schedule, t, s))
        np.testing.assert_allclose(np.asarray(small(step))[noisy], var, rtol=1e-6)
        largest = np.asarray(large(step))[noisy]
        np.testing.assert_allclose(largest, var + b**2 * np.asarray(schedule.noise_var)[t[noisy]], rtol=1e-4)
        assert np.all(largest >= var)


def test_one_timestep_for_all_or_one_for_each():
    schedule, (x, eps) = Linear(num_steps=20).build(), normals(2, 3, 4, 4, 2)
    all_t, each_t = 7, np.full(3, 7)
    np.testing.assert_array_equal(diffuse(schedule, x, all_t, eps), diffuse(schedule, x, each_t, eps))
    assert marginal(schedule, x, all_t).std.shape == (1, 1, 1, 1)
    assert marginal(schedule, x, each_t).std.shape == (3, 1, 1, 1)
    for earlier in (3, np.full(3, 3)):
        got = posterior(schedule, x, eps, all_t, earlier).mean
        np.testing.assert_allclose(got, posterior(schedule, x, eps, each_t, np.full(3, 3)).mean, rtol=1e-5, atol=1e-6)


def test_formulas_vmap_and_differentiate():
    schedule, t = Linear(num_steps=20).build(), np.array([1, 9, 20])
    x, eps = normals(2, 3, 4)
    z_t = diffuse(schedule, x, t, eps)
    mapped = jax.vmap(lambda x, t, eps: diffuse(schedule, x[None], t, eps[None])[0])(x, t, eps)
    np.testing.assert_allclose(mapped, z_t, rtol=1e-6, atol=1e-6)
    gradient = jax.grad(lambda x: diffuse(schedule, x, t, eps).sum())(jnp.asarray(x))
    np.testing.assert_allclose(gradient, np.tile(np.asarray(schedule.signals)[t, None], (1, 4)))
    gradient = jax.grad(lambda z: posterior(schedule, z, x, t).mean.sum())(z_t)
    assert np.all(np.asarray(gradient)[0] == 0)
    assert np.all(np.asarray(gradient)[1:] > 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda schedule, x: forward.transition(schedule, x, 0), r"t = 0 is outside 1\.\.20"),
        (lambda schedule, x: forward.transition(schedule, x, np.array([3, 21])), r"t = 21 is outside 1\.\.20"),
        (lambda schedule, x: forward.marginal(schedule, x, -1), r"t = -1 is outside 0\.\.20"),
        (lambda schedule, x: forward.diffuse(schedule, x, np.array([21, 0]), x), r"t = 21 is outside 0\.\.20"),
        (lambda schedule, x: forward.posterior(schedule, x, x, 0), r"t = 0 is outside 1\.\.20"),
        (lambda schedule, x: forward.posterior(schedule, x, x, 3, -1), r"s = -1 is outside 0\.\.20"),
        (lambda schedule, x: forward.posterior(schedule, x, x, 3, 3), "s must be smaller than t"),
        (lambda schedule, x: forward.posterior(schedule, x, x, np.array([5, 3]), 4), "s must be smaller than t"),
    ],
)
def test_timesteps_outside_the_chain_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(Linear(num_steps=20).build(), np.zeros((2, 3), np.float32))


def test_the_steps_of_a_chain_begin_at_integers(unchecked):
    schedule, x, t = Linear(num_steps=20).build(), np.ones((1, 3), np.float32), np.array([2.5])
    calls = (forward.transition, forward.posterior)
    for call, rest in zip(calls, ((x, t), (x, x, t)), strict=True):
        with pytest.raises(ValueError, match=r"t has dtype float64; expected integers in 1\.\.20"):
            call(schedule, *rest)


def test_a_real_time_of_a_chain_lies_on_the_curve_between_its_neighbours():
    schedule, (x, eps) = Linear(num_steps=20).build(), normals(2, 2, 3)
    times = np.float32([7, 7.5, 8])
    before, between, after = (np.asarray(diffuse(schedule, x, t, eps)) for t in times)
    np.testing.assert_allclose(before, diffuse(schedule, x, 7, eps), rtol=1e-6)
    np.testing.assert_allclose(between, schedule.signal(times[1]) * x + schedule.noise(times[1]) * eps, rtol=1e-6)
    np.testing.assert_allclose(between, (before + after) / 2, atol=0.01)
    np.testing.assert_allclose(noise_between(schedule, between, x, times[1]), eps, atol=1e-5)
    for t in (-0.5, 20.5, np.float32([3, 21])):
        with pytest.raises(ValueError, match=r"t = .* is outside \[0, 20\]"):
            forward.diffuse(schedule, x, t, eps)


def test_times_known_inside_jit_are_checked_too():
    """Plain numbers stay plain under jit: the posterior takes them, and refuses those in the wrong order."""
    schedule, x = Linear(num_steps=20).build(), jnp.ones((2, 3))
    inside = jax.jit(lambda x: forward.posterior(schedule, x, x, 5, s=3).mean)
    np.testing.assert_allclose(inside(x), forward.posterior(schedule, x, x, 5, s=3).mean, rtol=1e-6)
    with pytest.raises(ValueError, match="s is 5 and t is 5"):
        jax.jit(lambda x: forward.posterior(schedule, x, x, 5, s=5).mean)(x)


def test_a_walk_is_the_chain_that_its_noises_make():
    """Its noises are those that its transitions need, and without noise it is signal_t x."""
    schedule, x = Linear(20).build(), jnp.asarray([[0.7], [-0.3]])
    t = np.arange(1, 21)
    eps = normals(20, 2, 1)
    z = forward.walk(schedule, x, eps)
    q = transition(schedule, jnp.concatenate([x[None], z[:-1]]), t)
    np.testing.assert_allclose((z - q.mean) / q.std, eps, atol=1e-5)
    still = forward.walk(schedule, x, np.zeros_like(eps))
    np.testing.assert_allclose(still, schedule.signals[1:, None, None] * x, rtol=1e-5)
    with pytest.raises(ValueError, match=r"eps is \(19, 2, 1\); expected the shape \(20, 2, 1\)"):
        forward.walk(schedule, x, eps[1:])


def test_a_chain_of_half_precision_is_one_of_float32():
    path = forward.chain(
        jax.random.key(0), Linear(num_steps=3).build(), np.ones((2, 3), np.float32).astype(jnp.bfloat16)
    )
    assert path.dtype == jnp.float32
