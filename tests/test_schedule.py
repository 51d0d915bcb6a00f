"""Every schedule's tables against the formulas in extended precision."""

import math
from dataclasses import dataclass

import jax
import numpy as np
import pytest
import scipy.special

from ddpm_jax.diffusion.schedule import (
    Betas,
    Chain,
    Cosine,
    Linear,
    ScaledLinear,
    Schedule,
    Sigmoid,
    from_betas,
    resample,
)

TABLES = ("beta", "alpha_bar", "noise_var", "signals", "noises", "snr")


def tables_of(schedule: Chain) -> dict[str, np.ndarray]:
    """The numbers of a chain at t = 0..T."""
    t = np.arange(schedule.num_steps + 1)
    return {name: np.asarray(schedule.snr(t) if name == "snr" else getattr(schedule, name)) for name in TABLES}


def alpha_bar_of(betas: np.ndarray) -> np.ndarray:
    """alpha_bar_1..alpha_bar_T by multiplying."""
    return np.cumprod(1 - betas.astype(np.longdouble))


def test_tables_hold_the_formulas_to_float32_precision(spec):
    schedule, alpha_bar = spec.build(), alpha_bar_of(spec.betas())
    expected = {
        "beta": spec.betas(),
        "alpha_bar": alpha_bar,
        "noise_var": 1 - alpha_bar,
        "signals": np.sqrt(alpha_bar),
        "noises": np.sqrt(1 - alpha_bar),
        "snr": alpha_bar / (1 - alpha_bar),
    }
    for name, table in tables_of(schedule).items():
        assert table.dtype == np.float32
        assert table.shape == (spec.num_steps + 1,)
        np.testing.assert_allclose(table[1:], expected[name].astype(np.float64), rtol=1e-6, err_msg=name)


def test_index_0_is_clean(spec):
    schedule = spec.build()
    assert [float(table[0]) for table in tables_of(schedule).values()] == [0, 1, 0, 1, 0, math.inf]
    assert schedule.log_snr(0) == math.inf


def test_data_is_lost_at_every_step(spec):
    schedule = spec.build()
    assert schedule.num_steps == spec.num_steps
    beta, alpha_bar, noise_var, signal, noise, snr = tables_of(schedule).values()
    assert np.all((beta[1:] > 0) & (beta[1:] < 1))
    assert np.all(np.diff(alpha_bar) < 0)
    assert np.all(np.diff(snr) < 0)
    assert np.all(np.diff(noise_var) >= 0)
    assert alpha_bar[-1] > 0
    assert noise_var[-1] <= 1
    np.testing.assert_allclose(signal**2 + noise**2, 1, rtol=3e-7)


def test_a_schedule_is_a_pytree():
    schedule = Cosine(num_steps=8).build()
    total = jax.jit(lambda schedule: schedule.alpha_bar.sum() + schedule.num_steps)(schedule)
    assert float(total) == pytest.approx(np.asarray(schedule.alpha_bar).sum() + 8)


@pytest.mark.parametrize(("kind", "start", "end"), [(Linear, 1e-4, 0.02), (ScaledLinear, 0.00085, 0.012)])
def test_published_betas_at_1000_steps(kind, start, end):
    t = np.arange(1, 1001)
    power = 1 if kind is Linear else 0.5
    betas = (start**power + (t - 1) / 999 * (end**power - start**power)) ** (1 / power)
    np.testing.assert_allclose(kind().betas(), betas, rtol=1e-12)


@pytest.mark.parametrize("kind", [Linear, ScaledLinear])
@pytest.mark.parametrize("num_steps", [1, 2, 20, 100, 333, 4000])
def test_another_length_keeps_the_end_of_the_chain(kind, num_steps):
    published, resampled = (alpha_bar_of(kind(steps).betas())[-1] for steps in (1000, num_steps))
    assert float(resampled) == pytest.approx(float(published), rel=1e-9)


def test_a_shorter_chain_visits_every_tenth_alpha_bar():
    published, short = (alpha_bar_of(Linear(steps).betas()) for steps in (1000, 100))
    np.testing.assert_allclose(short.astype(float), published[9::10].astype(float), rtol=1e-11)


def test_resampling_splits_each_step_exactly():
    betas = np.array([0.1, 0.3])
    halves = resample(betas, num_steps=4)
    np.testing.assert_allclose(alpha_bar_of(halves)[1::2].astype(np.float64), alpha_bar_of(betas), rtol=1e-14)
    assert halves[0] == pytest.approx(halves[1])


def test_given_betas_are_taken_exactly():
    values = (0.1, 0.2, 0.05, 0.4)
    np.testing.assert_array_equal(np.asarray(Betas(values).build().beta)[1:], np.float32(values))
    given = Linear(num_steps=7, beta_start=0.01, beta_end=0.5)
    np.testing.assert_array_equal(np.asarray(given.build().beta)[1:], np.linspace(0.01, 0.5, 7).astype(np.float32))


def test_betas_come_as_array_list_or_tuple(unchecked):
    values = (0.1, 0.2, 0.05, 0.4)
    assert Betas(np.array(values)) == Betas(list(values)) == Betas(values)
    assert hash(Betas(np.array(values))) == hash(Betas(values))


@pytest.mark.parametrize("num_steps", [8, 1000])
def test_cosine_is_its_curve_up_to_the_cut(num_steps):
    spec = Cosine(num_steps)
    uncut = np.flatnonzero(np.append(spec.betas(), 1) >= spec.max_beta)[0] + 1
    curve = np.cos((np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(np.asarray(spec.build().alpha_bar)[:uncut], (curve / curve[0])[:uncut], rtol=1e-6)
    assert spec.betas().max() == spec.max_beta


@pytest.mark.parametrize(("start", "end", "temperature"), [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.5), (-3.0, 1.0, 1.5)])
def test_sigmoid_is_its_curve_up_to_the_cut(start, end, temperature):
    spec = Sigmoid(100, start, end, temperature)
    fall = scipy.special.expit(-np.linspace(start, end, 101) / temperature)
    curve = (fall - fall[-1]) / (fall[0] - fall[-1])
    np.testing.assert_allclose(np.asarray(spec.build().alpha_bar)[:-1], curve[:-1], rtol=1e-6)


def test_your_own_schedule_gives_num_steps_and_betas():
    @dataclass(frozen=True)
    class Constant(Schedule):
        num_steps: int = 100

        def betas(self):
            return np.full(self.num_steps, 0.05)

    np.testing.assert_allclose(Constant().build().alpha_bar, 0.95 ** np.arange(101), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(num_steps=0), "num_steps is 0"),
        (lambda: Linear(beta_start=0.1), "beta_start is 0.1 and beta_end None; give both"),
        (lambda: ScaledLinear(beta_end=0.1), "beta_start is None and beta_end 0.1; give both"),
        (lambda: Linear(beta_start=0.2, beta_end=0.1), "beta_start is 0.2 and beta_end 0.1"),
        (lambda: Linear(beta_start=0.0, beta_end=0.1), "0 < beta_start"),
        (lambda: Linear(beta_start=0.1, beta_end=1.0), "beta_end < 1"),
        (lambda: Cosine(num_steps=-3), "num_steps is -3"),
        (lambda: Cosine(offset=-0.1), "offset is -0.1"),
        (lambda: Cosine(max_beta=1.0), "max_beta is 1"),
        (lambda: Sigmoid(num_steps=0), "num_steps is 0"),
        (lambda: Sigmoid(start=1.0, end=1.0), "start is 1 and end 1"),
        (lambda: Sigmoid(temperature=0.0), "temperature is 0"),
        (lambda: Sigmoid(max_beta=0.0), "max_beta is 0"),
        (
            lambda: Betas((0.1, 1.1)),
            "beta at t = 2 is 1.1; every beta must lie strictly between 0 and 1, and only the last",
        ),
        (lambda: Betas((1.0, 0.1)), "beta at t = 1 is 1"),
        (lambda: Betas((0.0, 0.1)), "beta at t = 1 is 0"),
        (lambda: Betas((0.1, math.nan)), "beta at t = 2 is nan"),
        (lambda: Betas(()), r"shape \(0,\)"),
        (lambda: from_betas(np.full((2, 2), 0.1)), r"shape \(2, 2\)"),
    ],
)
def test_errors_name_the_field_and_the_value(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()
