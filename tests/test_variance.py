"""The decoder's variance is that of the published code; the decoder reads a network's output as the papers do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.bound import bound, term
from ddpm_jax.diffusion.clipping import Clip, NoClipping
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.forward import diffuse, posterior
from ddpm_jax.diffusion.grids import Given, Karras, Leading, Linspace, Quadratic, Uniform, times_before
from ddpm_jax.diffusion.schedule import Betas, Chain, Cosine, Linear
from ddpm_jax.diffusion.step import Step
from ddpm_jax.diffusion.targets import Eps, Mean, Prediction, Score, V, X
from ddpm_jax.diffusion.variance import FixedLarge, FixedSmall, LearnedRange
from ddpm_jax.sampling import Ancestral, inpaint, sample

# Compiled whole: run eagerly, every operation is compiled by itself.
small, large, learned, step_of = map(
    jax.jit, (FixedSmall().__call__, FixedLarge().__call__, LearnedRange().__call__, Chain.step)
)


@jax.jit
def ends_of(step: Step) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest variance."""
    return step.lower, step.upper


def after(schedule: Chain, t: np.ndarray) -> np.ndarray:
    """The time before each t in the whole chain: t + 1."""
    return np.minimum(t + 1, schedule.num_steps)


def zero(z_t, t):
    return jnp.zeros_like(z_t)


def published(betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(fixedsmall, fixedlarge) of the published code, which counts from 0, in float64."""
    alpha_bar = np.cumprod(1 - betas)
    alpha_bar_before = np.append(1.0, alpha_bar[:-1])
    posterior_variance = betas * (1 - alpha_bar_before) / (1 - alpha_bar)
    fixed_small = np.append(posterior_variance[1], posterior_variance[1:])
    fixed_large = np.append(posterior_variance[1], betas[1:])
    return fixed_small, fixed_large


def test_the_whole_chain_has_the_published_variances(spec):
    """FixedLarge is [posterior_var_2, beta_2, ..., beta_T], FixedSmall [posterior_var_2, posterior_var_2, ...]."""
    schedule, t = spec.build(), np.arange(1, spec.num_steps + 1)
    step = step_of(schedule, t, t - 1, after(schedule, t))
    for ours, theirs in zip((small, large), published(spec.betas()), strict=True):
        np.testing.assert_allclose(ours(step), theirs, rtol=2e-5)


def section_times(length: int, counts: tuple[int, ...]) -> tuple[int, ...]:
    """The timesteps, falling, of improved-diffusion's `space_timesteps(length, counts)`, which counts them from 0."""
    times, start = [], 0
    for index, count in enumerate(counts):
        size = length // len(counts) + (index < length % len(counts))
        times += [1 + start + round(i * (size - 1) / max(count - 1, 1)) for i in range(count)]
        start += size
    return tuple(sorted(set(times), reverse=True))


SECTIONS = ((10, 15, 20), (90, 60, 60, 20, 20), (5,), (1,), (2, 1))


@pytest.mark.parametrize("grid", [Uniform(), Leading(), Leading(offset=1), Linspace(), Quadratic(), *SECTIONS], ids=str)
@pytest.mark.parametrize("spec", [Linear(), Cosine(), Cosine(4000)], ids=["linear", "cosine", "cosine-4000"])
def test_a_strided_chain_has_the_published_variances_of_the_respaced_one(spec, grid):
    """Those of the betas 1 - alpha_bar_{t_k} / alpha_bar_{t_{k-1}} (2102.09672), the last step's included."""
    whole, schedule = np.cumprod(np.append(1.0, 1 - spec.betas())), spec.build()
    chains = [Given(section_times(spec.num_steps, grid))] if isinstance(grid, tuple) else [grid, grid, grid]
    for chain, count in zip(chains, (None,) if isinstance(grid, tuple) else (2, 5, 50), strict=True):
        times = chain.times(schedule, count)
        if len(times) == 2:  # a step without one before it: the published code has no answer
            continue
        later, t, s = (np.resize(a[::-1], 260) for a in (times_before(times, times[:-1]), times[:-1], times[1:]))
        alpha_bar, step = whole[times[::-1]], step_of(schedule, t, s, later)  # one shape: one program
        for ours, theirs in zip((small, large), published(1 - alpha_bar[1:] / alpha_bar[:-1]), strict=True):
            np.testing.assert_allclose(ours(step)[: len(theirs)], theirs, rtol=1e-5)


def test_the_variances_of_a_strided_chain_are_what_its_bound_and_its_samplers_read():
    """The last step 1 -> 0 of `Linspace`, which comes from 21: 9.84e-5, where 2 -> 1 has 5.45e-5."""
    schedule, seen = Linear().build(), []

    class Spy(FixedSmall):
        def __call__(self, step, var_fraction=None):
            def see(t, s, lower):
                seen.append((int(t), int(s), float(np.ravel(lower)[0])))

            jax.debug.callback(see, step.t, step.s, step.lower)
            return super().__call__(step, var_fraction)

    def same(steps, chain):
        steps, last = sorted(set(seen)), [FixedSmall()(schedule.step(*one)) for one in sorted(chain)]
        assert [one[:2] for one in steps] == [one[:2] for one in sorted(chain)]
        np.testing.assert_allclose([one[2] for one in steps], last, rtol=1e-6)

    x, grid, spy = jnp.zeros((1, 2)), Given((21, 1)), Spy()
    chain = [(21, 1, 21), (1, 0, 21)]
    options = {"variance": spy}
    of_bound = bound(jax.random.key(0), Denoiser(zero, schedule, **options), x, grid=grid, bins=None)
    jax.effects_barrier()
    same(seen, chain)
    of_step = jax.jit(
        lambda later: term(Denoiser(zero, schedule, **options), x, 1, jnp.zeros_like(x), u=later, bins=None)
    )
    once, wrong = of_step(21), of_step(2)
    assert not np.allclose(once.nats, wrong.nats, rtol=0.05)
    np.testing.assert_allclose(FixedSmall()(schedule.step(1, 0, 21)), 9.84e-5, rtol=1e-3)
    assert of_bound.nats.shape == (2, 1)
    for draw in (
        lambda: sample(jax.random.key(0), Denoiser(zero, schedule, **options), Ancestral(grid=grid), (1, 2)),
        lambda: inpaint(
            jax.random.key(0), Denoiser(zero, schedule, **options), Ancestral(grid=grid), x, x > 1, resamples=1
        ),
    ):
        seen.clear()
        jax.block_until_ready(draw())
        jax.effects_barrier()
        same(seen, chain)
    seen.clear()  # a chain begun between two of the grid's times comes from the one above
    start = (x, 5)
    jax.block_until_ready(
        sample(jax.random.key(0), Denoiser(zero, schedule, **options), Ancestral(grid=grid), (1, 2), start=start)
    )
    jax.effects_barrier()
    same(seen, [(1, 0, 21), (5, 1, 21)])


def test_a_chain_of_one_step_has_the_variance_of_that_step():
    schedule = Linear(num_steps=20).build()
    one_step = 1 - np.prod(1 - Linear(num_steps=20).betas())
    for rule in (small, large):
        np.testing.assert_allclose(rule(schedule.step(20, 0, 20)), one_step, rtol=1e-6)
        np.testing.assert_allclose(rule(Betas((0.3,)).build().step(1, 0, 1)), 0.3, rtol=1e-6)


def test_no_chain_has_a_variance_of_0(spec):
    """Any grid, any number of steps: positive, finite, and lower <= upper."""
    schedule = spec.build()
    for grid in (Uniform(), Karras(), Given((spec.num_steps, 1))):
        counts = {None} if isinstance(grid, Given) else {1, 2, 3, spec.num_steps // 2, spec.num_steps}
        for count in counts:
            times = grid.times(schedule, count)
            steps = times_before(times, times[:-1]), times[:-1], times[1:]
            u, t, s = (np.resize(a, spec.num_steps) for a in steps)  # one shape: one program
            least, most = map(np.asarray, ends_of(step_of(schedule, t, s, u)))
            assert np.all((least > 0) & (least <= 1) & (most > 0) & (most <= 1))
            assert np.all(least <= most * (1 + 1e-6))


def test_a_learned_variance_lies_between_the_ends_on_a_logarithmic_scale(spec):
    schedule, t = spec.build(), np.arange(1, spec.num_steps + 1)
    like = np.zeros(spec.num_steps, np.float32)
    for s in (t - 1, t // 2):
        step = step_of(schedule, t, s, after(schedule, t))
        ends = [np.asarray(end, np.float64) for end in ends_of(step)]
        for share in (0.0, 0.5, 1.0, 0.3):
            got = learned(step, np.full_like(like, share))
            np.testing.assert_allclose(got, ends[0] ** (1 - share) * ends[1] ** share, rtol=2e-6)


def test_the_learned_ends_are_the_published_ones():
    """log of [posterior_var_2, posterior_var_2, ...] and of beta_1, beta_2, ...: the published code's two tables."""
    spec = Linear()
    schedule, t = spec.build(), np.arange(1, 1001)
    like = np.zeros(t.shape, np.float32)
    ends = published(spec.betas())[0], spec.betas()
    for share, end in zip((0.0, 1.0), ends, strict=True):
        got = learned(step_of(schedule, t, t - 1, after(schedule, t)), np.full_like(like, share))
        np.testing.assert_allclose(got, end, rtol=2e-5)


def test_the_variance_is_shaped_to_broadcast_against_images():
    schedule, z_t = Cosine(num_steps=8).build(), np.zeros((3, 4, 4, 2), np.float32)
    each = np.array([1, 5, 8])
    steps = step_of(schedule, each, each - 1, after(schedule, each)).like(z_t)
    for rule in (small, large):
        assert rule(steps).shape == (3, 1, 1, 1)
        assert rule(step_of(schedule, 5, 4, 6).like(z_t)).shape == (1, 1, 1, 1)
        one_by_one = [float(rule(step_of(schedule, t, t - 1, min(t + 1, 8)))) for t in each]
        together = rule(steps)[:, 0, 0, 0]
        np.testing.assert_allclose(together, one_by_one, rtol=1e-6)
    assert learned(steps, z_t).shape == z_t.shape


def test_the_variance_has_finite_gradients():
    """Also where a batch mixes the last step with the others, and at shares that no network should give."""
    schedule, t = Cosine(num_steps=8).build(), np.arange(1, 9)
    like = np.zeros((8, 2), np.float32)
    step = step_of(schedule, t, t - 1, after(schedule, t)).like(like)

    @jax.jit
    @jax.grad
    def gradient(share):
        return jnp.log(LearnedRange()(step, share)).sum()

    ends = [np.log(np.asarray(end, np.float64)) for end in ends_of(step)]
    for share in (-0.5, 0.0, 0.7, 1.5):
        got = gradient(jnp.full(like.shape, share))
        np.testing.assert_allclose(got, np.broadcast_to(ends[1] - ends[0], like.shape), rtol=1e-4, atol=1e-6)


def test_a_learned_variance_needs_the_share():
    step = Cosine(num_steps=8).build().step(3, 2, 4)
    with pytest.raises(ValueError, match="var_fraction is None; LearnedRange expects the network's"):
        LearnedRange()(step)


# The decoder.

TARGETS = (Eps(), X(), V(), Mean(), Score())


def normals(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def schedule():
    return Cosine(num_steps=8).build()


def test_the_second_half_of_the_channels_is_the_spread(schedule):
    """-1 is the lower end and +1 the upper one, for the samples' std."""
    x, eps = normals(2, 8, 3, 2)
    t = np.arange(1, 9)
    z_t = diffuse(schedule, x, t, eps)

    @jax.jit
    def normal(spread):
        def predict(z_t, t):
            return jnp.concatenate([0.3 * z_t, jnp.full_like(z_t, spread)], axis=-1)

        decoder = Denoiser(predict, schedule, Eps(), LearnedRange())
        prediction = decoder.denoise(z_t, t)
        return prediction, decoder.normal(prediction, z_t, schedule.step(t, t - 1))

    ends = [np.asarray(end) for end in ends_of(step_of(schedule, t, t - 1, after(schedule, t)).like(z_t))]
    for spread, var in ((-1.0, ends[0]), (1.0, ends[1]), (0.0, np.sqrt(ends[0] * ends[1]))):
        prediction, p = normal(spread)
        np.testing.assert_allclose(p.std, np.broadcast_to(np.sqrt(var), z_t.shape), rtol=2e-6)
        np.testing.assert_allclose(prediction.eps, 0.3 * z_t, rtol=1e-6)
        np.testing.assert_array_equal(prediction.var_fraction, (spread + 1) / 2)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_decoder_with_the_right_answer_is_the_posterior(schedule, target):
    """Its mean for any s < t; its variance, where s > 0, with FixedSmall."""
    x, eps = normals(2, 8, 3)
    t = np.arange(1, 9)
    z_t = diffuse(schedule, x, t, eps)

    @jax.jit
    def both(s):
        decoder = Denoiser(lambda z_t, t: target.encode(schedule, x, eps, t), schedule, target, FixedSmall())
        return decoder.normal(decoder.denoise(z_t, t), z_t, schedule.step(t, s)), posterior(schedule, z_t, x, t, s)

    for s in (t - 1, t // 2):
        p, q = both(s)
        np.testing.assert_allclose(p.mean, q.mean, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(p.std[s > 0], q.std[s > 0], rtol=1e-6)
        assert np.all(np.asarray(p.std) > 0)


def test_a_clipped_x_has_the_noise_that_leads_from_it_to_z(schedule):
    """x and eps of a prediction always make z_t; where x was inside already nothing changes."""
    x, eps = normals(2, 8, 3)
    t = np.arange(1, 9)
    z_t = np.asarray(diffuse(schedule, x, t, eps))
    inside, endless = Clip(-0.5, 0.25), (-np.inf, np.inf)
    for clip, ends in ((Clip(), (-1, 1)), (inside, (-0.5, 0.25)), (NoClipping(), endless)):
        decoder = Denoiser(lambda z_t, t: 0.8 * z_t, schedule, X(), FixedSmall(), clip=clip)
        prediction = jax.jit(decoder.denoise)(z_t, t)
        np.testing.assert_allclose(prediction.x, np.clip(0.8 * z_t, *ends), rtol=1e-6)
        np.testing.assert_allclose(diffuse(schedule, prediction.x, t, prediction.eps), z_t, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "predict", "message"),
    [
        (
            FixedSmall(),
            lambda z, t: jnp.tile(z, 2),
            r"returned shape \(3, 4\) for data of shape \(3, 2\); they must be",
        ),
        (
            LearnedRange(),
            lambda z, t: z,
            r"\(3, 2\); LearnedRange expects \(3, 4\) \(a network with out_multiplier=2\)",
        ),
        (LearnedRange(), lambda z, t: jnp.tile(z, 3), r"returned shape \(3, 6\) for data of shape \(3, 2\)"),
    ],
)
def test_an_output_of_another_shape_is_an_error(schedule, rule, predict, message):
    with pytest.raises(ValueError, match=message):
        Denoiser(predict, schedule, Eps(), rule, clip=Clip()).denoise(np.zeros((3, 2), np.float32), 3)


def test_it_is_float32_whatever_the_network_returns(schedule):
    z_t = normals(8, 2)
    decoder = Denoiser(lambda z, t: jnp.tile(z, 2).astype(jnp.bfloat16), schedule, V(), LearnedRange(), clip=Clip())
    prediction = decoder.denoise(z_t, np.arange(1, 9))
    assert isinstance(prediction, Prediction)
    assert {value.dtype for value in prediction} == {np.dtype(np.float32)}
