"""Steering, filling in, mixing and clipping, for normal data, where all of it has a closed form."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.arrays import lookup
from ddpm_jax.diffusion.clipping import Clip, DynamicThreshold, NoClipping
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.forward import noise_between
from ddpm_jax.diffusion.grids import Karras
from ddpm_jax.diffusion.guidance import guided, steered
from ddpm_jax.diffusion.schedule import Chain, Cosine
from ddpm_jax.diffusion.targets import Eps, Mean, Score, Target, V, X
from ddpm_jax.diffusion.variance import FixedLarge, FixedSmall, LearnedRange, Variance
from ddpm_jax.sampling import Ancestral, Ddim, DpmSolver, Heun, inpaint, interpolate, sample
from ddpm_jax.sampling.inpaint import repaint_times

TARGETS = (Eps(), X(), V(), Mean(), Score())


def normal_x(schedule: Chain, mean, var, z_t, t):
    """E[x | z_t] for x ~ N(mean, var), each element of z_t for itself."""
    signal = lookup(schedule.signal, t, z_t)
    gain = signal * var / (lookup(schedule.alpha_bar, t, z_t) * var + lookup(schedule.noise_var, t, z_t))
    return mean + gain * (z_t - signal * mean)


def answer(target: Target, schedule: Chain, mean, var, z_t, t):
    """What a perfect network with this target says, for x ~ N(mean, var)."""
    x = normal_x(schedule, mean, var, z_t, t)
    return jnp.asarray(target.encode(schedule, x, noise_between(schedule, z_t, x, t), t))


@pytest.fixture(scope="module")
def schedule():
    return Cosine(num_steps=200).build()


@pytest.fixture(scope="module")
def points():
    """Some z_t and t."""
    z = jax.random.normal(jax.random.key(1), (12, 3))
    return z, jnp.arange(1, 200, 17, dtype=jnp.int32)


# Classifier-free guidance.

LABEL, NULL = (0.8, 0.04), (0.1, 0.5)  # (mean, variance) of the data with the label, and of all data


def two(target: Target, schedule: Chain):
    """The network with its label and with the null label."""
    networks = (jax.tree_util.Partial(partial(answer, target), schedule, *moments) for moments in (LABEL, NULL))
    return tuple(Denoiser(network, schedule, target) for network in networks)


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_guidance_mixes_scores_whatever_the_target(schedule, points, target):
    """score = null + scale (conditional - null): 1 is the conditional network, 0 the other; x is the same for all."""
    z, t = points

    @jax.jit
    def x_of(scale):
        output = guided(*two(target, schedule), scale).predict(z, t)
        return target.decode(schedule, output, z, t).x

    conditional, null = (normal_x(schedule, *moments, z, t) for moments in (LABEL, NULL))
    # The score of q(z_t) is -eps / noise_t, so mixing it mixes eps, and x with it.
    for scale in (1.0, 0.0, 3.0):
        expected = null + scale * (conditional - null)
        np.testing.assert_allclose(x_of(scale), expected, rtol=2e-3 if target == Mean() else 1e-4, atol=2e-4)


def test_guided_samples_follow_the_product_of_the_densities(schedule):
    """At scale w each z_t has the score of p(z | label)^w p(z)^(1 - w): for equal variances a shift of the mean."""
    label, null, var, scale = 0.4, -0.1, 0.25, 3.0
    networks = (jax.tree_util.Partial(normal_x, schedule, mean, var) for mean in (label, null))
    models = (Denoiser(network, schedule, target=X()) for network in networks)
    x = sample(jax.random.key(0), guided(*models, scale), Ancestral(), (20, 400))
    assert abs(float(x.mean()) - (null + scale * (label - null))) < 4 * np.sqrt(var / 8000) + 5e-3
    assert abs(float(x.var()) - var) < 4 * var * np.sqrt(2 / 8000) + 5e-3


def test_outside_its_interval_guidance_is_off_and_the_null_network_rests(schedule):
    evaluated = []

    def null(z_t, t):
        jax.debug.callback(lambda t: evaluated.append(int(t[0])), t)
        return jnp.zeros_like(z_t)

    def conditional(z_t, t):
        return jnp.ones_like(z_t)

    models = (Denoiser(network, schedule, clip=Clip()) for network in (conditional, null))
    mixture = guided(*models, 3.0, interval=(50, 100))
    network = jax.jit(mixture.predict)
    z, asked = jnp.zeros((2, 3)), (1, 49, 50, 75, 100, 101, 200)
    outputs = [float(network(z, jnp.full(2, t))[0, 0]) for t in asked]
    jax.effects_barrier()
    assert evaluated == [50, 75, 100]
    assert outputs == [1, 1, 3, 3, 3, 1, 1]
    # In a batch with both, each example for itself.
    mixed = network(z, jnp.array([20, 60]))
    np.testing.assert_array_equal(mixed[:, 0], [1.0, 3.0])
    sampler = Ddim(num_steps=20)
    evaluated.clear()
    jax.block_until_ready(sample(jax.random.key(0), mixture, sampler, (2, 3)))
    jax.effects_barrier()
    assert evaluated == [t for t in sampler.times(schedule) if 50 <= t <= 100]


def test_a_learned_variance_stays_that_of_the_conditional_network(schedule, points):
    z, t = points

    def network(value, z_t, t):
        return jnp.concatenate([jnp.full_like(z_t, value), jnp.full_like(z_t, 10 * value)], axis=-1)

    models = [Denoiser(partial(network, value), schedule, variance=LearnedRange()) for value in (0.5, 0.2)]
    output = guided(*models, 2.0).predict(z, t)
    np.testing.assert_allclose(output[:, :3], 0.8, atol=1e-6)
    np.testing.assert_allclose(output[:, 3:], 5.0)
    each = guided(*models, jnp.arange(len(z), dtype=jnp.float32)).predict(z, t)  # a scale for each example
    np.testing.assert_allclose(each[:, :3], np.repeat(0.2 + 0.3 * np.arange(len(z)), 3).reshape(-1, 3), rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 2, 4, 3), (2, 8, 6, 1), (2, 5), (2, 3, 4)], ids=str)
def test_a_learned_variance_is_the_second_half_of_the_last_axis(schedule, shape):
    """Whatever the height, the width and the channels are."""
    rng = np.random.default_rng(0)
    conditional, null = (rng.normal(size=(*shape[:-1], 2 * shape[-1])).astype(np.float32) for _ in range(2))
    networks = (lambda z, t: jnp.asarray(conditional), lambda z, t: jnp.asarray(null))
    models = (Denoiser(network, schedule, variance=LearnedRange()) for network in networks)
    output = guided(*models, 3.0).predict(jnp.zeros(shape), 5)
    mean, variance = np.split(conditional, 2, -1)
    expected = null[..., : shape[-1]] + 3 * (mean - null[..., : shape[-1]])
    np.testing.assert_allclose(output, np.concatenate([expected, variance], -1), rtol=1e-4, atol=1e-5)


def test_guidance_needs_a_null_network(schedule):
    with pytest.raises(ValueError, match=r"null_model is None; .*label_dropout > 0"):
        guided(Denoiser(lambda z, t: z, schedule), None, 2.0)


def test_guidance_needs_one_process(schedule):
    model, other = (Denoiser(lambda z, t: z, process) for process in (schedule, Cosine(num_steps=7).build()))
    with pytest.raises(ValueError, match=r"null_model.process .* expected the process of model"):
        guided(model, other, 2.0)
    same = Denoiser(lambda z, t: z, jax.tree.map(jnp.array, schedule))
    guided(model, same, 2.0)


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_the_two_networks_may_have_other_targets(schedule, points, target):
    z, t = points
    conditional, _ = two(Eps(), schedule)
    _, null = two(target, schedule)
    expected = guided(*two(Eps(), schedule), 2.0).denoise(z, t).x
    got = guided(conditional, null, 2.0).denoise(z, t).x
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=5e-4)


def test_unclipped_outputs_are_mixed_and_the_result_is_clipped_as_the_first(schedule):
    """x = 2 and 1.5, mixed to 2 + 3 (2 - 1.5) = 3.5 and clipped to 2.5; clipped before, they would be mixed to 1."""
    z, t = jnp.zeros((2, 3)), jnp.full(2, 90)
    models = [
        Denoiser(lambda z, t, value=value: jnp.full_like(z, value), schedule, X(), clip=Clip(-high, high))
        for value, high in ((2.0, 2.5), (1.5, 1.0))
    ]
    model = guided(*models, 4.0)
    np.testing.assert_allclose(model.denoise(z, t).x, 2.5)
    np.testing.assert_allclose(model.unclipped.denoise(z, t).x, 3.5)


@pytest.mark.parametrize("interval", [(5, 3), (-1, 3)])
def test_an_interval_has_a_first_and_a_last_timestep(schedule, interval):
    with pytest.raises(ValueError, match=r"interval is .*; expected \(first, last\), two timesteps"):
        guided(*[Denoiser(lambda z, t: z, schedule)] * 2, 2.0, interval=interval)


# Guidance by the gradient of a log likelihood.


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_steering_by_a_linear_function_is_exact_for_normal_data(schedule, points, target):
    """p(x) exp(c x) is N(m + c v, v), so the steered network is the perfect network of these data."""
    (mean, var), c, (z, t) = NULL, 0.6, points
    network = jax.tree_util.Partial(partial(answer, target), schedule, mean, var)
    steer = steered(Denoiser(network, schedule, target=target), lambda x: c * x.sum(-1)).predict
    got, expected = jax.jit(
        lambda: tuple(
            target.decode(schedule, output, z, t).x
            for output in (steer(z, t), answer(target, schedule, mean + c * var, var, z, t))
        )
    )()
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=5e-4)
    assert np.abs(np.asarray(got) - np.asarray(normal_x(schedule, mean, var, z, t))).max() > 0.2


def test_steered_samples_follow_the_posterior(schedule):
    (mean, var), c, count = NULL, 0.6, 8000
    network = jax.tree_util.Partial(partial(answer, Eps()), schedule, mean, var)
    steer = steered(Denoiser(network, schedule), lambda x: x.sum(-1), scale=c)
    x = np.asarray(sample(jax.random.key(0), steer, Ancestral(), (20, count // 20)), np.float64)
    assert abs(x.mean() - (mean + c * var)) < 4 * np.sqrt(var / count) + 5e-3
    assert abs(x.var() - var) < 4 * var * np.sqrt(2 / count) + 1e-2


def test_steering_leaves_a_learned_variance_alone(schedule, points):
    z, t = points

    def network(z_t, t):
        return jnp.concatenate([0.5 * z_t, jnp.full_like(z_t, 0.3)], axis=-1)

    options = {"target": X(), "variance": LearnedRange()}
    output = jax.jit(steered(Denoiser(network, schedule, **options), lambda x: x.sum(-1)).predict)(z, t)
    np.testing.assert_allclose(output[:, 3:], 0.3, atol=1e-6)
    assert np.all(output[:, :3] > 0.5 * z)


# Filling in.

CENTRE, COVARIANCE = np.array([0.2, -0.1]), np.array([[0.25, 0.2], [0.2, 0.25]])
KNOWN = 0.9  # the first coordinate


def correlated_x(schedule: Chain, z_t, t):
    """E[x | z_t] for x ~ N(CENTRE, COVARIANCE), z_t: [batch, 2], by the eigenvectors of the covariance."""
    values, vectors = np.linalg.eigh(COVARIANCE)
    return normal_x(schedule, CENTRE @ vectors, values, z_t @ vectors, t) @ vectors.T


def filled_in(spec: Cosine, jump: int, resamples: int, variance: Variance) -> tuple[float, float]:
    """The mean and variance of x_2 given x_1 = KNOWN that the walk ends with, from the equations of the papers.

    Both parts of z together are normal all the way: a step down is affine in z with fresh noise, and then puts
    the known part in its place; a step up scales z and adds noise.
    """
    alpha_bar = np.cumprod(np.r_[1.0, 1 - spec.betas()])
    walk = repaint_times(np.arange(spec.num_steps, -1, -1), jump, resamples)
    mean, cov = np.zeros(2), np.eye(2)
    for t, s in itertools.pairwise(walk):
        now, then = alpha_bar[t], alpha_bar[s]
        if s > t:
            mean, cov = np.sqrt(then / now) * mean, then / now * cov + (1 - then / now) * np.eye(2)
            continue
        step_var = 1 - now / then
        of_z, of_x = np.sqrt(now / then) * (1 - then) / (1 - now), np.sqrt(then) * step_var / (1 - now)
        gain = np.sqrt(now) * COVARIANCE @ np.linalg.inv(now * COVARIANCE + (1 - now) * np.eye(2))
        slope = of_z * np.eye(2) + of_x * gain
        added = step_var if variance == FixedLarge() else step_var * (1 - then) / (1 - now)
        unknown = (slope @ mean + of_x * (CENTRE - np.sqrt(now) * gain @ CENTRE))[1]
        unknown_var = (slope @ cov @ slope.T)[1, 1] + (added if s > 0 else 0)
        mean, cov = np.array([np.sqrt(then) * KNOWN, unknown]), np.diag([1 - then, unknown_var])
    return mean[1], cov[1, 1]


@pytest.mark.parametrize(
    ("jump", "resamples", "variance"),
    [
        pytest.param(1, 6, FixedLarge(), marks=pytest.mark.slow),
        pytest.param(5, 4, FixedSmall(), marks=pytest.mark.slow),
    ],
    ids=["steps", "jumps"],
)
def test_filling_in_has_the_moments_of_theory(key, jump, resamples, variance):
    spec = Cosine(num_steps=50)
    schedule, shape = spec.build(), (10, 400, 2)  # 400 points to an example: a key for each would cost time
    x = jnp.tile(jnp.array([KNOWN, 0.0]), (*shape[:2], 1))
    predict = jax.tree_util.Partial(correlated_x, schedule)
    model, mask = Denoiser(predict, schedule, X(), variance), np.array([True, False])
    got = inpaint(key, model, Ancestral(), x, mask, jump=jump, resamples=resamples)
    np.testing.assert_array_equal(got[..., 0], x[..., 0])
    drawn, (mean, var) = np.asarray(got[..., 1], np.float64), filled_in(spec, jump, resamples, variance)
    assert abs(drawn.mean() - mean) < 4 * np.sqrt(var / drawn.size)
    assert abs(drawn.var() - var) < 4 * var * np.sqrt(2 / drawn.size)


@pytest.mark.slow
def test_what_is_filled_in_fits_what_is_known_the_better_the_more_it_is_resampled():
    """The limit is x_2 given x_1, N(m_2 + c_12 / c_11 (x_1 - m_1), c_22 - c_12^2 / c_11); once is far from it."""
    slope = COVARIANCE[0, 1] / COVARIANCE[0, 0]
    mean, var = CENTRE[1] + slope * (KNOWN - CENTRE[0]), COVARIANCE[1, 1] - slope * COVARIANCE[0, 1]
    moments = [filled_in(Cosine(num_steps=200), 1, resamples, FixedLarge()) for resamples in (1, 4, 10, 30, 100)]
    errors = np.abs(np.array(moments) - [mean, var])
    print(f"mean {mean:.3f}, variance {var:.3f}, errors {errors.round(4).tolist()}")
    assert errors[0, 0] > 0.2
    assert errors[0, 1] > 0.03
    assert np.all(np.diff(errors, axis=0) < 0)
    assert errors[2].max() < 0.03
    assert errors[-1].max() < 0.005


def test_a_walk_repeats_each_stretch_and_ends_at_0():
    times = np.array([8, 6, 5, 3, 1, 0])
    np.testing.assert_array_equal(repaint_times(times, 2, 1), times)
    np.testing.assert_array_equal(repaint_times(times, 2, 2), [8, 6, 5, 6, 8, 6, 5, 3, 1, 3, 5, 3, 1, 0])
    down, up = [6, 5, 3, 1], [3, 5, 6, 8]
    np.testing.assert_array_equal(repaint_times(times, 10, 3), [8, *down, *up, *down, *up, *down, 0])


@pytest.mark.parametrize("jump", [1, 3, 10])
@pytest.mark.parametrize("resamples", [1, 2, 5])
def test_a_walk_takes_each_step_of_the_chain_as_often_as_asked(jump, resamples):
    times = Ddim(num_steps=50).times(Cosine(num_steps=200).build())
    walk = repaint_times(times, jump, resamples)
    place = {int(t): i for i, t in enumerate(times)}
    moves = np.diff([place[int(t)] for t in walk])
    assert (walk[0], walk[-1]) == (times[0], 0)
    assert set(np.abs(moves)) == {1}
    assert (walk == 0).sum() == 1
    down = np.array([int(walk[i]) for i in np.flatnonzero(moves > 0)])
    for t in times[:-2]:
        assert (down == t).sum() == resamples
    assert (down == times[-2]).sum() == 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((2, 3), np.float32), "mask has dtype float32; expected booleans, True where x is known"),
        (np.ones((5, 3), bool), r"mask has shape \(5, 3\); expected that of x, \(2, 3\)"),
        (np.ones((4, 2, 3), bool), r"mask has shape \(4, 2, 3\)"),
    ],
    ids=["floats", "other", "more"],
)
def test_a_mask_fits_x(schedule, key, unchecked, mask, message):
    with pytest.raises(ValueError, match=message):
        inpaint(key, Denoiser(lambda z, t: z, schedule, clip=Clip()), Ancestral(), jnp.zeros((2, 3)), mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": DpmSolver()}, r"sampler is DpmSolver\(.*; expected Ancestral, Ddim or Heun, which keep no memory"),
        ({"jump": 0}, "jump is 0; expected a whole number, at least 1"),
        ({"resamples": 0}, "resamples is 0; expected a whole number, at least 1"),
    ],
    ids=["sampler", "jump", "resamples"],
)
def test_filling_in_says_what_it_takes(schedule, key, change, message):
    arguments = {"sampler": Ancestral(), "x": jnp.zeros((2, 3)), "mask": np.array([True, False, True]), **change}
    with pytest.raises(ValueError, match=message):
        inpaint(key, Denoiser(lambda z, t: z, schedule), **arguments)


def tanh(z_t, t):
    """Some prediction of x."""
    return jnp.tanh(z_t)


@pytest.mark.parametrize("sampler", [Ancestral(num_steps=4), Heun(num_steps=4)], ids=lambda s: type(s).__name__)
def test_image_i_is_filled_in_the_same_way_in_any_batch(schedule, key, sampler):
    x = jax.random.uniform(jax.random.key(1), (3, 4, 4, 1), minval=-1)
    mask = np.zeros((4, 4, 1), bool)
    mask[:2] = True
    fill = partial(inpaint, key, Denoiser(tanh, schedule, X(), clip=Clip()), sampler, mask=mask, jump=2, resamples=2)
    got = fill(x=x)
    np.testing.assert_array_equal(got[:, :2], x[:, :2])
    assert np.abs(got[:, 2:] - x[:, 2:]).min() > 0
    np.testing.assert_allclose(fill(x=jnp.roll(x, -1, 0), first_index=1)[:2], got[1:], atol=1e-5)


# Between two images.


def between(schedule: Chain, t: int, weights, **options):
    """Interpolations between -0.6 and 0.7 over a network that has no opinion: x is z_t / signal_t."""
    x_a, x_b = np.full((20, 400), -0.6, np.float32), np.full((20, 400), 0.7, np.float32)

    def predict(z_t, t):
        return jnp.zeros_like(z_t)

    model, sampler = Denoiser(predict, schedule), Ddim(num_steps=1)
    return interpolate(jax.random.key(0), model, sampler, x_a, x_b, t, np.array(weights), **options)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "independent"])
def test_the_latent_between_two_images_has_the_noise_of_its_time(schedule, shared):
    """x sampled back by a network that predicts no noise is z_t / signal_t: the mixture of x, and noise / signal."""
    t, weights = 120, [0.0, 0.3, 0.5, 1.0]
    x = np.asarray(between(schedule, t, weights, shared_noise=shared), np.float64)
    assert x.shape == (4, 20, 400)
    std = float(schedule.noise(t) / schedule.signal(t))
    for w, drawn in zip(weights, x, strict=True):
        assert abs(drawn.mean() - (-0.6 * (1 - w) + 0.7 * w)) < 4 * std / np.sqrt(8000)
        assert abs(drawn.std() / std - 1) < 4 / np.sqrt(2 * 8000)
    noise = [(drawn - (-0.6 * (1 - w) + 0.7 * w)) / std for w, drawn in zip(weights, x, strict=True)]
    correlation = np.mean(noise[0] * noise[-1])
    if shared:
        np.testing.assert_allclose(noise[0], noise[-1], atol=1e-4)
    else:
        assert abs(correlation) < 4 / np.sqrt(8000)
        assert abs(np.mean(noise[0] * noise[2]) - np.sqrt(0.5)) < 0.05


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "independent"])
def test_the_ends_of_an_interpolation_are_the_images(schedule, key, shared):
    """At a small t, with the exact denoiser of data that are spread widely: nothing is left to choose."""
    x_a, x_b = jax.random.uniform(jax.random.key(1), (2, 5, 3), minval=-1)
    predict = jax.tree_util.Partial(normal_x, schedule, 0.0, 1.0)
    ends = interpolate(
        key,
        Denoiser(predict, schedule, target=X(), clip=Clip()),
        Ddim(),
        x_a,
        x_b,
        1,
        np.array([0.0, 1.0]),
        shared_noise=shared,
    )
    np.testing.assert_allclose(ends, [x_a, x_b], atol=5 * float(schedule.noise(1)))
    far = interpolate(
        key,
        Denoiser(predict, schedule, target=X(), clip=Clip()),
        Ddim(),
        x_a,
        x_b,
        199,
        np.array([0.0, 1.0]),
        shared_noise=shared,
    )
    assert np.abs(far - np.stack([x_a, x_b])).max() > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": 0}, r"t is 0; expected one whole t in 1\.\.200"),
        ({"t": 201}, r"t is 201; expected one whole t in 1\.\.200"),
        ({"x_b": jnp.zeros((2, 4))}, r"x_b has shape \(2, 4\); expected that of x_a, \(2, 3\)"),
        ({"weights": np.array([0.0, 1.1])}, "weights is .*; expected a list of numbers from 0 to 1"),
        ({"weights": np.array([])}, "weights is .*; expected a list"),
        ({"weights": np.array([0.5, np.nan])}, "weights is .*; expected a list"),
    ],
    ids=["early", "late", "shape", "beyond", "none", "nan"],
)
def test_an_interpolation_says_what_it_takes(schedule, key, unchecked, change, message):
    arguments = {"x_a": jnp.zeros((2, 3)), "x_b": jnp.ones((2, 3)), "t": 10, "weights": np.array([0.5]), **change}
    with pytest.raises(ValueError, match=message):
        interpolate(key, Denoiser(lambda z, t: z, schedule), Ddim(), **arguments)


# Clipping.


@pytest.fixture(scope="module")
def wide():
    """Examples of which some reach far beyond [-1, 1], and one does not."""
    return np.asarray(jax.random.normal(jax.random.key(0), (6, 5, 5, 3))) * np.array(
        [0.1, 1, 1, 2, 5, 20], np.float32
    ).reshape(-1, 1, 1, 1)


def test_clipping_cuts_each_element(wide):
    np.testing.assert_array_equal(Clip()(wide), np.clip(wide, -1, 1))
    np.testing.assert_array_equal(Clip(0.0, 2.5)(wide), np.clip(wide, 0.0, 2.5))
    np.testing.assert_array_equal(NoClipping()(wide), wide)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
def test_the_dynamic_threshold_is_a_quantile_of_each_example(wide, quantile):
    threshold = np.maximum(np.quantile(np.abs(wide.reshape(6, -1)), quantile, axis=1), 1).reshape(-1, 1, 1, 1)
    got = jax.jit(DynamicThreshold(quantile))(wide)
    np.testing.assert_allclose(got, np.clip(wide, -threshold, threshold) / threshold, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[0], wide[0])  # within [-1, 1] it is left as it is
    assert np.abs(got).max() <= 1 + 1e-6


def test_nothing_is_clipped_unless_asked(schedule, key):
    model = Denoiser(lambda z, t: jnp.full_like(z, 3.0), schedule, target=X())
    assert model.clip == NoClipping()
    np.testing.assert_allclose(sample(key, model, Ddim(num_steps=5), (2, 3)), 3.0, rtol=1e-5)


@pytest.mark.parametrize("clip", [Clip(), Clip(-0.5, 0.5), DynamicThreshold(0.9)], ids=repr)
def test_samplers_clip_as_they_are_told(schedule, key, clip):
    """The last step returns the x predicted last, clipped."""
    sampler = Ddim(num_steps=5, grid=Karras())
    x = sample(key, Denoiser(lambda z, t: 3 * jnp.tanh(9 * z), schedule, target=X(), clip=clip), sampler, (8, 6))
    assert abs(np.abs(x).max() - (0.5 if clip == Clip(-0.5, 0.5) else 1.0)) < 1e-5


@pytest.mark.parametrize(
    ("clipping", "fields", "message"),
    [
        (Clip, {"low": 1.0, "high": 1.0}, "high is 1.0; expected more than low, which is 1.0"),
        (DynamicThreshold, {"quantile": 0.0}, "quantile is 0.0; expected more than 0, at most 1"),
        (DynamicThreshold, {"quantile": 1.2}, "quantile is 1.2"),
        (DynamicThreshold, {"quantile": float("nan")}, "quantile is nan"),
    ],
    ids=["low", "none", "more", "nan"],
)
def test_clipping_says_what_it_takes(clipping, fields, message):
    with pytest.raises(ValueError, match=message):
        clipping(**fields)
