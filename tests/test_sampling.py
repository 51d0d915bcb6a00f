"""The samplers, against what theory says of Gaussian data, whose exact denoiser is affine, and the loop around them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.arrays import lookup
from ddpm_jax.diffusion.clipping import Clip
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.forward import diffuse, posterior
from ddpm_jax.diffusion.schedule import Chain, Cosine, Linear, Schedule
from ddpm_jax.diffusion.targets import Prediction, X
from ddpm_jax.diffusion.variance import FixedLarge, FixedSmall, LearnedRange, Variance
from ddpm_jax.sampling import Ancestral, Ddim, DpmSolver, Heun, Sampler, StepInput, sample, sample_path

MEAN, VAR = 0.7, 0.25  # the data: x ~ N(MEAN, VAR)
SMALL, LARGE = FixedSmall(), FixedLarge()
# A sampler with the variance of its decoder.
EVERY_STEP = (
    (Ancestral(), SMALL),
    (Ancestral(), LARGE),
    (Ddim(num_steps=None), SMALL),
    (Ddim(num_steps=None, eta=1.0), SMALL),
)


def gaussian_x(schedule: Chain, z_t, t):
    """E[x | z_t] for x ~ N(MEAN, VAR), each element of z_t for itself."""
    signal = lookup(schedule.signal, t, z_t)
    gain = signal * VAR / (lookup(schedule.alpha_bar, t, z_t) * VAR + lookup(schedule.noise_var, t, z_t))
    return MEAN + gain * (z_t - signal * MEAN)


def exact(schedule: Chain):
    """predict(z_t, t) = E[x | z_t]; a pytree, so that what was compiled for one schedule serves another."""
    return jax.tree_util.Partial(gaussian_x, schedule)


def grid(sampler: Sampler, schedule: Chain) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (t, s) of the sampler's steps."""
    times = sampler.times(schedule)
    return times[:-1], times[1:]


def laters(t: np.ndarray) -> np.ndarray:
    """The time before each t of a chain."""
    return np.append(t[0], t[:-1])


@partial(jax.jit, static_argnames=("sampler", "variance"))
def step_at(sampler: Sampler, variance: Variance, schedule: Chain, t, earlier, z, noise):
    """One step from each z, with the exact denoiser and without a memory of steps before."""
    decoder = Denoiser(exact(schedule), schedule, X(), variance)
    return sampler.step(
        decoder, StepInput(z, schedule.step(t, earlier), decoder.denoise(z, t), noise), sampler.start(z)
    )[0]


def all_steps(sampler: Sampler, schedule: Chain, z: float, noise: float, variance: Variance = SMALL) -> np.ndarray:
    """Every step of the sampler at once, each from z with this noise, with the exact denoiser: one number for each."""
    t, earlier = grid(sampler, schedule)
    fill = [np.full(t.shape, value, np.float32) for value in (z, noise)]
    return np.asarray(step_at(sampler, variance, schedule, t, earlier, *fill), np.float64)


def affine_steps(
    sampler: Sampler, schedule: Chain, variance: Variance = SMALL
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(offset, slope, std) of each step, z_s = offset + slope z_t + std noise."""
    steps = partial(all_steps, sampler, schedule, variance=variance)
    offset = steps(0.0, 0.0)
    return offset, steps(1.0, 0.0) - offset, steps(0.0, 1.0) - offset


def moments(sampler: Sampler, schedule: Chain, variance: Variance = SMALL) -> tuple[float, float]:
    """The mean and variance of the samples."""
    mean, var = 0.0, 1.0
    for offset, slope, std in zip(*affine_steps(sampler, schedule, variance), strict=True):
        mean, var = offset + slope * mean, slope**2 * var + std**2
    return mean, var


def theory(spec: Schedule, sampler: Sampler, variance: Variance) -> tuple[float, float]:
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
            added = (beta if variance == LARGE else small) if t > 1 else 0.0
            of_z, of_x = np.sqrt(1 - beta) * (1 - before) / (1 - now), np.sqrt(before) * beta / (1 - now)
        slope = of_z + of_x * gain
        mean, var = of_x * x_offset + slope * mean, slope**2 * var + added
    return mean, var


@pytest.mark.parametrize(
    ("spec", "sampler", "variance", "table"),
    [
        (Linear(), Ancestral(), SMALL, (0.7000, 0.2461)),
        (Linear(), Ancestral(), LARGE, (0.7000, 0.2508)),
        (Linear(), Ddim(num_steps=None), SMALL, (0.6978, 0.2485)),
        (Cosine(), Ancestral(), SMALL, (0.7000, 0.2480)),
        (Cosine(), Ancestral(), LARGE, (0.7000, 0.2504)),
        (Cosine(), Ddim(num_steps=None), SMALL, (0.7000, 0.2492)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_samples_of_gaussian_data_have_the_moments_of_theory(spec, sampler, variance, table):
    """The table is what `theory` gives to 4 digits, so that a reader sees how far each sampler is from 0.7, 0.25."""
    np.testing.assert_allclose(theory(spec, sampler, variance), table, atol=5.1e-5)
    np.testing.assert_allclose(moments(sampler, spec.build(), variance), theory(spec, sampler, variance), atol=5e-5)


@pytest.mark.parametrize("spec", [Linear(), Cosine()], ids=lambda spec: type(spec).__name__)
def test_ddim_with_eta_1_is_ancestral_sampling_with_the_small_variance(spec):
    schedule = spec.build()
    for num_steps in (None, 30):
        ancestral, ddim = Ancestral(num_steps), Ddim(num_steps, eta=1.0)
        for z, noise in ((0.3, 0.0), (-1.2, 1.0)):
            got, expected = (all_steps(sampler, schedule, z, noise) for sampler in (ddim, ancestral))
            np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "spec", [Linear(), pytest.param(Cosine(), marks=pytest.mark.slow)], ids=lambda spec: type(spec).__name__
)
def test_ddim_keeps_the_digits_of_its_coefficients(spec, eta):
    """Those of x, eps and the noise, against float64: 1e-5 also where the factor on eps is a small difference."""
    schedule, alpha_bar = spec.build(), np.cumprod(np.append(1.0, 1 - spec.betas()))
    decoder = Denoiser(exact(schedule), schedule, X(), SMALL)
    for num_steps in (5, None):
        t, s = grid(Ddim(num_steps), schedule)
        now, before = alpha_bar[t], alpha_bar[s]
        var = eta**2 * (1 - now / before) * (1 - before) / (1 - now)
        # 1 - before - var, with nothing subtracted but eta^2 from 1
        of_eps = (1 - before) * (1 - eta**2 + eta**2 * now / before * (1 - before) / (1 - now))
        expected = np.sqrt(before), np.sqrt(of_eps), np.sqrt(var)
        for place, theirs in enumerate(expected):
            x, eps, noise = (jnp.full(t.shape, float(place == i)) for i in range(3))
            step = jax.jit(Ddim(num_steps, eta=eta).step)
            ours, _ = step(decoder, StepInput(jnp.zeros(t.shape), schedule.step(t, s), Prediction(x, eps), noise), ())
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_ddim_converges_to_the_probability_flow_with_first_order():
    """The flow carries quantiles: z_0 = MEAN + sqrt(VAR / var(z_T)) (z_T - signal_T MEAN)."""
    schedule = Linear(num_steps=1000).build()
    signal, alpha_bar = float(schedule.signals[-1]), float(schedule.alpha_bar[-1])
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


@pytest.mark.parametrize(("sampler", "variance"), EVERY_STEP, ids=repr)
def test_the_last_step_adds_no_noise(sampler, variance):
    schedule = Cosine(num_steps=50).build()
    noisy, quiet = (all_steps(sampler, schedule, 0.5, noise, variance) for noise in (1.0, 0.0))
    *before, last = noisy - quiet
    assert last == 0
    assert np.all(np.array(before) > 0) or not sampler.stochastic


def test_only_deterministic_samplers_ignore_their_noise():
    noisy = (Ancestral(), Ddim(eta=0.1), Ddim(eta=1.0), DpmSolver(sde=True))
    assert [sampler.stochastic for sampler in (*noisy, Ddim(), DpmSolver(), Heun())] == [True] * 4 + [False] * 3


def test_an_ancestral_step_is_the_posterior_of_the_predicted_data():
    schedule = Cosine(num_steps=50).build()
    t, earlier = grid(Ancestral(), schedule)
    z = jnp.asarray(np.full(50, 0.4, np.float32))
    normal = jax.jit(posterior)(schedule, z, jax.jit(gaussian_x)(schedule, z, t), t, earlier)
    np.testing.assert_allclose(all_steps(Ancestral(), schedule, 0.4, 0.0), normal.mean, atol=1e-6)
    np.testing.assert_allclose(all_steps(Ancestral(), schedule, 0.4, 1.0), normal.mean + normal.std, atol=1e-6)


# The loop.

SHAPE = (3, 3, 1)


def shrink(z_t, t):
    """Some prediction of the noise, different at each t."""
    return z_t * jnp.cos(0.1 * t)[:, None, None, None]


@pytest.fixture(scope="module")
def schedule():
    return Linear(num_steps=20).build()


@pytest.fixture(scope="module", params=[Ancestral(), Ddim(num_steps=5)], ids=["ancestral", "ddim"])
def many(request, schedule):
    """A sampler and 32 of its images."""
    return request.param, np.asarray(
        sample(jax.random.key(0), Denoiser(shrink, schedule, clip=Clip()), request.param, (32, *SHAPE))
    )


def test_image_i_is_the_same_in_any_batch(schedule, many, key):
    sampler, images = many
    assert images.dtype == np.float32
    assert images.std(0).min() > 0
    np.testing.assert_allclose(
        sample(key, Denoiser(shrink, schedule, clip=Clip()), sampler, (8, *SHAPE)), images[:8], atol=1e-6
    )
    last = sample(key, Denoiser(shrink, schedule, clip=Clip()), sampler, (8, *SHAPE), first_index=24)
    np.testing.assert_allclose(last, images[24:], atol=1e-6)
    other = sample(jax.random.key(1), Denoiser(shrink, schedule, clip=Clip()), sampler, (8, *SHAPE))
    assert np.all(np.abs(other - images[:8]).max((1, 2, 3)) > 0.01)


@pytest.mark.parametrize("sampler", [Ancestral(), DpmSolver(num_steps=5)], ids=repr)
def test_clipped_samples_are_images_whatever_the_network_says(schedule, sampler, key):
    x = np.asarray(
        sample(key, Denoiser(lambda z_t, t: 50 * z_t, schedule, variance=LARGE, clip=Clip()), sampler, (8, *SHAPE))
    )
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
        sample(key, Denoiser(predict, schedule, clip=Clip()), Ddim(num_steps=2), (4, 2), first_index=first_index)
    assert set(traced) == {(4, 2)}
    before = len(traced)
    sample(key, Denoiser(predict, schedule, clip=Clip()), Ddim(num_steps=2), (4, 2))
    assert len(traced) == before


@pytest.mark.parametrize("sampler", [Ancestral(num_steps=21), Ddim(num_steps=50)], ids=repr)
def test_more_steps_than_the_chain_has_are_an_error(schedule, sampler, key):
    with pytest.raises(ValueError, match=rf"num_steps is {sampler.num_steps}.* 1 to 20"):
        sample(key, Denoiser(shrink, schedule, clip=Clip()), sampler, (2, *SHAPE))


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_eta_is_a_share(eta):
    with pytest.raises(ValueError, match=f"eta is {eta}"):
        Ddim(eta=eta)


@pytest.mark.parametrize("shape", [(), (0, 4), (2, -1)])
def test_a_shape_is_a_batch_of_something(schedule, shape, key):
    with pytest.raises(ValueError, match="shape is"):
        sample(key, Denoiser(shrink, schedule, clip=Clip()), Ancestral(), shape)


def test_an_output_of_another_shape_is_an_error(schedule, key):
    with pytest.raises(ValueError, match=r"returned shape \(2, 1\) for .* shape \(2, 4\)"):
        sample(key, Denoiser(lambda z_t, t: z_t[:, :1], schedule, clip=Clip()), Ancestral(), (2, 4))


def test_small_is_below_large():
    schedule = Linear(num_steps=20).build()
    t, s = grid(Ancestral(), schedule)
    step = schedule.step(t, s, laters(t))
    small, large = (np.asarray(jax.jit(variance)(step)) for variance in (SMALL, LARGE))
    assert np.all(small[:-1] < large[:-1])
    assert small[-1] == large[-1] > 0


# A variance that the network learned.


def with_spread(schedule: Chain, spread: float, z_t, t):
    """The exact denoiser, with a second channel that says where the variance lies."""
    return jnp.concatenate([gaussian_x(schedule, z_t, t), jnp.full_like(z_t, spread)], axis=-1)


def test_a_learned_variance_at_its_ends_is_the_fixed_one(key):
    """The upper end differs from FixedLarge in the last step only, where no noise is added."""
    schedule, sampler, options = Cosine(num_steps=50).build(), Ancestral(num_steps=12), {"target": X()}
    for spread, fixed in ((-1.0, SMALL), (1.0, LARGE)):
        predict = jax.tree_util.Partial(with_spread, schedule, spread)
        got = sample(key, Denoiser(predict, schedule, variance=LearnedRange(), **options), sampler, (64, 1))
        expected = sample(key, Denoiser(exact(schedule), schedule, variance=fixed, **options), sampler, (64, 1))
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_learned_variance_between_its_ends_is_their_geometric_mean(key):
    schedule = Cosine(num_steps=50).build()
    t, s = grid(Ancestral(), schedule)
    step, learned = schedule.step(t, s, laters(t)).like(jnp.zeros((50, 1))), jax.jit(LearnedRange())
    middle, small = (learned(step, jnp.full((50, 1), share)) for share in (0.5, 0.0))
    np.testing.assert_allclose(np.asarray(middle) ** 2, np.asarray(small) * np.asarray(step.upper), rtol=1e-5)


@pytest.mark.parametrize(
    ("variance", "channels", "message"),
    [
        (LearnedRange(), 1, r"shape \(4, 1\) for .*LearnedRange expects \(4, 2\).*out_multiplier=2"),
        (LearnedRange(), 3, r"shape \(4, 3\) for .*out_multiplier=2"),
        (SMALL, 2, r"shape \(4, 2\) for data of shape \(4, 1\); they must be equal"),
    ],
    ids=["one", "three", "two"],
)
def test_the_network_has_the_channels_that_the_variance_takes(schedule, key, variance, channels, message):
    with pytest.raises(ValueError, match=message):
        sample(
            key,
            Denoiser(lambda z_t, t: jnp.repeat(z_t, channels, -1), schedule, variance=variance, clip=Clip()),
            Ancestral(),
            (4, 1),
        )


# The way from z_T to x.

EACH = [Ancestral(num_steps=10), DpmSolver(num_steps=10), Heun(num_steps=10)]


def names(value) -> str | None:
    return type(value).__name__ if isinstance(value, Sampler) else None


@pytest.fixture(scope="module")
def chain():
    """A schedule, and sample_path with what is the same everywhere below."""
    schedule = Cosine(num_steps=100).build()
    return schedule, partial(
        sample_path, jax.random.key(0), Denoiser(exact(schedule), schedule, target=X()), shape=(5, 3)
    )


@pytest.fixture(scope="module", params=EACH, ids=names)
def way(request, chain):
    """A sampler, and every z on its way."""
    return request.param, chain[1](sampler=request.param, frames=11)


def test_a_path_leads_from_z_T_to_the_sample(chain, way, key):
    schedule, (sampler, path) = chain[0], way
    np.testing.assert_array_equal(path.t, sampler.times(schedule))
    assert path.frames.shape == (11, 5, 3)
    x = sample(key, Denoiser(exact(schedule), schedule, target=X()), sampler, (5, 3))
    np.testing.assert_allclose(path.x, x, atol=1e-6)
    np.testing.assert_array_equal(path.frames[-1], path.x)


def test_a_path_of_x_is_what_the_network_saw_at_z(chain, way):
    """Four frames of ten steps: those at the beginnings of steps 0, 3, 6 and 9."""
    schedule, (sampler, path) = chain[0], way
    seen, kept = chain[1](sampler=sampler, frames=4, of="x"), np.array([0, 3, 6, 9])
    np.testing.assert_array_equal(seen.t, sampler.times(schedule)[kept])
    predicted = jax.jit(jax.vmap(partial(gaussian_x, schedule)))(np.asarray(path.frames)[kept], seen.t)
    np.testing.assert_allclose(seen.frames, predicted, atol=1e-5)
    np.testing.assert_allclose(seen.x, path.x, atol=1e-6)


def test_a_run_begun_on_the_way_goes_the_rest_of_it(chain, way, key):
    """Draws belong to timesteps, so this also holds for a stochastic sampler; one with a memory begins without it."""
    (sampler, path), first = way, 3
    start = (path.frames[first], int(path.t[first]))
    rest = chain[1](sampler=sampler, frames=11 - first, start=start)
    np.testing.assert_array_equal(rest.t, path.t[first:])
    np.testing.assert_array_equal(rest.frames[0], path.frames[first])
    if isinstance(sampler, DpmSolver):
        assert 1e-4 < np.abs(rest.x - path.x).max() < 0.1
    else:
        np.testing.assert_allclose(rest.frames, path.frames[first:], atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "of", "message"),
    [
        (0, "z", "frames is 0; expected a whole number, at least 1"),
        (12, "z", "frames is 12; expected 1 to 11"),
        (11, "x", "frames is 11; expected 1 to 10"),
    ],
)
def test_frames_are_some_of_the_moments(chain, frames, of, message):
    with pytest.raises(ValueError, match=message):
        chain[1](sampler=Ddim(num_steps=10), frames=frames, of=of)


def test_a_path_is_of_z_or_of_x(chain, unchecked):
    with pytest.raises(ValueError, match="of is 'eps'; expected"):
        chain[1](sampler=Ddim(num_steps=10), frames=3, of="eps")


def test_memory_does_not_grow_with_the_number_of_steps():
    sampler, shape = DpmSolver(num_steps=None), (16, 32, 32)

    def memory(num_steps: int) -> int:
        schedule = Linear(num_steps=num_steps).build()
        run = jax.jit(
            lambda key: sample_path(
                key, Denoiser(exact(schedule), schedule, target=X(), clip=Clip()), sampler, shape, 4
            )
        )
        return run.lower(jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes

    image_bytes = 4 * np.prod(shape)
    short, long = memory(50), memory(500)
    assert short > image_bytes
    assert abs(long - short) < 0.1 * image_bytes


def test_partly_noised_data_are_sampled_back_to_the_moments_of_theory(key):
    """The flow carries z_t ~ N(signal x, noise_var) to m + sqrt(v / var(z_t)) (z_t - signal m), m and v of the data."""
    schedule, t, x, count = Cosine(num_steps=250).build(), 100, -0.4, 12_000
    signal, noise_var = float(schedule.signal(t)), float(schedule.noise_var[t])
    gain = np.sqrt(VAR / (signal**2 * VAR + noise_var))
    shape = (40, count // 40)
    z_t = diffuse(schedule, jnp.full(shape, x), t, jax.random.normal(jax.random.key(1), shape))
    back = partial(sample, key, Denoiser(exact(schedule), schedule, target=X()), shape=shape, start=(z_t, t))
    got = np.asarray(back(sampler=Ddim(num_steps=None)), np.float64)
    mean, std = MEAN + gain * signal * (x - MEAN), gain * np.sqrt(noise_var)
    assert abs(got.mean() - mean) < 4 * std / np.sqrt(count) + 2e-3
    assert abs(got.std() - std) < 4 * std / np.sqrt(2 * count) + 2e-3
    # Each step of the ancestral sampler but the variance is that of the posterior: E[x | z_t], in the mean.
    got = np.asarray(back(sampler=Ancestral()), np.float64)
    slope = signal * VAR / (signal**2 * VAR + noise_var)
    assert abs(got.mean() - (MEAN + slope * signal * (x - MEAN))) < 4 * np.sqrt(VAR / count) + 2e-3


@pytest.mark.parametrize("t", [0, -1, 21])
def test_a_start_is_a_time_of_the_chain(schedule, key, t):
    with pytest.raises(ValueError, match=rf"start\[1\] is {t}; expected one whole t in 1..20"):
        sample(
            key,
            Denoiser(shrink, schedule, clip=Clip()),
            Ddim(num_steps=5),
            (2, *SHAPE),
            start=(np.zeros((2, *SHAPE), np.float32), t),
        )


def test_a_start_has_the_shape_asked_for(schedule, key):
    with pytest.raises(ValueError, match=r"z_t of shape \(3, 4\); expected \(2, 4\)"):
        sample(
            key,
            Denoiser(shrink, schedule, clip=Clip()),
            Ddim(num_steps=5),
            (2, 4),
            start=(np.zeros((3, 4), np.float32), 9),
        )


# Samplers are functions: they are compiled, vectorised and differentiated as any other.


def bend(theta, z_t, t):
    """A smooth prediction of x with one parameter."""
    return jnp.tanh(theta * z_t + 0.01 * lookup(jnp.arange(101.0), t, z_t))


@pytest.mark.parametrize(
    "sampler", [Ancestral(num_steps=6), pytest.param(Ddim(6), marks=pytest.mark.slow), DpmSolver(6), Heun(6)], ids=names
)
def test_samplers_can_be_jitted_vmapped_and_differentiated(chain, sampler):
    """Over keys or over where they start, and with respect to a parameter of the network."""
    many = jax.random.split(jax.random.key(1), 3)
    if not sampler.stochastic:
        many = jax.random.normal(many[0], (3, 4, 2))

    def of(theta, one):
        predict = jax.tree_util.Partial(bend, theta)
        key, start = (one, None) if sampler.stochastic else (jax.random.key(0), (one, 60))
        x = sample(key, Denoiser(predict, chain[0], target=X()), sampler, (4, 2), start=start)
        return x.sum(), x

    together = jax.jit(jax.vmap(jax.value_and_grad(of, has_aux=True), (None, 0)))
    (_, x), slope = together(0.8, many)
    np.testing.assert_allclose(x, np.stack([of(0.8, one)[1] for one in many]), atol=1e-5)
    step = 5e-3
    difference = (together(0.8 + step, many)[0][0] - together(0.8 - step, many)[0][0]) / (2 * step)
    assert np.abs(slope).max() > 0.1
    np.testing.assert_allclose(slope, difference, rtol=5e-3, atol=5e-3)


def test_a_gradient_reaches_the_start(chain):
    schedule, _ = chain
    draw = partial(sample, jax.random.key(0), Denoiser(exact(schedule), schedule, X()), Ddim(num_steps=6), (2,))
    z = jnp.array([0.3, -1.0])
    slope = jax.jit(jax.grad(lambda z: draw(start=(z, 60)).sum()))(z)
    shifted = np.asarray(draw(start=(z + 1, 60)) - draw(start=(z, 60)))
    np.testing.assert_allclose(slope, shifted, rtol=1e-4)
