"""Parts of a user's own: what is refused in one line, before a library fails on it or a wrong program is reused."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import (
    Denoiser,
    Experiment,
    bound,
    clipping,
    data,
    guidance,
    likelihood,
    load_run,
    nets,
    sampling,
    schedule,
    targets,
    train,
)
from ddpm_jax.diffusion.process import Process

pytestmark = pytest.mark.usefixtures("unchecked")

KEY, PROCESS = jax.random.key(0), schedule.Linear(num_steps=20).build()
MODEL = Denoiser(lambda z_t, t: 0.1 * z_t, PROCESS)
X = jnp.zeros((4, 3))


class Scaled(sampling.Sampler):
    def __init__(self, factor):
        super().__init__(num_steps=3)
        object.__setattr__(self, "factor", factor)

    def step(self, model, now, memory):
        return self.factor * now.z_t, memory


class Shifted(targets.Target):
    def __init__(self, shift):
        self.shift = shift


@dataclass(frozen=True)
class Capped(clipping.Clipping):
    high: Any = None

    def __call__(self, x):
        return jnp.minimum(x, self.high)


def test_a_class_with_attributes_that_are_no_fields():
    """Two of them are equal and have one hash, so the program of the first would be used for the second."""
    with pytest.raises(ValueError, match="sampler is a Scaled with the attribute factor, which is no field"):
        sampling.sample(KEY, MODEL, Scaled(0.5), (2, 3))
    with pytest.raises(ValueError, match="sampler is a Scaled with the attribute factor, which is no field"):
        sampling.inpaint(KEY, MODEL, Scaled(0.5), X, np.ones((4, 3), bool))
    with pytest.raises(ValueError, match="target is a Shifted with the attribute shift, which is no field"):
        Denoiser(MODEL.predict, PROCESS, target=Shifted(1.0))


def test_a_class_without_fields_needs_no_decorator():
    class Still(sampling.Sampler):
        @functools.cached_property
        def half(self):
            return self.num_steps / 2

        def step(self, model, now, memory):
            return now.z_t + 0 * self.half, memory

    first, second = (sampling.sample(KEY, MODEL, Still(n), (2, 3)) for n in (2, 3))
    kept = Still(2)
    assert kept.half == 1.0  # now among its attributes
    sampling.sample(KEY, MODEL, kept, (2, 3))
    np.testing.assert_array_equal(first, second)


def test_a_field_that_has_no_hash():
    with pytest.raises(ValueError, match=r"clip.high is array.*; expected a number"):
        Denoiser(MODEL.predict, PROCESS, clip=Capped(np.ones(3)))
    inside = jax.jit(lambda high: Denoiser(MODEL.predict, PROCESS, clip=Capped(high)).denoise(X + 1, 5).x)
    assert inside(0.25).max() == 0.25


STEPS = {
    r"Own.step returned a \w+; expected \(z_s, memory\)": lambda z, memory: z,
    r"Own.step returned z_s of shape \(3,\); expected that of z_t, \(2, 3\)": lambda z, memory: (z[0], memory),
    r"Own.step returned a memory of shapes \(\(2, 3\),\); expected those of `start`, \(\)": lambda z, memory: (z, (z,)),
}


@pytest.mark.parametrize("message", STEPS)
def test_a_step_that_returns_something_else(message):
    class Own(sampling.Sampler):
        def step(self, model, now, memory):
            return STEPS[message](now.z_t, memory)

    with pytest.raises(ValueError, match=message):
        sampling.sample(KEY, MODEL, Own(3), (2, 3))


def test_a_process_that_is_no_pytree():
    class Line(Process):
        def signal(self, t):
            return 1 - t

        def noise(self, t):
            return t

    with pytest.raises(ValueError, match="process is a Line, which is no pytree"):
        Denoiser(MODEL.predict, Line())


def test_a_process_that_has_the_functions_only():
    Line = dataclasses.make_dataclass("Line", ("signal", "noise"), frozen=True)
    with pytest.raises(ValueError, match=r"process is .*Line.*; expected a process, such as Linear"):
        Denoiser(MODEL.predict, Line(jnp.cos, jnp.sin))


CALLS = {
    "first_index": [
        lambda bad: sampling.sample(KEY, MODEL, sampling.Ddim(2), (2, 3), first_index=bad),
        lambda bad: sampling.inpaint(KEY, MODEL, sampling.Ddim(2), X, np.ones((4, 3), bool), first_index=bad),
        lambda bad: sampling.interpolate(KEY, MODEL, sampling.Ddim(2), X, X, 5, [0.5], first_index=bad),
        lambda bad: bound.bound(KEY, MODEL, X, first_index=bad),
        lambda bad: bound.estimate(KEY, MODEL, X, 2, first_index=bad),
        lambda bad: likelihood.log_likelihood(KEY, MODEL, X, first_index=bad),
    ],
    "sharding": [lambda bad: sampling.sample(KEY, MODEL, sampling.Ddim(2), (2, 3), sharding=bad or "x")],
    "mask": [lambda bad: sampling.inpaint(KEY, MODEL, sampling.Ddim(2), X, bad)],
    "scale": [lambda bad: guidance.guided(MODEL, MODEL, bad), lambda bad: guidance.steered(MODEL, abs, scale=bad)],
    "end": [lambda bad: likelihood.log_likelihood(KEY, MODEL, X, end=bad or "x")],
    "tolerance": [lambda bad: likelihood.log_likelihood(KEY, MODEL, X, tolerance=bad)],
    "z_t": [lambda bad: MODEL.denoise(bad, 5)],
    "t": [lambda bad: MODEL.denoise(X, bad), lambda bad: MODEL.denoise(X, np.zeros(7, int))],
    "folder": [load_run, lambda bad: train(experiment(), bad)],
    "mesh": [lambda bad: load_run("runs", mesh=bad or 3), lambda bad: experiment().plan(bad or 3)],
    "experiment": [lambda bad: train(bad, "runs/never")],
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("bad", [None, "x", abs], ids=["None", "text", "function"])
def test_arguments_of_another_type(name, bad):
    for call in CALLS[name]:
        if (name, bad) == ("folder", "x"):
            continue
        with pytest.raises(ValueError, match=rf"^{name} (is|has) .*; expected") as error:
            call(bad)
        assert "\n" not in str(error.value)


def experiment(**parts: Any) -> Experiment:
    images = np.zeros((8, 4, 4, 1), np.uint8)
    parts = {"net": nets.Mlp(width=8), "batch_size": 8, "num_steps": 2, "schedule": schedule.Linear(20), **parts}
    return Experiment("own", data.Arrays.of(images), **parts)


@dataclass(frozen=True)
class Sgd:
    rate: float = 0.1
    depends_on_length = False

    def build(self, num_steps):
        return optax.sgd(self.rate)


@dataclass(frozen=True)
class Number(Sgd):
    def build(self, num_steps):
        return 3


class Plain:
    depends_on_length = False
    build = Sgd.build


def test_an_optimizer_of_ones_own():
    assert experiment(optimizer=Sgd()).plan().recipe.update is not None
    for bad in (Sgd, Plain(), optax.sgd(0.1)):
        with pytest.raises(ValueError, match=r"optimizer is .*; expected an Optimizer, such as Adam\(\) \(a frozen"):
            experiment(optimizer=bad)
    with pytest.raises(ValueError, match=r"optimizer.build\(\) is 3; expected an optax.GradientTransformation"):
        experiment(optimizer=Number()).plan()


@dataclass(frozen=True)
class Gain(nets.Network):
    """A network with `num_classes` as a field; `initial` makes its parameters."""

    num_classes: int | None = None
    initial: str = "floats"

    def init(self, key, shape):
        return {"gain": {"floats": jnp.ones(shape), "integers": jnp.ones(shape, int), "text": "one"}[self.initial]}

    def bind(self, params, labels=None):
        return lambda z_t, t: params["gain"] * z_t


def test_a_network_of_ones_own():
    plan = experiment(net=Gain()).plan()
    assert plan.step() is not None
    with pytest.raises(ValueError, match=r"net.num_classes is 3, but Arrays has no labels"):
        experiment(net=Gain(num_classes=3)).plan()
    for initial in ("integers", "text"):
        with pytest.raises(ValueError, match=r"net.init\(\)\['gain'\] is .*; expected an array of floats"):
            experiment(net=Gain(initial=initial)).plan()
    params = plan.fresh_state().params
    with pytest.raises(ValueError, match=r"labels is .*; expected None, as the network is not class-conditional"):
        experiment(net=Gain()).model(params, np.zeros(2, int))
    with pytest.raises(ValueError, match="guidance is '2'; expected a finite number"):
        experiment(net=Gain()).model(params, None, "2")


def test_a_denoiser_shows_the_network_that_it_was_given():
    class Network:
        gain = 2.0

        def __init__(self):
            self.bias = jnp.ones(3)

        def __call__(self, z_t, t):
            return z_t + self.bias

        def __repr__(self):
            return f"Network(bias={self.bias.shape})"

    model = Denoiser(Network(), PROCESS)
    assert "predict=Network(bias=(3,))" in repr(model)
    assert "predict=<function" in repr(MODEL)
