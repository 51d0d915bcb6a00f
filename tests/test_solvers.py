"""The samplers as solvers: their orders of convergence, their distributions, and an independent implementation.

The data are a mixture of two normals on the line, whose exact denoiser is known.  The probability flow carries
quantiles, so that its solution is known, too: P(z_t at time t is below z_t) is the same at all times.
"""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import schedulers_reference as reference
import scipy.optimize
import scipy.stats

from ddpm_jax.diffusion.arrays import lookup
from ddpm_jax.diffusion.clipping import Clip
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.grids import Karras, LogSnr, Quadratic, Uniform
from ddpm_jax.diffusion.schedule import Chain, Cosine, Linear
from ddpm_jax.diffusion.targets import X
from ddpm_jax.diffusion.variance import FixedLarge, FixedSmall
from ddpm_jax.sampling import Ancestral, Ddim, DpmSolver, ExponentialHeun, Heun, Sampler, StepInput, invert, sample

WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), np.array([0.2, 0.3])


def mixture_x(schedule: Chain, z_t, t):
    """E[x | z_t] for data from the mixture, each element of z_t for itself."""
    signal, noise_var = (lookup(of, t, z_t)[..., None] for of in (schedule.signal, schedule.noise_var))
    var = signal**2 * STDS**2 + noise_var
    residual = z_t[..., None] - signal * MEANS
    logits = jnp.log(WEIGHTS) - 0.5 * residual**2 / var - 0.5 * jnp.log(var)
    return (jax.nn.softmax(logits, axis=-1) * (MEANS + signal * STDS**2 / var * residual)).sum(-1)


def exact(schedule: Chain):
    """predict(z_t, t) = E[x | z_t]; a pytree, so that what was compiled for one schedule serves another."""
    return jax.tree_util.Partial(mixture_x, schedule)


def mixture_cdf(z, signal: float = 1.0, noise_var: float = 0.0):
    """P(z_t < z), at t = 0 that of the data."""
    stds = np.sqrt(signal**2 * STDS**2 + noise_var)
    return (WEIGHTS * scipy.stats.norm.cdf(np.asarray(z, np.float64)[..., None], signal * MEANS, stds)).sum(-1)


def flow(schedule: Chain, z_t: np.ndarray, t: int) -> np.ndarray:
    """The x to which the probability flow carries each z_t, in float64."""
    below = mixture_cdf(z_t, float(schedule.signal(t)), float(schedule.noise_var[t]))
    return np.array([scipy.optimize.brentq(lambda x, p=p: mixture_cdf(x) - p, -5, 5, xtol=1e-12) for p in below])


@pytest.fixture(scope="module")
def fine():
    """A chain so long that rounding a grid to its timesteps does not matter."""
    return Cosine(num_steps=20_000).build()


STARTS = scipy.stats.norm.ppf((np.arange(16) + 0.5) / 16).astype(np.float32)


def run(schedule: Chain, sampler: Sampler) -> tuple[np.ndarray, np.ndarray]:
    """(x, the x of the exact flow) from each of STARTS."""
    t = int(sampler.times(schedule)[0])
    x = sample(
        jax.random.key(0), Denoiser(exact(schedule), schedule, target=X()), sampler, STARTS.shape, start=(STARTS, t)
    )
    return np.asarray(x, np.float64), flow(schedule, STARTS, t)


@pytest.mark.parametrize(
    ("solver", "counts", "order", "tolerance"),
    [
        (Ddim, (16, 32, 64), 1.0, 0.15),
        (partial(DpmSolver, grid=Karras()), (32, 64, 96), 2.0, 0.25),
        (partial(DpmSolver, grid=LogSnr()), (32, 64, 96), 2.0, 0.25),
        pytest.param(Heun, (32, 64, 96), 2.0, 0.25, marks=pytest.mark.slow),
        (ExponentialHeun, (16, 32, 64), 2.0, 0.25),
        (partial(ExponentialHeun, grid=Karras()), (32, 64, 96), 2.0, 0.25),
    ],
    ids=["ddim", "dpm-karras", "dpm-log-snr", "heun", "exponential", "exponential-karras"],
)
def test_the_order_of_convergence(fine, solver, counts, order, tolerance):
    """The slope of log error over log steps; the errors fall from 1e-1 to 1e-3, far above those of float32."""
    errors = [np.abs(np.subtract(*run(fine, solver(num_steps=count)))).mean() for count in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    print(f"errors {errors}, order {slope:.2f}")
    assert errors[-1] > 1e-4
    assert abs(slope - order) < tolerance


@pytest.mark.parametrize(
    ("sampler", "variance"),
    [
        pytest.param(Ancestral(), FixedSmall(), marks=pytest.mark.slow),
        (Ancestral(), FixedLarge()),
        (Ddim(num_steps=200), FixedSmall()),
        (Ddim(num_steps=200, eta=0.5), FixedSmall()),
        (DpmSolver(num_steps=50, grid=Quadratic()), FixedSmall()),
        (DpmSolver(num_steps=100, grid=Quadratic(), sde=True), FixedSmall()),
        (Heun(num_steps=50), FixedSmall()),
        (ExponentialHeun(num_steps=50), FixedSmall()),
    ],
    ids=["small", "large", "ddim", "ddim-eta", "dpm", "dpm-sde", "heun", "exponential"],
)
def test_samples_of_a_mixture_are_distributed_as_the_mixture(sampler, variance):
    schedule, options = Cosine(num_steps=500).build(), {"target": X()}
    x = sample(jax.random.key(0), Denoiser(exact(schedule), schedule, variance=variance, **options), sampler, (20, 200))
    result = scipy.stats.kstest(np.asarray(x, np.float64).ravel(), mixture_cdf)
    print(f"distance {result.statistic:.4f}, p {result.pvalue:.3f}")
    assert result.pvalue > 1e-3


@pytest.mark.parametrize(
    ("sampler", "count"),
    [
        (Ancestral(num_steps=5), 5),
        (Ddim(num_steps=5), 5),
        (DpmSolver(num_steps=5), 5),
        (Heun(num_steps=5), 9),
        (Heun(num_steps=1), 1),
        (Heun(num_steps=None), 79),
        (ExponentialHeun(num_steps=5), 9),
    ],
    ids=repr,
)
def test_the_network_is_evaluated_as_often_as_the_sampler_says(sampler, count):
    """Heun's method evaluates it twice in each step but the last.  A chain begun later leaves steps out."""
    schedule, calls = Cosine(num_steps=40).build(), []

    def predict(z_t, t):
        jax.debug.callback(lambda t: calls.append(int(t[0])), t)
        return jnp.tanh(z_t)

    times = sampler.times(schedule)
    start = None if sampler.stochastic else (jnp.ones(3), int(times[0]))
    jax.block_until_ready(
        sample(jax.random.key(0), Denoiser(predict, schedule, clip=Clip()), sampler, (3,), start=start)
    )
    jax.effects_barrier()
    assert sampler.evaluations(schedule) == count
    assert len(calls) == count
    assert sorted(set(calls)) == sorted(times[:-1])


@partial(jax.jit, static_argnames="sampler")
def first_steps(sampler: Sampler, schedule: Chain, t, earlier, noise):
    """Each step of a chain from z = 0.3, as if it were the first: without a memory of others."""
    decoder = Denoiser(exact(schedule), schedule, X(), FixedSmall())
    z, noise = jnp.full(t.shape, 0.3), jnp.full(t.shape, noise)
    return sampler.step(
        decoder, StepInput(z, schedule.step(t, earlier), decoder.denoise(z, t), noise), sampler.start(z)
    )[0]


def test_dpm_solver_without_its_memory_is_ddim_or_ancestral_sampling():
    """Of first order, the form for the flow is DDIM, and that for the reverse-time SDE draws from the posterior."""
    schedule = Cosine(num_steps=100).build()
    times = Ddim(num_steps=30).times(schedule)
    for noise in (0.0, 1.0):
        args = (schedule, times[:-1], times[1:], noise)
        np.testing.assert_allclose(first_steps(DpmSolver(), *args), first_steps(Ddim(), *args), atol=2e-5)
        for same in (Ddim(eta=1.0), Ancestral()):
            np.testing.assert_allclose(first_steps(DpmSolver(sde=True), *args), first_steps(same, *args), atol=2e-5)


def on_a_line(schedule: Chain, z_t, t):
    """x = 0.3 - 0.2 lambda, whatever z is."""
    return jnp.broadcast_to(0.3 - 0.1 * jnp.log(lookup(schedule.snr, t, z_t)), z_t.shape)


@pytest.mark.parametrize("spec", [Linear(), Cosine()], ids=["linear", "cosine"])
def test_the_exponential_form_is_exact_for_an_x_that_is_a_line_in_lambda(spec):
    """noise_s int e^lambda (a + b lambda) dlambda = noise_s [e^lambda (a + b lambda - b)], for steps of any length."""
    schedule, alpha_bar = spec.build(), np.cumprod(1 - spec.betas())
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)

    def antiderivative(t):
        lam = np.log(signal[t - 1] / noise[t - 1])
        return np.exp(lam) * (0.3 - 0.2 * lam + 0.2)

    t = np.array([2, 10, 300, 301, 700, 1000, 1000, 1000])
    s = np.array([1, 1, 200, 300, 699, 999, 500, 1])
    z = np.random.default_rng(0).normal(size=t.shape).astype(np.float32)
    decoder = Denoiser(jax.tree_util.Partial(on_a_line, schedule), schedule, X(), FixedSmall())

    @jax.jit
    @jax.vmap
    def step(z, t, s):
        now = StepInput(z[None], schedule.step(t, s), decoder.denoise(z[None], t), jnp.zeros(1))
        return ExponentialHeun().step(decoder, now, ())[0][0]

    got = step(z, t, s)
    expected = noise[s - 1] * (z / noise[t - 1] + antiderivative(s) - antiderivative(t))
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def test_the_exponential_form_is_bounded_where_that_in_sigma_is_not():
    """On grids that begin where a cosine schedule ends; there Heun warns, and is off by more than the data's range."""
    schedule = Cosine(num_steps=1000).build()
    for grid in (Uniform(), Quadratic()):
        for num_steps in (5, 18):
            x, truth = run(schedule, ExponentialHeun(num_steps, grid))
            assert np.abs(x - truth).mean() < {5: 0.1, 18: 0.03}[num_steps]
    for grid, num_steps in ((Uniform(), 5), (Quadratic(), 18)):
        with pytest.warns(
            UserWarning, match=r"step from t = 1000 to \d+ multiplies errors of eps by \d+, .*Exponential"
        ):
            x, truth = run(schedule, Heun(num_steps, grid))
        assert np.abs(x - truth).mean() > 0.5


def test_heun_does_not_warn_where_it_is_bounded():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for spec in (Linear(), Cosine(), Cosine(50), Linear(num_steps=1)):
            for count in {5, 18, spec.num_steps} if spec.num_steps > 1 else {1}:
                Heun(count).times(spec.build())
        Heun(18, Uniform()).times(Linear().build())
        jax.eval_shape(lambda s: jnp.asarray(Heun(5, Uniform()).times(s)), Cosine().build())


def test_the_default_grid_of_dpm_solver_is_the_better_one():
    """For the mixture, and for either schedule: at most half the error that Uniform has."""
    for spec in (Linear(), Cosine()):
        errors = [
            np.abs(np.subtract(*run(spec.build(), DpmSolver(10, **grid)))).mean() for grid in ({}, {"grid": Uniform()})
        ]
        print(errors)
        assert errors[0] < 0.5 * errors[1]


# From data to noise.


def there_and_back(num_steps: int, iterations: int) -> float:
    """The mean error of x that was inverted and sampled again."""
    schedule, sampler = Cosine(num_steps=1000).build(), Ddim(num_steps=num_steps)
    x = flow(schedule, STARTS, 1000).astype(np.float32)
    z = invert(Denoiser(exact(schedule), schedule, target=X()), sampler, x, iterations=iterations)
    back = sample(jax.random.key(0), Denoiser(exact(schedule), schedule, target=X()), sampler, x.shape, start=(z, 1000))
    return float(np.abs(back - x).mean())


def test_inversion_is_of_first_order():
    counts = (50, 100, 200)
    errors = [there_and_back(count, 1) for count in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    print(f"errors {errors}, order {slope:.2f}")
    assert abs(slope - 1) < 0.2


def test_inversion_repeated_is_exact():
    errors = [there_and_back(100, iterations) for iterations in (1, 2, 20)]
    print(errors)
    assert errors[0] > 3 * errors[1]
    assert errors[2] < 2e-6


def test_inversion_finds_the_noise_that_the_flow_came_from(fine):
    x = flow(fine, STARTS, fine.num_steps).astype(np.float32)
    z = invert(Denoiser(exact(fine), fine, target=X()), Ddim(num_steps=1000), x, iterations=3)
    np.testing.assert_allclose(z, STARTS, atol=0.02)


@pytest.mark.parametrize("sampler", [Ddim(eta=0.5), Ancestral(), DpmSolver(), Heun()], ids=repr)
def test_only_deterministic_ddim_is_inverted(fine, sampler):
    with pytest.raises(ValueError, match=rf"sampler is {type(sampler).__name__}\(.* a Ddim with eta=0"):
        invert(Denoiser(exact(fine), fine), sampler, STARTS)


def test_inversion_takes_an_iteration_at_least(fine):
    with pytest.raises(ValueError, match="iterations is 0; expected a whole number, at least 1"):
        invert(Denoiser(exact(fine), fine), Ddim(), STARTS, iterations=0)


# diffusers.


@pytest.fixture(scope="module")
def stored():
    return reference.stored()


def of_kind(case) -> str:
    return case.name.partition(f"_{case.schedule}")[0].partition("_stride")[0]


KINDS = sorted({of_kind(case) for case in reference.CASES.values()})


@pytest.mark.parametrize("kind", KINDS)
def test_samplers_compute_what_the_schedulers_of_diffusers_compute(stored, kind):
    """The stored results, and how they were made: tests/reference/schedulers_reference.py."""
    cases = {name: case for name, case in reference.CASES.items() if of_kind(case) == kind}
    assert len(cases) >= 4
    for name, case in cases.items():
        assert stored[name].std() > 0.1
        np.testing.assert_allclose(reference.ours(case), stored[name], rtol=1e-6, atol=1e-5, err_msg=name)


def test_the_loop_runs_the_steps_that_diffusers_runs(stored):
    """The same timesteps through `sample`, for a run without noise."""
    (name, case) = next((name, case) for name, case in reference.CASES.items() if name.startswith("dpm_linear"))
    schedule = Linear().build()
    start = (reference.values(case, "z")[0], case.times[0])
    predict = jax.tree_util.Partial(reference.model, schedule)
    x = sample(jax.random.key(0), Denoiser(predict, schedule, target=X()), case.sampler, reference.SHAPE, start=start)
    np.testing.assert_allclose(x, stored[name][-1], atol=1e-5)
