"""Five things to predict: each is read back exactly, each gives the others, and their errors have the stated ratios."""

import itertools

import jax
import numpy as np
import pytest

from ddpm_jax.diffusion import forward
from ddpm_jax.diffusion.schedule import Chain, Cosine, Schedule
from ddpm_jax.diffusion.targets import Eps, Mean, Prediction, Score, V, X, convert

TARGETS = (Eps(), X(), V(), Mean(), Score())
ROUNDING = 2e-6  # of float32, after a few operations on numbers of size 5

diffuse, noise_between = map(jax.jit, (forward.diffuse, forward.noise_between))
SHORT = Cosine(num_steps=20)


@jax.jit
def encode_all(schedule: Chain, x: jax.Array, eps: jax.Array, t: jax.Array) -> list[jax.Array]:
    return [target.encode(schedule, x, eps, t) for target in TARGETS]


@jax.jit
def decode_all(schedule: Chain, outputs: list[jax.Array], z_t: jax.Array, t: jax.Array) -> list[Prediction]:
    return [target.decode(schedule, output, z_t, t) for target, output in zip(TARGETS, outputs, strict=True)]


@jax.jit
def ratios(schedule: Chain, t: jax.Array) -> list[jax.Array]:
    return [target.error_ratio(schedule, t) for target in TARGETS]


class Chain:
    """Data and noise at every t of a schedule, what each target is there, and what an error of it costs."""

    def __init__(self, spec: Schedule) -> None:
        self.schedule = spec.build()
        self.t = np.arange(1, spec.num_steps + 1)
        self.x, self.eps = np.random.default_rng(0).normal(size=(2, spec.num_steps)).astype(np.float32)
        self.z_t = diffuse(self.schedule, self.x, self.t, self.eps)
        self.signal, self.noise = (np.asarray(a)[1:] for a in (self.schedule.signals, self.schedule.noises))
        self.outputs = encode_all(self.schedule, self.x, self.eps, self.t)
        self.ratios = [np.asarray(ratio) for ratio in ratios(self.schedule, self.t)]

    def x_tolerance(self, i: int) -> np.ndarray:
        """How far off x may be when target i is rounded to float32."""
        return ROUNDING * (1 + np.maximum(1, np.abs(self.outputs[i])) / np.sqrt(self.ratios[i]))


def assert_close(got, expected, tolerance, message="") -> None:
    """|got - expected| <= tolerance, an array, at every t."""
    worst = np.nanargmax(np.abs(np.asarray(got) - expected) / tolerance)
    np.testing.assert_array_less(
        np.abs(np.asarray(got) - expected), np.asarray(tolerance), err_msg=f"{message} worst at t = {worst + 1}"
    )


def test_decoding_undoes_encoding(spec):
    chain = Chain(spec)
    predictions = decode_all(chain.schedule, chain.outputs, chain.z_t, chain.t)
    for i, (target, prediction) in enumerate(zip(TARGETS, predictions, strict=True)):
        tolerance = chain.x_tolerance(i)
        assert_close(prediction.x, chain.x, tolerance, f"x of {target}")
        assert_close(prediction.eps, chain.eps, (tolerance * chain.signal + ROUNDING) / chain.noise, f"eps of {target}")


def test_encoding_undoes_decoding(spec):
    """For any output, also where it stands for an x that is far from any data."""
    chain = Chain(spec)
    outputs = [chain.eps[::-1].copy()] * len(TARGETS)
    predictions = decode_all(chain.schedule, outputs, chain.z_t, chain.t)
    for i, (target, prediction) in enumerate(zip(TARGETS, predictions, strict=True)):
        back = encode_all(chain.schedule, prediction.x, prediction.eps, chain.t)[i]
        size = 1 + np.abs(chain.signal * prediction.x) + np.abs(chain.noise * prediction.eps)
        assert_close(back, outputs[i], 2 * ROUNDING * size * np.maximum(1, np.sqrt(chain.ratios[i])), f"{target}")


def test_a_prediction_is_a_point_on_the_line_to_z_t(spec):
    chain = Chain(spec)
    outputs = [chain.eps[::-1].copy()] * len(TARGETS)
    for target, (x, eps, _) in zip(TARGETS, decode_all(chain.schedule, outputs, chain.z_t, chain.t), strict=True):
        z_t = chain.signal * np.asarray(x) + chain.noise * np.asarray(eps)
        assert_close(z_t, chain.z_t, ROUNDING * (1 + np.abs(chain.signal * np.asarray(x))), f"{target}")


def test_error_ratio_is_the_squared_slope_of_the_output_in_x(spec):
    """At a given z_t: move x by delta, with the noise that then leads to z_t."""
    chain = Chain(spec)
    delta = np.maximum(1, chain.noise / chain.signal)
    moved = chain.x + delta
    outputs = encode_all(chain.schedule, moved, noise_between(chain.schedule, chain.z_t, moved, chain.t), chain.t)
    for i, target in enumerate(TARGETS):
        slope = (np.asarray(outputs[i]) - np.asarray(chain.outputs[i])) / delta
        np.testing.assert_allclose(slope**2, chain.ratios[i], rtol=2e-3, err_msg=str(target))


def test_score_is_the_gradient_of_the_log_density(spec):
    chain = Chain(spec)

    @jax.jit
    def gradient(schedule: Chain, z_t: jax.Array) -> jax.Array:
        return jax.grad(lambda z: forward.marginal(schedule, chain.x, chain.t).log_prob(z).sum())(z_t)

    score = chain.outputs[TARGETS.index(Score())]
    assert_close(gradient(chain.schedule, chain.z_t), score, ROUNDING * (1 + 1 / chain.noise**2))


def test_mean_is_the_mean_of_the_posterior(spec):
    chain = Chain(spec)
    posterior = jax.jit(forward.posterior)(chain.schedule, chain.z_t, chain.x, chain.t)
    mean = np.asarray(chain.outputs[TARGETS.index(Mean())])
    np.testing.assert_allclose(mean, posterior.mean, atol=1e-6)
    assert mean[0] == chain.x[0]


def test_v_turns_signal_and_noise_by_a_right_angle(spec):
    chain = Chain(spec)
    v = np.asarray(chain.outputs[TARGETS.index(V())])
    np.testing.assert_allclose(chain.signal * chain.z_t - chain.noise * v, chain.x, atol=5e-6)
    np.testing.assert_allclose(v**2 + np.asarray(chain.z_t) ** 2, chain.x**2 + chain.eps**2, rtol=1e-5)


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(TARGETS, 2)), ids=lambda target: str(target))
def test_converted_outputs_stand_for_the_same_data(source, target):
    chain = Chain(SHORT)
    i, j = TARGETS.index(source), TARGETS.index(target)
    got = jax.jit(convert, static_argnums=(4, 5))(chain.schedule, chain.outputs[i], chain.z_t, chain.t, source, target)
    slope = np.sqrt(chain.ratios[j])
    tolerance = chain.x_tolerance(i) * slope + ROUNDING * (1 + slope)
    assert_close(got, np.asarray(chain.outputs[j]), tolerance)


def test_targets_of_images_broadcast_one_timestep_per_image_or_one_for_all():
    schedule = SHORT.build()
    x, eps = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    each, single = (encode_all(schedule, x, eps, t) for t in (np.full(3, 5), np.int32(5)))
    for got, expected in zip(single, each, strict=True):
        assert got.shape == x.shape
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_gradients_pass_through_decoding():
    """The slope of the decoded x in the output is 1 over that of the output in x."""
    chain = Chain(SHORT)

    def total(outputs: list[jax.Array]) -> jax.Array:
        return sum(prediction.x.sum() for prediction in decode_all(chain.schedule, outputs, chain.z_t, chain.t))

    for target, ratio, slope in zip(TARGETS, chain.ratios, jax.grad(total)(chain.outputs), strict=True):
        np.testing.assert_allclose(np.asarray(slope) ** 2 * ratio, 1.0, rtol=1e-4, err_msg=str(target))
