"""The samplers, against what theory says of Gaussian data, whose exact denoiser is affine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ddpm_jax.forward import noise_between, posterior
from ddpm_jax.sampling import Ancestral, Ddim, Sampler, sample, uniform_times
from ddpm_jax.schedule import Cosine, Linear, NoiseSchedule, ScheduleSpec
from ddpm_jax.targets import Prediction, X
from ddpm_jax.variance import FixedLarge, FixedSmall

MEAN, VAR = 0.7, 0.25  # the data: x ~ N(MEAN, VAR)
SMALL, LARGE = Ancestral(), Ancestral(variance=FixedLarge())
EVERY_STEP = (SMALL, LARGE, Ddim(num_steps=None), Ddim(num_steps=None, eta=1.0))


def gaussian_x(schedule: NoiseSchedule, z_t, t):
    """E[x | z_t] for x ~ N(MEAN, VAR), z_t of shape [batch]."""
    signal = schedule.signal[t]
    gain = signal * VAR / (schedule.alpha_bar[t] * VAR + schedule.noise_var[t])
    return MEAN + gain * (z_t - signal * MEAN)


def grid(sampler: Sampler, schedule: NoiseSchedule) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (t, s) of the sampler's steps."""
    times = sampler.times(schedule.num_steps)
    return times[:-1], times[1:]


def all_steps(sampler: Sampler, schedule: NoiseSchedule, z: float, noise: float) -> np.ndarray:
    """Every step of the sampler at once, each from z with this noise, with the exact denoiser: one number for each."""

    def run(schedule, t, earlier, z, noise):
        def denoise(z_t, t):
            x = gaussian_x(schedule, z_t, t)
            return Prediction(x, noise_between(schedule, z_t, x, t))

        return sampler.step(denoise, schedule, z, t, earlier, noise, sampler.start(z))[0]

    t, earlier = grid(sampler, schedule)
    fill = [np.full(t.shape, value, np.float32) for value in (z, noise)]
    return np.asarray(jax.jit(run)(schedule, t, earlier, *fill), np.float64)


def affine_steps(sampler: Sampler, schedule: NoiseSchedule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(offset, slope, std) of each step, z_s = offset + slope z_t + std noise."""
    offset = all_steps(sampler, schedule, 0.0, 0.0)
    return offset, all_steps(sampler, schedule, 1.0, 0.0) - offset, all_steps(sampler, schedule, 0.0, 1.0) - offset


def moments(sampler: Sampler, schedule: NoiseSchedule) -> tuple[float, float]:
    """The mean and variance of the samples."""
    mean, var = 0.0, 1.0
    for offset, slope, std in zip(*affine_steps(sampler, schedule), strict=True):
        mean, var = offset + slope * mean, slope**2 * var + std**2
    return mean, var


def theory(spec: ScheduleSpec, sampler: Sampler) -> tuple[float, float]:
    """The same in float64, from the equations of the papers, for a chain with every step."""
    alpha_bar = np.cumprod(np.r_[1.0, 1 - spec.betas()])
    mean, var = 0.0, 1.0
    for t in range(spec.num_steps, 0, -1):
        beta, now, before = 1 - alpha_bar[t] / alpha_bar[t - 1], alpha_bar[t], alpha_bar[t - 1]
        gain = np.sqrt(now) * VAR / (now * VAR + 1 - now)
        x_offset = MEAN * (1 - gain * np.sqrt(now))
        small = beta * (1 - before) / (1 - now)
        if isinstance(sampler, Ddim):
            added = sampler.eta**2 * small
            of_z = np.sqrt((1 - before - added) / (1 - now))
            of_x = np.sqrt(before) - of_z * np.sqrt(now)
        else:
            added = (beta if sampler.variance == FixedLarge() else small) if t > 1 else 0.0
            of_z, of_x = np.sqrt(1 - beta) * (1 - before) / (1 - now), np.sqrt(before) * beta / (1 - now)
        slope = of_z + of_x * gain
        mean, var = of_x * x_offset + slope * mean, slope**2 * var + added
    return mean, var


@pytest.mark.parametrize(
    ("spec", "sampler", "table"),
    [
        (Linear(), SMALL, (0.7000, 0.2461)),
        (Linear(), LARGE, (0.7000, 0.2508)),
        (Linear(), Ddim(num_steps=None), (0.6978, 0.2485)),
        (Cosine(), SMALL, (0.7000, 0.2480)),
        (Cosine(), LARGE, (0.7000, 0.2504)),
        (Cosine(), Ddim(num_steps=None), (0.7000, 0.2492)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_samples_of_gaussian_data_have_the_moments_of_theory(spec, sampler, table):
    """The table is what `theory` gives to 4 digits, so that a reader sees how far each sampler is from 0.7, 0.25."""
    np.testing.assert_allclose(theory(spec, sampler), table, atol=5.1e-5)
    np.testing.assert_allclose(moments(sampler, spec.build()), theory(spec, sampler), atol=5e-5)


@pytest.mark.parametrize("spec", [Linear(), Cosine()], ids=lambda spec: type(spec).__name__)
def test_ddim_with_eta_1_is_ancestral_sampling_with_the_small_variance(spec):
    schedule = spec.build()
    for num_steps in (None, 30):
        ancestral, ddim = Ancestral(num_steps), Ddim(num_steps, eta=1.0)
        for z, noise in ((0.3, 0.0), (-1.2, 1.0)):
            got, expected = (all_steps(sampler, schedule, z, noise) for sampler in (ddim, ancestral))
            np.testing.assert_allclose(got, expected, atol=2e-5)


def test_ddim_converges_to_the_probability_flow_with_first_order():
    """The flow carries quantiles: z_0 = MEAN + sqrt(VAR / var(z_T)) (z_T - signal_T MEAN)."""
    schedule = Linear(num_steps=1000).build()
    signal, alpha_bar = float(schedule.signal[-1]), float(schedule.alpha_bar[-1])
    exact = np.sqrt(VAR / (alpha_bar * VAR + 1 - alpha_bar))
    errors = []
    for num_steps in (25, 50, 100, 200):
        offset, slope, _ = affine_steps(Ddim(num_steps), schedule)
        z = signal * MEAN + 1.0
        for i in range(num_steps):
            z = offset[i] + slope[i] * z
        errors.append(abs(z - (MEAN + exact)))
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    np.testing.assert_allclose(ratios, 2.0, atol=0.25)


@pytest.mark.parametrize("sampler", EVERY_STEP, ids=repr)
def test_the_last_step_adds_no_noise(sampler):
    schedule = Cosine(num_steps=50).build()
    *before, last = all_steps(sampler, schedule, 0.5, 1.0) - all_steps(sampler, schedule, 0.5, 0.0)
    assert last == 0
    assert np.all(np.array(before) > 0) or not sampler.stochastic


def test_only_deterministic_samplers_ignore_their_noise():
    assert [sampler.stochastic for sampler in (*EVERY_STEP, Ddim(eta=0.1))] == [True, True, False, True, True]


def test_an_ancestral_step_is_the_posterior_of_the_predicted_data():
    schedule = Cosine(num_steps=50).build()
    t, earlier = grid(SMALL, schedule)
    z = jnp.asarray(np.full(50, 0.4, np.float32))
    normal = jax.jit(posterior)(schedule, z, jax.jit(gaussian_x)(schedule, z, t), t, earlier)
    np.testing.assert_allclose(all_steps(SMALL, schedule, 0.4, 0.0), normal.mean, atol=1e-6)
    np.testing.assert_allclose(all_steps(SMALL, schedule, 0.4, 1.0), normal.mean + normal.std, atol=1e-6)


# A mixture of two normals on the line.
WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), np.array([0.1, 0.15])


def mixture_x(schedule: NoiseSchedule):
    """predict(z_t, t) = E[x | z_t] for data from the mixture, z_t of shape [batch]."""

    def predict(z_t, t):
        signal = schedule.signal[t][:, None]
        var = signal**2 * STDS**2 + schedule.noise_var[t][:, None]
        residual = z_t[:, None] - signal * MEANS
        logits = jnp.log(WEIGHTS) - 0.5 * residual**2 / var - 0.5 * jnp.log(var)
        means = MEANS + signal * STDS**2 / var * residual
        return (jax.nn.softmax(logits, axis=1) * means).sum(1)

    return predict


def mixture_cdf(x):
    return (WEIGHTS * scipy.stats.norm.cdf(np.asarray(x)[:, None], MEANS, STDS)).sum(1)


@pytest.mark.parametrize("sampler", [SMALL, LARGE, Ddim(num_steps=None)], ids=["small", "large", "ddim"])
def test_samples_of_a_mixture_are_distributed_as_the_mixture(sampler):
    schedule = Cosine(num_steps=1000).build()
    x = sample(jax.random.key(0), mixture_x(schedule), schedule, sampler, (4000,), target=X(), clip=False)
    assert scipy.stats.kstest(np.asarray(x, np.float64), mixture_cdf).pvalue > 1e-3


SHAPE = (3, 3, 1)


def shrink(z_t, t):
    """Some prediction of the noise, different at each t."""
    return z_t * jnp.cos(0.1 * t)[:, None, None, None]


@pytest.fixture(scope="module")
def schedule():
    return Linear(num_steps=20).build()


@pytest.fixture(scope="module", params=[SMALL, Ddim(num_steps=5)], ids=["ancestral", "ddim"])
def many(request, schedule):
    """A sampler and 32 of its images."""
    return request.param, np.asarray(sample(jax.random.key(0), shrink, schedule, request.param, (32, *SHAPE)))


def test_image_i_is_the_same_in_any_batch(schedule, many, key):
    sampler, images = many
    assert images.dtype == np.float32
    assert images.std(0).min() > 0
    np.testing.assert_allclose(sample(key, shrink, schedule, sampler, (8, *SHAPE)), images[:8], atol=1e-6)
    last = sample(key, shrink, schedule, sampler, (8, *SHAPE), first_index=24)
    np.testing.assert_allclose(last, images[24:], atol=1e-6)
    other = sample(jax.random.key(1), shrink, schedule, sampler, (8, *SHAPE))
    assert np.all(np.abs(other - images[:8]).max((1, 2, 3)) > 0.01)


@pytest.mark.parametrize("sampler", [LARGE, Ddim(num_steps=5, eta=1.0)], ids=repr)
def test_clipped_samples_are_images_whatever_the_network_says(schedule, sampler, key):
    x = np.asarray(sample(key, lambda z_t, t: 50 * z_t, schedule, sampler, (8, *SHAPE)))
    assert np.abs(x).max() <= 1 + 1e-6
    assert np.abs(x).max() > 0.9


def test_a_network_is_traced_once_for_each_shape(schedule, key):
    traced = []

    def predict(z_t, t):
        assert z_t.dtype == jnp.float32
        assert t.shape == z_t.shape[:1]
        traced.append(z_t.shape)
        return jnp.zeros_like(z_t)

    for first_index in (0, 4):
        sample(key, predict, schedule, Ddim(num_steps=2), (4, 2), first_index=first_index)
    assert set(traced) == {(4, 2)}
    before = len(traced)
    sample(key, predict, schedule, Ddim(num_steps=2), (4, 2))
    assert len(traced) == before


@pytest.mark.parametrize(("num_steps", "count"), [(1000, None), (1000, 50), (1000, 333), (7, 5), (4, 4), (9, 1)])
def test_times_fall_from_T_to_0_in_even_steps(num_steps, count):
    times = uniform_times(num_steps, count)
    steps = -np.diff(times)
    assert (times[0], times[-1]) == (num_steps, 0)
    assert len(steps) == (count or num_steps)
    assert steps.min() >= 1
    assert steps.max() - steps.min() <= 1


@pytest.mark.parametrize("sampler", [Ancestral(num_steps=21), Ddim(num_steps=50), Ddim(num_steps=0)], ids=repr)
def test_more_steps_than_the_chain_has_are_an_error(schedule, sampler, key):
    with pytest.raises(ValueError, match=rf"num_steps is {sampler.num_steps}.* 1 to 20"):
        sample(key, shrink, schedule, sampler, (2, *SHAPE))


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_eta_is_a_share(eta):
    with pytest.raises(ValueError, match=f"eta is {eta}"):
        Ddim(eta=eta)


@pytest.mark.parametrize("shape", [(), (0, 4), (2, -1)])
def test_a_shape_is_a_batch_of_something(schedule, shape, key):
    with pytest.raises(ValueError, match="shape is"):
        sample(key, shrink, schedule, SMALL, shape)


def test_an_output_of_another_shape_is_an_error(schedule, key):
    with pytest.raises(ValueError, match=r"returned shape \(2, 1\) for .* shape \(2, 4\)"):
        sample(key, lambda z_t, t: z_t[:, :1], schedule, SMALL, (2, 4))


def test_small_is_below_large():
    schedule = Linear(num_steps=20).build()
    z, (t, s) = np.zeros(20, np.float32), grid(SMALL, schedule)
    small, large = (np.asarray(variance(schedule, t, s, z)) for variance in (FixedSmall(), FixedLarge()))
    assert np.all(small[:-1] < large[:-1])
    assert small[-1] == 0
