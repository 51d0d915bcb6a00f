"""The grids: as many steps as asked for, falling to 0, where the formulas of the papers put them up to rounding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.clipping import Clip
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.grids import (
    Given,
    Grid,
    Karras,
    Leading,
    Linspace,
    LogSnr,
    Quadratic,
    Uniform,
    tail,
    times_before,
)
from ddpm_jax.diffusion.schedule import Betas, Cosine, Linear, Sigmoid
from ddpm_jax.sampling import Ancestral, Ddim, Heun, sample

GRIDS = (
    Uniform(),
    Leading(),
    Leading(offset=1),
    Linspace(),
    Quadratic(),
    LogSnr(),
    Karras(),
    Karras(rho=3.0, sigma_min=0.05, sigma_max=5.0),
)
CHAINS = (
    Linear(),
    Linear(num_steps=20),
    Cosine(),
    Cosine(num_steps=8, offset=0.0),
    Sigmoid(num_steps=300),
    Betas((0.1, 0.2, 0.05, 0.4)),
    Betas((0.5,)),
)


@pytest.fixture(scope="module")
def long():
    """A chain so long that rounding moves a grid little."""
    return Linear(num_steps=20_000).build()


@pytest.fixture(scope="module", params=CHAINS, ids=lambda spec: f"{type(spec).__name__}-{spec.num_steps}")
def schedule(request):
    return request.param.build()


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_a_grid_has_the_steps_asked_for(schedule, grid):
    """Strictly falling from T or below to 0; with as many steps as the chain has, the whole chain."""
    length = schedule.num_steps
    counts = sorted({1, 2, 3, 7, 50, length // 3, length // 2, length - 1, length})
    for count in [count for count in counts if 1 <= count <= length]:
        times = grid.times(schedule, count)
        assert times.dtype == np.int32
        assert len(times) == count + 1
        assert times[-1] == 0
        assert times[0] <= length
        assert np.all(np.diff(times) < 0)
    for whole in (length, None):
        np.testing.assert_array_equal(grid.times(schedule, whole), np.arange(length, -1, -1))


@pytest.mark.parametrize(("length", "count"), [(1000, None), (1000, 50), (1000, 333), (7, 5), (4, 4), (9, 1)])
def test_uniform_steps_differ_by_one_at_most(length, count):
    times = Uniform().times(Linear(num_steps=length).build(), count)
    steps = -np.diff(times)
    assert times[0] == length
    assert steps.max() - steps.min() <= 1


def test_quadratic_steps_are_even_in_the_root(long):
    times = Quadratic().times(long, 50)
    np.testing.assert_allclose(times, 20_000 * np.linspace(1, 0, 51) ** 2, atol=0.5)


def test_log_snr_steps_are_even_in_log_snr(long):
    """From T to 1."""
    times = LogSnr().times(long, 40)
    assert (times[0], times[-2]) == (20_000, 1)
    log_snr = np.asarray(long.log_snrs[0], np.float64)[1:]
    assert_placed(long, times[:-1], np.linspace(log_snr[-1], log_snr[0], 40))


@pytest.mark.parametrize("grid", [Karras(sigma_min=0.003), Karras(rho=3.0, sigma_min=0.01, sigma_max=20.0)], ids=repr)
def test_karras_steps_are_those_of_the_paper(long, grid):
    """sigma_i = (max^(1/rho) + i / (N - 1) (min^(1/rho) - max^(1/rho)))^rho, equation 5."""
    count, rho = 30, grid.rho
    ends = grid.sigma_max ** (1 / rho), grid.sigma_min ** (1 / rho)
    sigma = (ends[0] + np.arange(count) / (count - 1) * (ends[1] - ends[0])) ** rho
    times = grid.times(long, count)
    assert_placed(long, times[:-1], -2 * np.log(sigma))
    middle = slice(0, count - 5)  # where neighbouring timesteps are close in sigma
    sigmas = np.asarray(long.noise(times[:-1]) / long.signal(times[:-1]))
    np.testing.assert_allclose(sigmas[middle], sigma[middle], rtol=0.05)


def assert_placed(schedule, times, log_snr) -> None:
    """Each of the times is next to where log snr takes the value, but for the few that were moved apart."""
    curve = np.asarray(schedule.log_snrs[0], np.float64)[1:]
    exact = np.interp(-log_snr, -curve, np.arange(1, len(curve) + 1))
    near = np.abs(times - exact) <= 0.5 + 1e-6
    assert near.mean() >= 0.8
    assert np.all(near[exact > 20])
    np.testing.assert_allclose(times, exact, atol=(~near).sum() + 0.5)


def test_karras_keeps_to_the_noise_that_the_chain_has():
    """Its ends are those of the chain where the chain does not reach the ones asked for."""
    schedule = Linear(num_steps=200).build()
    sigma = np.asarray(schedule.noises / schedule.signals)
    wide = Karras(sigma_min=1e-6, sigma_max=1e6).times(schedule, 10)
    assert (wide[0], wide[-2]) == (200, 1)
    narrow = Karras(sigma_min=0.1, sigma_max=10.0).times(schedule, 10)
    assert sigma[narrow[0] - 1] < 10.0 < sigma[narrow[0] + 1]
    assert sigma[narrow[-2] - 1] < 0.1 < sigma[narrow[-2] + 1]


def test_log_snr_skips_what_is_nothing_but_noise():
    """Cosine schedules end at log snr -20, linear ones at -10."""
    for spec, first in ((Cosine(num_steps=5000), -10.2), (Linear(), None)):
        schedule = spec.build()
        begin = LogSnr().times(schedule, 20)[0]
        assert float(schedule.log_snr(begin)) == pytest.approx(first or float(schedule.log_snr(schedule.last)), abs=0.1)


def test_given_timesteps_are_visited():
    schedule = Linear(num_steps=20).build()
    for timesteps in ((20, 7, 3), [20, 7, 3, 0], np.array([20, 7, 3])):
        grid = Given(timesteps)
        assert grid == Given((20, 7, 3))
        assert hash(grid) == hash(Given((20, 7, 3)))
        for count in (None, 3):
            np.testing.assert_array_equal(grid.times(schedule, count), [20, 7, 3, 0])


def test_a_grid_of_your_own_is_rounded_and_kept_apart():
    class Crowded(Grid):
        def places(self, schedule, num_steps):
            return np.full(num_steps, 6.3)

    np.testing.assert_array_equal(Crowded().times(Linear(num_steps=20).build(), 4), [6, 5, 4, 3, 0])
    np.testing.assert_array_equal(Crowded().times(Linear(num_steps=20).build(), 8), [8, 7, 6, 5, 4, 3, 2, 1, 0])


def test_the_tail_of_a_chain_begins_anywhere():
    times = np.array([20, 15, 10, 5, 0], np.int32)
    np.testing.assert_array_equal(tail(times, 10), [10, 5, 0])
    np.testing.assert_array_equal(tail(times, 12), [12, 10, 5, 0])
    np.testing.assert_array_equal(tail(times, 20), times)
    np.testing.assert_array_equal(tail(times, 1), [1, 0])
    assert tail(times, 3).dtype == np.int32
    assert tail(times.astype(np.float32), 3.5).dtype == np.float32


def test_the_time_before_is_the_nearest_of_the_chain_above():
    times = np.array([20, 15, 10, 5, 0])
    np.testing.assert_array_equal(times_before(times, times[:-1]), [20, 20, 15, 10])
    np.testing.assert_array_equal(times_before(times, np.array([25, 20, 17, 12, 1])), [25, 20, 20, 15, 5])


# What does not fit.


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@pytest.mark.parametrize("count", [21, 0, -3])
def test_a_chain_has_only_so_many_steps(grid, count):
    with pytest.raises(ValueError, match=f"num_steps is {count}; expected 1 to 20, the number of steps of the process"):
        grid.times(Linear(num_steps=20).build(), count)


@pytest.mark.parametrize(
    ("timesteps", "count", "message"),
    [
        ((21, 3), None, "timesteps is 21; expected at most 20, the process's last step"),
        ((7.5, 3.0), None, r"timesteps has dtype float64; expected integers in 1\.\.20"),
        ((20, 7, 3), 5, "num_steps is 5; expected None, or 3, the number of timesteps given"),
    ],
)
def test_given_timesteps_fit_the_chain(timesteps, count, message):
    with pytest.raises(ValueError, match=message):
        Given(timesteps).times(Linear(num_steps=20).build(), count)


@pytest.mark.parametrize(
    "timesteps", [(), (0,), (3, 7), (7, 7, 3), (7, -1), ("7", "3"), (7, math.nan), ((7, 3),), 7], ids=repr
)
def test_given_timesteps_are_numbers_that_fall(timesteps):
    with pytest.raises(ValueError, match=r"timesteps is .*; expected numbers, falling, none below 0"):
        Given(timesteps)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rho": 0.0}, "rho is 0.0; expected more than 0"),
        ({"rho": float("nan")}, "rho is nan"),
        ({"sigma_min": 0.0}, "sigma_min is 0.0; expected more than 0"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_max is 1.0; expected more than sigma_min, 2.0"),
    ],
)
def test_the_noises_of_karras_are_ordered(fields, message):
    with pytest.raises(ValueError, match=message):
        Karras(**fields)


@pytest.mark.parametrize("sampler", [Ddim(num_steps=4, grid=LogSnr()), Heun(num_steps=4)], ids=["log-snr", "karras"])
def test_under_jit_these_grids_need_the_schedule_as_a_constant(sampler):
    schedule = Linear(num_steps=20).build()

    def draw(schedule):
        return sample(
            jax.random.key(0), Denoiser(lambda z, t: jnp.zeros_like(z), schedule, clip=Clip()), sampler, (2, 3)
        )

    with pytest.raises(ValueError, match="build the process outside the jitted function"):
        jax.jit(draw)(schedule)
    assert jax.eval_shape(lambda: draw(schedule)).shape == (2, 3)


@pytest.mark.parametrize("sampler", [Ancestral(), Ddim(num_steps=4, grid=Quadratic())], ids=repr)
def test_under_jit_the_others_take_any_schedule(sampler):
    shape = jax.eval_shape(
        lambda schedule: sample(
            jax.random.key(0), Denoiser(lambda z, t: jnp.zeros_like(z), schedule, clip=Clip()), sampler, (2, 3)
        ),
        Linear(num_steps=20).build(),
    )
    assert shape.shape == (2, 3)


@pytest.mark.parametrize(
    ("grid", "count", "expected"),
    [
        # What set_timesteps of diffusers' DDPMScheduler gives for 1000 steps, and 1 more.
        (Leading(), 10, [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
        (Leading(), 3, [667, 334, 1]),
        (Leading(offset=1), 4, [752, 502, 252, 2]),
        (Linspace(), 4, [1000, 667, 334, 1]),
        (Linspace(), 3, [1000, 501, 1]),
        (Uniform(), 3, [1000, 667, 333]),
    ],
    ids=repr,
)
def test_the_timesteps_of_diffusers(grid, count, expected):
    np.testing.assert_array_equal(grid.times(Linear().build(), count), [*expected, 0])
