"""Processes in continuous time: their steps, targets, samplers, bounds, likelihoods and objectives.

Each formula is held against float64, against Bayes' rule, or against data whose denoiser is known in closed form.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from ddpm_jax import (
    Denoiser,
    bound,
    forward,
    guidance,
    likelihood,
    mixture,
    objective,
    sampling,
    schedule,
    targets,
    timesteps,
)
from ddpm_jax.data import Digits
from ddpm_jax.data.images import to_unit
from ddpm_jax.diffusion.process import Continuous, RectifiedFlow, VarianceExploding, VariancePreserving
from ddpm_jax.sampling import (
    Ancestral,
    Ddim,
    DpmSolver,
    ExponentialHeun,
    Heun,
    Karras,
    Linspace,
    LogSnr,
    StepInput,
    UniPc,
)

KEY = jax.random.key(0)


@dataclass(frozen=True)
class Circular(Continuous):
    """A process as a user writes one: two functions."""

    first: float = 0.001
    last: float = 0.999

    def signal(self, t):
        return jnp.cos(jnp.pi / 2 * t)

    def noise(self, t):
        return jnp.sin(jnp.pi / 2 * t)


PROCESSES = {
    "linear": VariancePreserving(),
    "cosine": VariancePreserving(shape="cosine"),
    "exploding": VarianceExploding(),
    "flow": RectifiedFlow(),
    "own": Circular(),
}
# The same, from SNR 1e8 to 1e-8.
WIDE = {
    "linear": VariancePreserving(18.42, -18.42),
    "cosine": VariancePreserving(18.42, -18.42, "cosine"),
    "exploding": VarianceExploding(1e-4, 1e4),
    "flow": RectifiedFlow(1e-4, 1 - 1e-4),
    "own": Circular(6.4e-5, 1 - 6.4e-5),
    "chain": schedule.Cosine().build(),
    "chain without signal": schedule.ZeroTerminal(schedule.Linear()).build(),
}
TARGETS = [
    targets.Eps(),
    targets.X(),
    targets.V(),
    targets.Score(),
    targets.Velocity(),
    targets.Edm(),
    targets.Edm(2.0),
]

each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
# Where compiling takes seconds: one of them by default.
each_process_slowly = pytest.mark.parametrize(
    "process",
    [value if name == "flow" else pytest.param(value, marks=pytest.mark.slow) for name, value in PROCESSES.items()],
    ids=PROCESSES,
)


def signal_and_noise(process, t):
    """The two functions in NumPy's float64."""
    if isinstance(process, VariancePreserving):
        ends = process.log_snr_max, process.log_snr_min
        if process.shape == "linear":
            log_snr = ends[0] + (ends[1] - ends[0]) * t
            return np.sqrt(scipy.special.expit(log_snr)), np.sqrt(scipy.special.expit(-log_snr))
        first, last = (np.arctan(np.exp(-end / 2)) for end in ends)
        return np.cos(first + (last - first) * t), np.sin(first + (last - first) * t)
    if isinstance(process, VarianceExploding):
        return np.ones_like(t), process.sigma_min * (process.sigma_max / process.sigma_min) ** t
    if isinstance(process, RectifiedFlow):
        return 1 - t, t
    return np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)


def posterior(signal_t, noise_t, signal_s, noise_s, log_r):
    """(a, b, var, forward var) in float64."""
    rest = -np.expm1(log_r)
    a = signal_t / signal_s * (noise_s / noise_t) ** 2
    return a, signal_s * rest, noise_s**2 * rest, noise_t**2 * rest


def errors(step, expected) -> float:
    """The largest relative error of a step's numbers."""
    found = step.a, step.b, step.var, step.forward_var
    return max(
        float(np.max(np.abs(np.asarray(one, np.float64) / exact - 1)))
        for one, exact in zip(found, expected, strict=True)
    )


# The posterior.


@pytest.mark.parametrize("spec", [schedule.Linear(), schedule.Cosine(), schedule.Cosine(4000)], ids=repr)
def test_the_steps_of_a_chain_keep_their_digits(spec):
    """Neighbours to 1e-6, all other pairs to 1e-5; also inside a jitted function, where times are traced."""
    process, log_alpha_bar = spec.build(), np.cumsum(np.log1p(-spec.betas()))
    noise_var = np.cumsum(np.exp(np.append(0, log_alpha_bar[:-1])) * spec.betas())

    def exact(t, s):
        log_snr = log_alpha_bar - np.log(noise_var)
        parts = (
            np.exp(log_alpha_bar[i - 1] / 2) if kind else np.sqrt(noise_var[i - 1]) for i in (t, s) for kind in (1, 0)
        )
        return posterior(*parts, log_snr[t - 1] - log_snr[s - 1])

    t = np.arange(2, spec.num_steps + 1)
    assert errors(process.step(t, t - 1), exact(t, t - 1)) < 1e-6
    pairs = np.sort(np.random.default_rng(0).integers(1, spec.num_steps + 1, (5000, 2)))
    s, t = pairs[pairs[:, 0] < pairs[:, 1]].T
    for step in (process.step(t, s), jax.jit(process.step)(t, s)):
        assert errors(step, exact(t, s)) < 1e-5


@each_process
@pytest.mark.parametrize("num_steps", [10, 1000])
def test_the_steps_of_a_grid_keep_their_digits(process, num_steps):
    """1e-5 for every step, though log SNR in float32 leaves four digits of the difference of neighbours."""
    times = np.asarray(Linspace().times(process, num_steps)[:-1], np.float64)
    (signal_t, noise_t), (signal_s, noise_s) = (signal_and_noise(process, at) for at in (times[:-1], times[1:]))
    log_r = 2 * (np.log(signal_t / signal_s) - np.log(noise_t / noise_s))
    expected = posterior(signal_t, noise_t, signal_s, noise_s, log_r)
    assert errors(process.step(times[:-1].astype(np.float32), times[1:].astype(np.float32)), expected) < 1e-5


@each_process
def test_one_step_and_another_are_one_longer_step(process):
    """q(z_u | z_t) after q(z_t | z_s), and q(z_t | z_s) after q(z_s | x), as means and variances."""
    s, t, u = (np.float32(process.at_share(share)) for share in (0.3, 0.5, 0.8))
    ts, ut, us = process.step(t, s), process.step(u, t), process.step(u, s)

    def factor(step):
        return step.signal_t / step.signal_s

    np.testing.assert_allclose(factor(ut) * factor(ts), factor(us), rtol=1e-6)
    np.testing.assert_allclose(factor(ut) ** 2 * ts.forward_var + ut.forward_var, us.forward_var, rtol=1e-5)
    np.testing.assert_allclose(factor(ts) ** 2 * ts.noise_s**2 + ts.forward_var, ts.noise_t**2, rtol=1e-5)
    # Bayes' rule: the moments of z_s by the posterior, averaged over q(z_t | x).
    np.testing.assert_allclose(ts.a * ts.signal_t + ts.b, ts.signal_s, rtol=1e-5)
    np.testing.assert_allclose(ts.a**2 * ts.noise_t**2 + ts.var, ts.noise_s**2, rtol=1e-5)


@each_process
def test_the_upper_variance_is_the_best_for_standard_normal_data(process):
    """var[z_s | z_t] for jointly normal z_s and z_t, by the covariance; and between it and the lower one, var_{t|s} is
    wrong where S changes."""
    t, s = (np.float32(process.at_share(share)) for share in (0.9, 0.8))
    step = process.step(t, s)
    total_s, total_t = step.signal_s**2 + step.noise_s**2, step.signal_t**2 + step.noise_t**2
    covariance = step.signal_t / step.signal_s * total_s
    np.testing.assert_allclose(step.upper, total_s - covariance**2 / total_t, rtol=1e-4)


def test_a_step_of_the_exploding_process_has_the_variance_of_its_narrow_end():
    """From sigma 80 to 20 the best variance for x ~ N(0, 1) is 376; var_{t|s} is 6,000."""
    process = VarianceExploding(0.002, 80.0)
    step = process.step(1.0, float(process.time(-2 * np.log(20.0))))
    np.testing.assert_allclose([step.upper, step.forward_var], [376.1, 6000.0], rtol=1e-3)


@each_process
def test_the_last_step_leads_to_clean_data(process):
    """Its mean is the predicted x, its standard deviation noise / signal where it begins."""
    step = process.step(process.first, process.clean)
    signal, noise = signal_and_noise(process, np.float64(np.float32(process.first)))
    assert bool(step.is_last)
    assert (float(step.a), float(step.b), float(step.var)) == (0.0, 1.0, 0.0)
    np.testing.assert_allclose(step.lower, (noise / signal) ** 2, rtol=1e-5)


@each_process
def test_time_is_the_inverse_of_log_snr(process):
    t = jnp.linspace(process.first, process.last, 51)
    np.testing.assert_allclose(process.time(process.log_snr(t)), t, atol=2e-6)
    assert float(process.time(1e9)) == np.float32(process.first)
    assert float(process.time(-1e9)) == np.float32(process.last)


def test_the_time_of_a_chain_is_a_point_of_its_curve():
    process = schedule.Cosine(100).build()
    t = jnp.linspace(1.0, 100.0, 77)
    np.testing.assert_allclose(process.time(process.log_snr(t)), t, rtol=2e-5)
    np.testing.assert_allclose(process.log_snr(jnp.arange(1.0, 101)), process.log_snr(jnp.arange(1, 101)), atol=2e-5)


# Targets.


@pytest.mark.parametrize("target", TARGETS, ids=repr)
@pytest.mark.parametrize("process", WIDE.values(), ids=WIDE)
def test_encode_then_decode(process, target):
    """signal |dx| + noise |deps| is at most 1e-6 |z|, |.| the norm of an example."""
    rng = np.random.default_rng(0)
    shares = np.linspace(0, 1, 400)
    t = process.at_share(jnp.float32(shares))
    if float(process.signal(process.last)) == 0 and isinstance(target, targets.Eps | targets.Score):
        t = t[t < process.last]  # where the target is refused
    x, eps = (jnp.asarray(rng.normal(size=(len(t), 8)), jnp.float32) for _ in range(2))
    z_t = forward.diffuse(process, x, t, eps)
    got_x, got_eps, _ = target.decode(process, target.encode(process, x, eps, t), z_t, t)
    signal, noise = process.signal(t), process.noise(t)
    error = signal * jnp.linalg.norm(got_x - x, axis=1) + noise * jnp.linalg.norm(got_eps - eps, axis=1)
    assert float(jnp.max(error / jnp.linalg.norm(z_t, axis=1))) < 1e-6


@pytest.mark.parametrize("target", TARGETS, ids=repr)
@each_process
def test_error_ratio_is_that_of_the_errors(process, target):
    t = jnp.float32(process.at_share(jnp.array([0.2, 0.5, 0.9])))
    z_t, output = (jnp.asarray(np.random.default_rng(seed).normal(size=(3, 4)), jnp.float32) for seed in (0, 1))
    other = output + 0.5
    error_x = target.decode(process, output, z_t, t).x - target.decode(process, other, z_t, t).x
    np.testing.assert_allclose(0.25 / (error_x**2).mean(1), target.error_ratio(process, t), rtol=1e-3)


def test_edm_is_minus_v_of_the_variance_preserving_process():
    """With x / sigma_data as the data, at the same SNR; and c_in z is the latent of that process."""
    sigma_data, exploding, preserving = 0.5, VarianceExploding(sigma_data=0.5), VariancePreserving(20.0, -20.0)
    t = exploding.at_share(jnp.linspace(0.0, 1.0, 20))
    x, eps = (jnp.asarray(np.random.default_rng(seed).normal(size=(20, 3)), jnp.float32) for seed in (0, 1))
    same = preserving.time(exploding.log_snr(t) + 2 * np.log(sigma_data))
    f = targets.Edm(sigma_data).encode(exploding, sigma_data * x, eps, t)
    np.testing.assert_allclose(f, -targets.V().encode(preserving, x, eps, same), atol=2e-5)
    z = exploding.input_scale(t)[:, None] * forward.diffuse(exploding, sigma_data * x, t, eps)
    np.testing.assert_allclose(z, forward.diffuse(preserving, x, same, eps), atol=2e-5)


@pytest.mark.parametrize("target", [targets.Eps(), targets.Score()], ids=repr)
@pytest.mark.parametrize("process", [WIDE["chain without signal"], RectifiedFlow(last=1.0)], ids=["chain", "flow"])
def test_a_target_from_which_x_does_not_follow_is_refused(process, target):
    with pytest.raises(
        ValueError, match=r"target is .*holds nothing of x; expected one of X\(\), V\(\), Edm.*Velocity"
    ):
        Denoiser(lambda z, t: z, process, target=target)
    for other in (targets.X(), targets.V(), targets.Velocity(), targets.Edm()):
        Denoiser(lambda z, t: z, process, target=other)


# Zero terminal SNR.


def test_zero_terminal_snr_rescales_the_signal():
    """Lin et al. 2024, algorithm 1, in NumPy."""
    old = np.sqrt(np.cumprod(1 - schedule.Linear().betas()))
    new = (old - old[-1]) * old[0] / (old[0] - old[-1])
    process = schedule.ZeroTerminal(schedule.Linear()).build()
    np.testing.assert_allclose(process.signal(np.arange(1, 1001)), new, rtol=1e-5, atol=1e-7)
    assert float(process.beta[1000]) == 1.0


@pytest.mark.parametrize(
    "sampler", [Ancestral(50), Ddim(50), DpmSolver(20), DpmSolver(50, sde=True), UniPc(20)], ids=repr
)
def test_a_chain_that_ends_in_pure_noise_is_sampled(sampler):
    """z_T says nothing, so the first prediction is the mean of the data, and the samples have its moments."""
    data = mixture.Mixture.of([0.5, 0.5], means=[[-0.5], [0.5]], stds=0.2)
    model = data.denoiser(schedule.ZeroTerminal(schedule.Linear()).build())
    x = sampling.sample(KEY, model, sampler, (4000, 1))
    assert abs(float(x.mean())) < 0.05
    assert abs(float(x.std()) - float(data.moments().std[0])) < 0.06


# Samplers.

GAUSSIAN = mixture.Mixture.of([1.0], means=[[0.7]], stds=0.5)
STOCHASTIC = {
    "ancestral": Ancestral(30, grid=LogSnr()),
    "ancestral, uniform": Ancestral(30),
    "ddim, eta 1": Ddim(20, eta=1.0),
    "ddim, eta 0.5": Ddim(20, grid=LogSnr(), eta=0.5),
    "sde": DpmSolver(20, grid=LogSnr(), sde=True),
    "churn": Heun(20, churn=10.0),
    "churn, in a range": Heun(20, churn=40.0, churn_min=0.05, churn_max=10.0, churn_noise=1.01),
}


def exact_moments(model, sampler) -> tuple[float, float]:
    """The mean and the variance of x for Gaussian data, whose denoiser is affine.

    x is an affine function of z at the noisy end and of the noises of the steps.  Example 0 has none of them, and each
    other example one of them at 1, so that their differences are its coefficients.
    """
    steps = sampler.steps(model.process, sampler.times(model.process))
    count = len(steps.t)

    def move(carry, item):
        (z, memory), (step, k) = carry, item
        noise = jnp.zeros((count + 2, 1)).at[2 + k].set(1.0)
        if step.rise is not None:
            z = step.rise[0] * z + step.rise[1] * noise
        now = StepInput(z, step, model.denoise(z, jnp.full(count + 2, step.t)), noise)
        return sampler.step(model, now, memory), None

    z = jnp.zeros((count + 2, 1)).at[1].set(jnp.hypot(steps.signal_t[0], steps.noise_t[0]))
    run = jax.jit(lambda z: jax.lax.scan(move, (z, sampler.start(z)), (steps, jnp.arange(count)))[0][0])
    x = np.asarray(run(z), np.float64)[:, 0]
    return x[0], np.sum((x[1:] - x[0]) ** 2)


def check_moments(process, sampler) -> None:
    model, count = GAUSSIAN.denoiser(process), 60_000
    x = np.asarray(sampling.sample(KEY, model, sampler, (count, 1)), np.float64)
    mean, var = exact_moments(model, sampler)
    print(f"mean {x.mean():.4f}, exact {mean:.4f}; variance {x.var():.4f}, exact {var:.4f}")
    assert abs(x.mean() - mean) < 4 * np.sqrt(var / count)
    assert abs(x.var() - var) < 4 * var * np.sqrt(2 / count)
    assert abs(mean - 0.7) < 0.06
    assert abs(var - 0.25) < 0.1  # few steps


@pytest.mark.slow
@pytest.mark.parametrize("sampler", STOCHASTIC.values(), ids=STOCHASTIC)
@pytest.mark.parametrize("process", [*PROCESSES.values(), schedule.Cosine().build()], ids=[*PROCESSES, "chain"])
def test_samples_of_gaussian_data_have_the_moments_of_theory(process, sampler):
    """Within 4 standard errors of the exact recursion, 60,000 draws; the recursion is near the data."""
    check_moments(process, sampler)


def test_inpainting_refuses_churn():
    """Its walk has no place for the noise of the sampler."""
    model = GAUSSIAN.denoiser(RectifiedFlow())
    with pytest.raises(ValueError, match=r"sampler is Heun.*; expected Heun without churn"):
        sampling.inpaint(KEY, model, Heun(5, churn=2.0), jnp.zeros((2, 3)), np.array([True, False, True]))


@pytest.mark.parametrize("name", [pytest.param("ancestral", marks=pytest.mark.slow), "churn"])
def test_samples_of_the_exploding_process_have_the_moments_of_theory(name):
    check_moments(PROCESSES["exploding"], STOCHASTIC[name])


WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), np.array([0.2, 0.3])
LINE = mixture.Mixture.of(WEIGHTS, means=MEANS, stds=STDS)
QUANTILES = (np.arange(16) + 0.5) / 16


def cdf(z, signal=1.0, noise=0.0):
    stds = np.sqrt(signal**2 * STDS**2 + noise**2)
    return (WEIGHTS * scipy.stats.norm.cdf(np.asarray(z, np.float64)[..., None], signal * MEANS, stds)).sum(-1)


def inverse_cdf(*of):
    """The quantiles; the probability flow carries those of the noise to those of the data."""
    return np.array([scipy.optimize.brentq(lambda z, p=p: cdf(z, *of) - p, -1e3, 1e3, xtol=1e-12) for p in QUANTILES])


@pytest.mark.parametrize(
    ("solver", "counts", "order", "tolerance"),
    [
        (partial(Ddim, grid=LogSnr(-np.inf)), (32, 64, 128), 1.0, 0.15),
        pytest.param(partial(DpmSolver, grid=LogSnr(-np.inf)), (32, 64, 96), 2.0, 0.25, marks=pytest.mark.slow),
        pytest.param(partial(Heun, grid=Karras(sigma_max=1e9)), (32, 64, 96), 2.0, 0.25, marks=pytest.mark.slow),
        pytest.param(partial(ExponentialHeun, grid=LogSnr(-np.inf)), (32, 64, 96), 2.0, 0.25, marks=pytest.mark.slow),
        (partial(UniPc, grid=LogSnr(-np.inf)), (16, 24, 32), 3.0, 0.5),
    ],
    ids=["ddim", "dpm", "heun", "exponential", "unipc"],
)
@pytest.mark.parametrize(
    "name", ["linear", pytest.param("exploding", marks=pytest.mark.slow), pytest.param("flow", marks=pytest.mark.slow)]
)
def test_orders_of_convergence(name, solver, counts, order, tolerance):
    """The slope of log error over log steps, from the exact z at the noisy end."""
    process = {
        "linear": VariancePreserving(),
        "exploding": VarianceExploding(0.002, 20.0),
        "flow": RectifiedFlow(0.002, 0.99),
    }[name]
    start = inverse_cdf(*signal_and_noise(process, np.float64(process.last))).astype(np.float32)
    model, truth = LINE.denoiser(process), inverse_cdf()
    found = []
    for count in counts:
        x = sampling.sample(KEY, model, solver(num_steps=count), (16,), start=(start, process.last))
        found.append(np.abs(np.asarray(x, np.float64) - truth).mean())
    slope = -np.polyfit(np.log(counts), np.log(found), 1)[0]
    print(f"errors {found}, order {slope:.2f}")
    assert abs(slope - order) < tolerance


def bent(z_t, t):
    """A network that is no exact denoiser."""
    return jnp.tanh(z_t) * jnp.cos(3 * t[:, None])


@pytest.mark.parametrize(
    "sampler",
    [
        partial(UniPc, 12),
        *(pytest.param(partial(kind, 12), marks=pytest.mark.slow) for kind in (Ddim, DpmSolver, Heun)),
    ],
)
def test_one_network_on_every_process_of_equal_snr_draws_the_same(sampler):
    """Deterministic, from the same z divided by its scale, to 1e-4."""
    ends = 10.0, -5.0
    sigmas = [float(np.exp(-end / 2)) for end in ends]
    model = Denoiser(bent, VariancePreserving(*ends), target=targets.V())
    z = jax.random.normal(KEY, (16, 5))
    sampler = sampler(grid=LogSnr(-9.0))
    flow = RectifiedFlow(*(sigma / (1 + sigma) for sigma in sigmas))
    expected = sampling.sample(KEY, model, sampler, z.shape, start=(z, 1.0))
    assert float(jnp.std(expected)) > 0.3
    for process in (VarianceExploding(*sigmas), flow, VariancePreserving(*ends, "cosine")):
        scale = float(process.signal(process.last) / model.process.signal(1.0))
        x = sampling.sample(KEY, model.on(process), sampler, z.shape, start=(scale * z, process.last))
        np.testing.assert_allclose(x, expected, atol=1e-4)


@each_process_slowly
def test_inversion_leads_back(process):
    """Repeated, it is the inverse of DDIM, of which the last step to clean data is a part."""
    x = jnp.asarray(np.random.default_rng(0).normal(0, 0.3, (8, 1)), jnp.float32)
    model, sampler = GAUSSIAN.denoiser(process), Ddim(60, grid=LogSnr())
    z = sampling.invert(model, sampler, x, iterations=20)
    start = float(sampler.times(process)[0])
    np.testing.assert_allclose(sampling.sample(KEY, model, sampler, x.shape, start=(z, start)), x, atol=2e-4)


@each_process_slowly
def test_inpainting_and_interpolation_keep_what_they_are_given(process):
    """RePaint of correlated data: the mean of the unknown element given the known one, by the formula."""
    means = np.array([[-0.5, -0.5], [0.5, 0.5]])
    model = mixture.Mixture.of([0.5, 0.5], means=means, stds=0.1).denoiser(process)
    x = jnp.tile(jnp.array([[0.5, 0.0]]), (200, 1))
    sampler = Ancestral(20, grid=LogSnr())
    filled = sampling.inpaint(KEY, model, sampler, x, np.array([True, False]), jump=4, resamples=4)
    np.testing.assert_array_equal(filled[:, 0], 0.5)
    assert abs(float(filled[:, 1].mean()) - 0.5) < 0.1
    mixed = sampling.interpolate(KEY, model, sampler, x[:4], -x[:4], float(process.at_share(0.3)), np.array([0.0, 1.0]))
    assert mixed.shape == (2, 4, 2)


@each_process_slowly
def test_guidance_by_a_gradient_is_bayes_rule_for_gaussian_data(process):
    """With log p(y | x) linear in x, the steered score is that of a shifted Gaussian, at each t; on an interval of real
    times, guidance by labels is that of the interval."""
    t, z_t = process.at_share(jnp.array([0.2, 0.6, 0.9])), jnp.array([[0.3], [-0.2], [0.5]])
    shifted = mixture.Mixture.of([1.0], means=[[0.7 + 0.25 * 2.0]], stds=0.5)
    steered = guidance.steered(GAUSSIAN.denoiser(process), lambda x: 2.0 * x[:, 0])
    np.testing.assert_allclose(
        steered.denoise(z_t, t).x, shifted.denoiser(process).denoise(z_t, t).x, rtol=1e-3, atol=1e-4
    )
    guided = guidance.guided(
        shifted.denoiser(process), GAUSSIAN.denoiser(process), 3.0, interval=(float(t[1]) - 1e-3, float(t[1]) + 1e-3)
    )
    x, one, other = (
        model.denoise(z_t, t).x for model in (guided, shifted.denoiser(process), GAUSSIAN.denoiser(process))
    )
    np.testing.assert_allclose(x[::2], one[::2], atol=1e-6)
    np.testing.assert_allclose(x[1], other[1] + 3 * (one[1] - other[1]), rtol=1e-4)


# The bound and the likelihood.


@pytest.mark.parametrize(
    "process", [VariancePreserving(13.3, -5.0), VariancePreserving(13.3, -5.0, "cosine")], ids=repr
)
def test_the_true_x_costs_almost_nothing(process):
    """The floor of the bound: at most 0.01 bits/dim of 8-bit images with these ends of log SNR."""
    source = Digits()
    x = to_unit(np.stack([source[i]["image"] for i in range(32)]))
    model = Denoiser(lambda z_t, t: x, process, target=targets.X())
    limit = bound.bits_per_dim(bound.estimate(KEY, model, x, 4), x)
    print(f"floor {limit.mean():.4f} bits/dim")
    assert 0 < float(limit.mean()) < 0.01
    assert float(bound.bound(KEY, model, x, num_steps=10, grid=Linspace()).bits_per_dim.mean()) < 0.01


@pytest.mark.slow
@each_process
def test_the_limit_of_the_bound_is_the_entropy_of_gaussian_data(process):
    """With the exact denoiser, and ends at which little is lost, the bound of infinitely many steps is tight."""
    x = GAUSSIAN.sample(jax.random.key(1), 4000)
    entropy = 0.5 * np.log(2 * np.pi * np.e * 0.25)
    nats = np.asarray(bound.estimate(KEY, GAUSSIAN.denoiser(process), x, 200, bins=None), np.float64)
    error = nats.std() / np.sqrt(len(nats))
    excess = nats.mean() - entropy
    print(f"excess {excess:.4f} +- {error:.4f}")
    assert error < 0.03
    assert -3 * error - 0.002 < excess < 3 * error + 0.01


@pytest.mark.slow
def test_the_bound_of_many_steps_approaches_its_limit():
    """From above, as 1 / K."""
    process, x = VariancePreserving(), LINE.sample(jax.random.key(1), 2000)
    model = LINE.denoiser(process)
    limit = float(bound.estimate(KEY, model, x, 200, bins=None).mean())
    excess = [
        float(bound.bound(KEY, model, x, num_steps=k, grid=Linspace(), bins=None).total.mean()) - limit
        for k in (10, 20, 200)
    ]
    print(f"limit {limit:.4f}, excess {excess}")
    assert excess[0] > 1.5 * excess[1] > 0
    assert abs(excess[2]) < 0.1 * excess[0]


@each_process_slowly
def test_the_likelihood_is_the_density_of_a_mixture(process):
    if isinstance(process, VariancePreserving):
        process = replace(process, log_snr_min=-12.0)  # z at -5 is not quite normal
    x = jnp.linspace(-1.0, 1.0, 9)
    found = likelihood.log_likelihood(KEY, LINE.denoiser(process), x, trace="exact", bins=None)
    np.testing.assert_allclose(found.log_prob, LINE.log_prob(x), atol=0.02)
    later = likelihood.log_likelihood(KEY, LINE.denoiser(process), x, trace="exact", bins=None, end=4.0)
    blurred = mixture.Mixture.of(WEIGHTS, means=MEANS, stds=np.sqrt(STDS**2 + np.exp(-4.0)))
    np.testing.assert_allclose(later.log_prob, blurred.log_prob(x), atol=0.02)


# Objectives and densities of t.


def network(z, label):
    return jnp.sin(z) + 0.1 * jnp.cos(label)[:, None]


def test_the_objective_of_edm_is_that_of_its_paper():
    """lambda(sigma) || D(y + n; sigma) - y ||^2 with D = c_skip z + c_out F(c_in z) (table 1), in NumPy's float64."""
    process, sigma_data = VarianceExploding(sigma_data=0.5), 0.5
    y, eps = (np.random.default_rng(seed).normal(size=(64, 6)) * scale for seed, scale in ((0, 0.5), (1, 1.0)))
    t = process.at_share(jnp.linspace(0.05, 0.95, 64))
    model = Denoiser(
        lambda z, t: network(process.input_scale(t)[:, None] * z, t), process, target=targets.Edm(sigma_data)
    )
    got = objective.SquaredError()(
        model, jnp.asarray(y, jnp.float32), objective.Draws(t, jnp.asarray(eps, jnp.float32))
    )
    sigma = signal_and_noise(process, np.asarray(t, np.float64))[1][:, None]
    total = sigma**2 + sigma_data**2
    z = y + sigma * eps
    f = np.sin(z / np.sqrt(total)) + 0.1 * np.cos(np.asarray(t, np.float64))[:, None]
    d = sigma_data**2 / total * z + sigma * sigma_data / np.sqrt(total) * f
    expected = (total / (sigma * sigma_data) ** 2 * (d - y) ** 2).mean(1)
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6)


def test_the_objective_of_rectified_flow_is_that_of_its_paper():
    """|| v(z_t, t) - (eps - x) ||^2 with z_t = (1 - t) x + t eps."""
    process = RectifiedFlow()
    x, eps = (np.random.default_rng(seed).normal(size=(64, 6)) for seed in (0, 1))
    t = process.at_share(jnp.linspace(0.0, 1.0, 64))
    model = Denoiser(network, process, target=targets.Velocity())
    got = objective.SquaredError()(
        model, jnp.asarray(x, jnp.float32), objective.Draws(t, jnp.asarray(eps, jnp.float32))
    )
    times = np.asarray(t, np.float64)[:, None]
    v = np.sin((1 - times) * x + times * eps) + 0.1 * np.cos(times)
    np.testing.assert_allclose(got, ((v - (eps - x)) ** 2).mean(1), rtol=2e-6, atol=1e-6)


@each_process
def test_log_normal_times_have_a_log_normal_sigma(process):
    """Cut at the ends of the process: the Kolmogorov-Smirnov test against SciPy's truncated normal."""
    t, weight = timesteps.LogNormalSigma(-0.5, 1.3).draw(KEY, (), process, 4000)
    signal, noise = signal_and_noise(process, np.asarray(t, np.float64))
    ends = np.log(
        [np.divide(*signal_and_noise(process, np.float64(end))[::-1]) for end in (process.first, process.last)]
    )
    law = scipy.stats.truncnorm(*((ends + 0.5) / 1.3), loc=-0.5, scale=1.3)
    assert scipy.stats.kstest(np.log(noise / signal), law.cdf).pvalue > 1e-3
    np.testing.assert_array_equal(weight, 1.0)


def test_logit_normal_times():
    process = RectifiedFlow()
    t, weight = timesteps.LogitNormal(0.3, 0.8).draw(KEY, (), process, 4000)
    share = np.asarray(process.share(t), np.float64)
    assert scipy.stats.kstest(scipy.special.logit(share), scipy.stats.norm(0.3, 0.8).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(weight, 1.0)


@pytest.mark.parametrize(
    "rule",
    [
        timesteps.UniformTimesteps(),
        timesteps.StratifiedTimesteps(),
        timesteps.LogitNormal(keep_mean=True),
        timesteps.LogNormalSigma(-0.5, 2.5, keep_mean=True),
        timesteps.LossAwareTimesteps(length=2, uniform_share=0.3),
    ],
    ids=repr,
)
def test_a_rule_that_keeps_the_mean_keeps_it(rule):
    """E[weight f(t)] is the mean of f over t."""
    process = VariancePreserving()
    memory = rule.start(process)
    if jax.tree.leaves(memory):
        for _ in range(2):
            t = process.at_share((jnp.arange(100) + 0.5) / 100)
            memory = rule.update(memory, process, t, 0.1 + t**2)
        assert float(rule.probabilities(memory).max()) > 0.015
    t, weight = rule.draw(KEY, memory, process, 200_000)
    values = np.asarray(weight, np.float64) * np.cos(2 * np.asarray(t, np.float64))
    assert abs(values.mean() - np.sin(2) / 2) < 4 * values.std() / np.sqrt(len(values))
    assert abs(float(weight.mean()) - 1) < 4 * float(weight.std()) / np.sqrt(len(values)) + 1e-6


@pytest.mark.parametrize("rule", [timesteps.LogitNormal(), timesteps.LogNormalSigma()], ids=repr)
def test_a_density_of_real_times_does_not_fit_a_chain(rule):
    with pytest.raises(ValueError, match=r"timesteps is Log.*; expected UniformTimesteps\(\), .* for a chain"):
        rule.check(schedule.Linear().build())


# What is refused.


@dataclass(frozen=True)
class Rising(Continuous):
    def signal(self, t):
        return 0.1 + 0 * t

    def noise(self, t):
        return 2.0 - t


@dataclass(frozen=True)
class Scalar(Circular):
    def signal(self, t):
        return jnp.float32(0.5)


@dataclass(frozen=True)
class OfNumpy(Circular):
    def signal(self, t):
        return np.cos(np.pi / 2 * t)


@dataclass
class NotFrozen(Continuous):
    first: float = 0.1

    def signal(self, t):
        return 1 - t

    def noise(self, t):
        return t


def denoiser(process):
    return Denoiser(bent, process, target=targets.X())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: denoiser(Rising()), "Rising.* is .*; expected finite ones, noise > 0, and a falling SNR"),
        (lambda: denoiser(OfNumpy()), "process is OfNumpy.*, which computes in NumPy; expected functions of jax.numpy"),
        (lambda: denoiser(NotFrozen()), r"process is .*NotFrozen.*: a class with @dataclass\(frozen=True\)"),
        (
            lambda: Heun(5, Linspace()).times(RectifiedFlow(last=1.0)),
            "sampler is Heun.*; expected one on a grid that begins at a finite sigma.*t = 1.0 nothing of x is left",
        ),
        (
            lambda: LogSnr(-np.inf).times(RectifiedFlow(last=1.0), 5),
            "log_snr_min is -inf; expected a finite number, as the process ends at SNR 0",
        ),
        (lambda: Rising().build(), "expected finite ones, noise > 0, and a falling SNR"),
        (lambda: Scalar().build(), "Scalar.signal is .*; expected an elementwise function of t"),
        (lambda: Circular(0.5, 0.5).build(), "last is 0.5; expected more than first"),
        (lambda: RectifiedFlow(0.0), "first is 0.0; expected more than 0"),
        (lambda: RectifiedFlow(last=1.5), "last is 1.5; expected at most 1"),
        (lambda: VariancePreserving(-5.0, 13.3), "log_snr_max is -5.0; expected more than 13.3"),
        (lambda: VariancePreserving(shape="sine"), "shape is .sine.; expected one of 'linear', 'cosine'"),
        (lambda: VarianceExploding(sigma_max=0.001), "sigma_min is 0.002"),
        (lambda: Ddim(None).times(RectifiedFlow()), "num_steps is None; expected a whole number of steps, at least 1"),
        (lambda: sampling.Leading().times(RectifiedFlow(), 5), "expected a chain, such as .*, for Leading"),
        (lambda: forward.transition(RectifiedFlow(), jnp.zeros((2, 3)), 0.5), "a chain, .* for s=None"),
        (
            lambda: forward.posterior(RectifiedFlow(), jnp.zeros((2, 3)), jnp.zeros((2, 3)), 0.5),
            "a chain, .* for s=None",
        ),
        (lambda: RectifiedFlow().step(0.5, 0.7), "s is .*; expected times before t"),
        (lambda: RectifiedFlow().step(1.5, 0.7), "t = 1.5 is outside"),
        (lambda: targets.Mean().pair(RectifiedFlow(), 0.5), "expected a chain"),
        (lambda: Heun(churn=-1.0), "churn is -1.0; expected 0 or more"),
        (lambda: Heun(churn_min=2.0, churn_max=1.0), "churn_max is 1.0; expected None or more than churn_min"),
        (lambda: schedule.Betas([0.5, 1.0, 0.5]), "beta at t = 2 is 1; .*only the last one may be 1"),
    ],
)
def test_what_is_wrong_is_named(unchecked, call, message):
    with pytest.raises(ValueError, match=message):
        call()
