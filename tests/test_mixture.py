"""Mixtures of normals: every closed form against another way to the same number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from ddpm_jax.diffusion.mixture import Mixture, _shifted
from ddpm_jax.diffusion.schedule import Linear

ON_THE_LINE = Mixture.of([0.3, 0.5, 0.2], [-0.8, 0.1, 0.7], [0.1, 0.2, 0.05])
IN_THE_PLANE = Mixture.of([0.4, 0.6], [[-0.5, 0.2], [0.7, -0.1]], [0.3, 0.1])
GRID = np.linspace(-6, 6, 4001)
TIMES = (1, 15, 30, 50)


@pytest.fixture(scope="module")
def schedule():
    return Linear(50).build()


def density(mixture: Mixture, y: np.ndarray) -> np.ndarray:
    """p(y) on the line, in float64."""
    parts = (np.asarray(part, np.float64) for part in (mixture.weights, mixture.means, mixture.stds))
    return sum(w * scipy.stats.norm.pdf(y, m, s) for w, m, s in zip(*parts, strict=True))


def test_the_density_is_the_sum_of_its_parts():
    np.testing.assert_allclose(
        ON_THE_LINE.log_prob(GRID[1500:2500]), np.log(density(ON_THE_LINE, GRID[1500:2500])), atol=2e-4
    )
    y = np.array([[0.1, -0.3], [0.8, 0.0]], np.float32)
    parts = [
        w * scipy.stats.multivariate_normal.pdf(y, m, s**2)
        for w, m, s in ((0.4, [-0.5, 0.2], 0.3), (0.6, [0.7, -0.1], 0.1))
    ]
    np.testing.assert_allclose(IN_THE_PLANE.log_prob(y), np.log(sum(parts)), rtol=1e-5)


def test_the_score_is_the_slope_of_the_log_density():
    y = jax.random.normal(jax.random.key(0), (20, 2))
    slope = jax.vmap(jax.grad(lambda point: IN_THE_PLANE.log_prob(point[None])[0]))(y)
    np.testing.assert_allclose(IN_THE_PLANE.score(y), slope, rtol=1e-3, atol=1e-3)


def test_the_cdf_is_the_integral_of_the_density():
    integral = scipy.integrate.cumulative_trapezoid(density(ON_THE_LINE, GRID), GRID, initial=0)
    np.testing.assert_allclose(ON_THE_LINE.cdf(GRID), integral, atol=1e-4)


def test_moments():
    p = density(ON_THE_LINE, GRID)
    mean = np.trapezoid(GRID * p, GRID)
    normal = ON_THE_LINE.moments()
    np.testing.assert_allclose(normal.mean, mean, atol=1e-5)
    np.testing.assert_allclose(normal.std, np.sqrt(np.trapezoid((GRID - mean) ** 2 * p, GRID)), rtol=1e-5)


def test_samples_are_distributed_as_the_density():
    x = ON_THE_LINE.sample(jax.random.key(1), 5000)
    distance = scipy.stats.kstest(np.asarray(x, np.float64), lambda y: ON_THE_LINE.cdf(np.asarray(y))).statistic
    assert distance < 2.2 / np.sqrt(5000)


@pytest.mark.parametrize("t", TIMES)
def test_bayes_rule_by_quadrature(schedule, t):
    """p(z_t) and E[x | z_t] are integrals of q(z_t | x) p(x) over x."""
    z = np.linspace(-2, 2, 9, dtype=np.float32)
    signal, noise = float(schedule.signal(t)), float(schedule.noise(t))
    joint = scipy.stats.norm.pdf(z[:, None], signal * GRID, noise) * density(ON_THE_LINE, GRID)
    p = np.trapezoid(joint, GRID)
    np.testing.assert_allclose(ON_THE_LINE.diffused(schedule, t).log_prob(z), np.log(p), atol=2e-3, rtol=1e-4)
    x = np.trapezoid(GRID * joint, GRID) / p
    np.testing.assert_allclose(ON_THE_LINE.denoiser(schedule).predict(z, t), x, atol=1e-3)
    np.testing.assert_allclose(jax.vmap(Mixture.moments)(ON_THE_LINE.reverse(schedule, z, t, 0)).mean, x, atol=1e-3)


@pytest.mark.parametrize(("t", "earlier"), [(2, None), (30, None), (30, 10), (50, 1), (50, 0)])
def test_the_reverse_step_is_bayes_rule(schedule, t, earlier):
    """q(z_s | z_t) p(z_t) = q(z_t | z_s) p(z_s)."""
    s = t - 1 if earlier is None else earlier
    z_s = ON_THE_LINE.diffused(schedule, s).sample(jax.random.key(2), 16)
    eps = jax.random.normal(jax.random.key(3), z_s.shape)
    ratio = float(schedule.signal(t) / schedule.signal(s))
    std = np.sqrt(float(schedule.step(t, s).forward_var))
    z_t = ratio * z_s + std * eps
    reverse = ON_THE_LINE.reverse(schedule, z_t, t, earlier)
    left = jax.vmap(lambda q, y: q.log_prob(y[None])[0])(reverse, z_s) + ON_THE_LINE.diffused(schedule, t).log_prob(z_t)
    right = scipy.stats.norm.logpdf(z_t, ratio * z_s, std) + ON_THE_LINE.diffused(schedule, s).log_prob(z_s)
    np.testing.assert_allclose(left, right, atol=5e-3)


def test_one_denoiser_for_all_shapes(schedule):
    """Numbers, [batch], and vectors of one element, [batch, 1], are the same; real t lies between its neighbours."""
    z = jnp.linspace(-1, 1, 5)
    column = Mixture(ON_THE_LINE.weights, ON_THE_LINE.means[:, None], ON_THE_LINE.stds)
    t = jnp.array([1, 10, 20, 30, 50])
    expected = ON_THE_LINE.denoiser(schedule).predict(z, t)
    np.testing.assert_allclose(column.denoiser(schedule).predict(z[:, None], t)[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(ON_THE_LINE.denoiser(schedule).predict(z, t.astype(jnp.float32)), expected, rtol=1e-5)


@pytest.mark.parametrize(("distance", "count"), [(1.9, 1), (2.1, 2), (4.0, 2)])
def test_two_equal_normals_have_two_modes_when_they_are_two_stds_apart(distance, count):
    starts = np.linspace(-3, 3, 13, dtype=np.float32)
    assert len(Mixture.of([0.5, 0.5], [-distance / 2, distance / 2], 1.0).modes(starts)) == count


def test_a_mean_shift_is_a_step_up_the_score_that_never_lowers_the_density():
    y = 1.5 * jax.random.normal(jax.random.key(4), (40, 2))
    shifted = _shifted(IN_THE_PLANE, y)
    slope = jax.vmap(jax.grad(lambda point: IN_THE_PLANE.log_prob(point[None])[0]))(y)
    precision = np.asarray(IN_THE_PLANE.responsibilities(y)) @ np.asarray(IN_THE_PLANE.stds) ** -2
    np.testing.assert_allclose(shifted - y, slope / precision[:, None], rtol=1e-3, atol=1e-4)
    assert np.all(IN_THE_PLANE.log_prob(shifted) >= IN_THE_PLANE.log_prob(y) - 1e-4)


@pytest.mark.parametrize("start", [0.3, -0.3])
def test_an_ascent_from_the_valley_ends_on_its_side(start):
    """Newton's method alone ends at the saddle between the two."""
    modes = Mixture.of([0.5, 0.5], [-2.0, 2.0], 1.0).modes(np.array([start], np.float32))
    np.testing.assert_allclose(modes, [2 * np.sign(start)], atol=0.02)


def test_saddles_are_no_modes():
    """Between two normals in the plane lies a saddle, where an ascent from the line between them ends."""
    starts = np.stack([np.linspace(-3, 3, 7), np.zeros(7)], 1).astype(np.float32)
    modes = Mixture.of([0.5, 0.5], [[0.0, -2.0], [0.0, 2.0]], 1.0).modes(starts)
    assert len(modes) == 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (([0.5, 0.6], [0.0, 1.0], 1.0), "weights"),
        (([1.5, -0.5], [0.0, 1.0], 1.0), "weights"),
        (([0.5, 0.5], [0.0, 1.0, 2.0], 1.0), "means"),
        (([0.5, 0.5], [0.0, np.nan], 1.0), "means"),
        (([0.5, 0.5], [0.0, 1.0], [1.0, -1.0]), "stds"),
        (([0.5, 0.5], [0.0, 1.0], [1.0, 1.0, 1.0]), "stds"),
    ],
)
def test_what_is_no_mixture(parts, message):
    with pytest.raises(ValueError, match=message):
        Mixture.of(*parts)
