"""Any callable is a network: Equinox and NNX modules, partials, methods, objects; compiled once for equal ones."""

import dataclasses
import functools
import warnings

import equinox as eqx
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import ddpm_jax
from ddpm_jax.devices.functions import as_pytree
from ddpm_jax.diffusion import schedule
from ddpm_jax.diffusion.bound import bound
from ddpm_jax.diffusion.clipping import Clip
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.guidance import guided, steered
from ddpm_jax.diffusion.likelihood import log_likelihood
from ddpm_jax.diffusion.objective import SquaredError, draw
from ddpm_jax.nets import Network
from ddpm_jax.sampling import Ddim, sample
from ddpm_jax.training.loop import train

S, KEY, SHAPE = schedule.Linear(10).build(), jax.random.key(0), (2, 3)
traced = []


def product(weight, z_t, t):
    """The network that all of these are; it notes each trace."""
    traced.append(t)
    return weight * jnp.tanh(z_t) + 0.01 * jnp.reshape(t, (-1, 1))


class Module(eqx.Module):
    """An Equinox module whose leaves are an array, a function, a string, a boolean and a number."""

    weight: jax.Array
    activation: object = jnp.tanh
    name: str = "module"
    flag: bool = True
    power: int = 1
    sizes: tuple = eqx.field(static=True, default=(1, 2))

    def __call__(self, z_t, t):
        traced.append(t)
        assert self.name == "module"
        scale = self.weight if self.flag else 0.0
        return scale * self.activation(z_t) ** self.power + 0.01 * jnp.reshape(t, (-1, 1))

    def method(self, z_t, t):
        return self(z_t, t)


@flax.struct.dataclass
class Struct:
    """A pytree of Flax with a field that is no array."""

    weight: jax.Array
    activation: object

    def __call__(self, z_t, t):
        traced.append(t)
        return self.weight * self.activation(z_t) + 0.01 * jnp.reshape(t, (-1, 1))


class Object:
    """An object that JAX knows nothing of, with an array that may be replaced."""

    def __init__(self, weight):
        self.parts = {"weight": weight, "sizes": np.array([2, 3])}

    def __call__(self, z_t, t):
        return product(self.parts["weight"], jnp.reshape(z_t, self.parts["sizes"].tolist()), t)

    def method(self, z_t, t):
        return self(z_t, t)


@dataclasses.dataclass
class Holder:
    """An object without hash that holds another one."""

    inner: Object

    def __call__(self, z_t, t):
        return self.inner(z_t, t)


def nnx_module(weight):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nnx = pytest.importorskip("flax.nnx", exc_type=Exception)

    class Net(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(weight)
            self.activation = jnp.tanh

        def __call__(self, z_t, t):
            traced.append(t)
            return self.weight[...] * self.activation(z_t) + 0.01 * jnp.reshape(t, (-1, 1))

    return Net()


CALLABLES = {
    "Equinox module": Module,
    "method of an Equinox module": lambda weight: Module(weight).method,
    "Equinox filter_jit": lambda weight: eqx.filter_jit(Module(weight)),
    "NNX module": nnx_module,
    "Flax struct": lambda weight: Struct(weight, jnp.tanh),
    "Partial": lambda weight: Partial(product, weight),
    "Partial of a module": lambda weight: Partial(Module.method, Module(weight)),
    "functools.partial": lambda weight: functools.partial(product, weight),
    "functools.partial with keywords": lambda weight: functools.partial(_by_name, weight=weight, name="module"),
    "partial of a method": lambda weight: functools.partial(Object(weight).method),
    "object": Object,
    "method of an object": lambda weight: Object(weight).method,
    "object in an object": lambda weight: Holder(Object(weight)),
}
OPAQUE = {
    "lambda": lambda weight: lambda z_t, t: product(weight, z_t, t),
    "jitted": lambda weight: jax.jit(lambda z_t, t: product(weight, z_t, t)),
    "jitted object": lambda weight: jax.jit(Object(weight)),
}


def _by_name(z_t, t, weight, name):
    assert name == "module"
    return product(weight, z_t, t)


def drawn(predict):
    return sample(KEY, Denoiser(predict, S), Ddim(2), SHAPE)


@pytest.fixture(scope="module")
def expected():
    return {weight: drawn(Partial(product, jnp.float32(weight))) for weight in (0.3, 0.7)}


@pytest.mark.parametrize("kind", CALLABLES)
def test_arrays_are_inputs_and_the_rest_is_the_program(kind, expected):
    """An equal callable with other arrays uses the program again, and its own arrays."""
    make = CALLABLES[kind]
    first, equal = (make(jnp.float32(weight)) for weight in (0.3, 0.7)) if kind != "NNX module" else two_of_nnx()
    tree = as_pytree(first)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))
    np.testing.assert_allclose(drawn(first), expected[0.3], rtol=1e-6)
    traced.clear()
    np.testing.assert_allclose(drawn(equal), expected[0.7], rtol=1e-6)
    np.testing.assert_allclose(drawn(first), expected[0.3], rtol=1e-6)
    assert not traced


def two_of_nnx():
    """One class, two modules."""
    first = nnx_module(jnp.float32(0.3))
    return first, jax.tree.map(lambda _: jnp.float32(0.7), first)


@pytest.mark.parametrize("kind", OPAQUE)
def test_functions_are_taken_as_they_are(kind, expected):
    """The same function uses the program again."""
    function = OPAQUE[kind](jnp.float32(0.3))
    np.testing.assert_allclose(drawn(function), expected[0.3], rtol=1e-6)
    traced.clear()
    np.testing.assert_allclose(drawn(function), expected[0.3], rtol=1e-6)
    assert not traced


def test_another_rest_is_another_program():
    """A function, a boolean, a number or a NumPy array of an object: each decides what is compiled."""
    module = Module(jnp.float32(0.3))
    changes = [{"activation": jnp.sin}, {"flag": False}, {"power": 2}, {"sizes": (1,)}]
    structures = {jax.tree.structure(as_pytree(module))}
    structures |= {jax.tree.structure(as_pytree(dataclasses.replace(module, **change))) for change in changes}
    assert len(structures) == 5
    thing = Object(jnp.float32(0.3))
    before = jax.tree.structure(as_pytree(thing))
    thing.parts["sizes"][0] = 4
    assert jax.tree.structure(as_pytree(thing)) != before


def test_an_object_whose_arrays_are_replaced(expected):
    """The new ones are used."""
    thing = Object(jnp.float32(0.3))
    drawn(thing)
    thing.parts["weight"] = jnp.float32(0.7)
    np.testing.assert_allclose(drawn(thing), expected[0.7], rtol=1e-6)


@pytest.mark.parametrize("kind", [float, np.float32, lambda weight: [weight], lambda weight: np.array([weight])])
def test_an_object_without_jax_arrays_whose_attributes_change(kind, expected):
    """A number, or an array of NumPy's, that is set anew between two calls."""

    class Thing:
        def __call__(self, z_t, t):
            return product(np.reshape(self.weight, ()), z_t, t)

    thing = Thing()
    for weight in (0.3, 0.7, 0.3):
        thing.weight = kind(weight)
        np.testing.assert_allclose(drawn(thing), expected[weight], rtol=1e-6)
    traced.clear()
    drawn(thing)
    assert not traced


def test_objects_that_cannot_be_taken_apart():
    """Cycles, slots, attributes without order, static fields without hash: as they are, or compiled by themselves."""

    class Slots:
        __slots__ = ("weight",)

        def __call__(self, z_t, t):
            return product(self.weight, z_t, t)

    class Listed(eqx.Module):
        sizes: list = eqx.field(static=True)

        def __call__(self, z_t, t):
            return product(0.3, z_t, t)

    slots, cycle, mixed = Slots(), Object(jnp.float32(0.3)), Object(jnp.float32(0.3))
    slots.weight = jnp.float32(0.3)
    cycle.own, cycle.bound = cycle, cycle.method
    mixed.extra = {1: "a", "b": 2}
    for thing in (slots, cycle, mixed, Listed([1, 2])):
        np.testing.assert_allclose(drawn(thing), drawn(Partial(product, jnp.float32(0.3))), rtol=1e-6)


WHERE = {
    "loss": lambda predict, x: SquaredError()(Denoiser(predict, S), x, draw(KEY, S, SHAPE)),
    "guided": lambda predict, x: sample(KEY, guided(*[Denoiser(predict, S)] * 2, 2.0), Ddim(2), SHAPE),
    "steered": lambda predict, x: sample(
        KEY,
        steered(Denoiser(predict, S), Partial(lambda w, x: jnp.sum(w * x, 1), jnp.float32(2.0))),
        Ddim(2),
        SHAPE,
    ),
    "bound": lambda predict, x: bound(KEY, Denoiser(predict, S, clip=Clip()), x, num_steps=2).total,
    "likelihood": lambda predict, x: log_likelihood(KEY, Denoiser(predict, S), x, max_steps=32, tolerance=0.1).log_prob,
}


@pytest.mark.parametrize("make", [Module, nnx_module], ids=["Equinox", "NNX"])
@pytest.mark.parametrize(
    "name", [*list(WHERE)[:3], *(pytest.param(n, marks=pytest.mark.slow) for n in list(WHERE)[3:])]
)
def test_modules_are_taken_everywhere(make, name):
    weight, x = jnp.float32(0.3), jax.random.uniform(KEY, SHAPE, minval=-1.0)
    ours, theirs = (WHERE[name](predict, x) for predict in (make(weight), Partial(product, weight)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("make", [Module, nnx_module], ids=["Equinox", "NNX"])
def test_the_gradient_of_a_module(make):
    x, draws, weight = jnp.full(SHAPE, 0.5), draw(KEY, S, SHAPE), jnp.float32(0.3)
    gradient = eqx.filter_grad(lambda predict: SquaredError()(Denoiser(predict, S), x, draws).sum())
    found = [jax.tree.leaves(gradient(predict))[0] for predict in (make(weight), Partial(product, weight))]
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_nnx_modules_that_count_their_random_numbers():
    """Dropout in a loop: each trace has a copy of the module, which itself stays as it was."""
    nnx_module(jnp.float32(0.3))  # or skip
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self):
            self.weight, self.dropout = nnx.Param(jnp.float32(0.3)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, z_t, t):
            return self.dropout(self.weight[...] * z_t)

    net = Net()
    before = jax.tree.leaves(net)
    assert jnp.isfinite(drawn(net)).all()
    for ours, theirs in zip(jax.tree.leaves(net), before, strict=True):
        assert ours is theirs


class ConvNet(eqx.Module):
    """A small convolutional network, as one writes it in Equinox: for one image, channels first."""

    layers: list
    embedding: jax.Array

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.layers = [eqx.nn.Conv2d(1, 4, 3, padding=1, key=a), jax.nn.silu, eqx.nn.Conv2d(4, 1, 3, padding=1, key=b)]
        self.embedding = jnp.zeros((21, 4, 1, 1))

    def __call__(self, z_t, t):
        def one(z, t):
            first, activation, last = self.layers
            return jnp.moveaxis(last(activation(first(jnp.moveaxis(z, -1, 0)) + self.embedding[t])), 0, -1)

        return jax.vmap(one)(z_t, jnp.broadcast_to(t, z_t.shape[:1]))


@dataclasses.dataclass(frozen=True)
class EquinoxSpec(Network):
    """A spec whose parameters are the arrays of an Equinox module, and whose `bind` returns the module."""

    def init(self, key, image_shape):
        return eqx.filter(ConvNet(key), eqx.is_array)

    def bind(self, params):
        return eqx.combine(params, eqx.filter(ConvNet(KEY), eqx.is_array, inverse=True))


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_spec_that_binds_a_module(tiny, one, tmp_path):
    """Trained for 2 steps, saved, read and sampled."""
    experiment = dataclasses.replace(tiny, net=EquinoxSpec(), num_steps=2, checkpoint_every=2)
    train(experiment, tmp_path, one)
    run = ddpm_jax.load_run(tmp_path, one)
    assert isinstance(run.experiment.net.bind(run.params), ConvNet)
    first = experiment.net.init(KEY, (8, 8, 1))
    assert jax.tree.structure(run.params) == jax.tree.structure(first)
    x = run.sample(KEY, 3)
    assert x.shape == (3, 8, 8, 1)
    direct = sample(KEY, run.model(), experiment.sampler, x.shape)
    np.testing.assert_allclose(x, direct, atol=1e-5)
