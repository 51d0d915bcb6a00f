"""Meshes with explicit axes, the default of `jax.make_mesh`, give the numbers of one device."""

import contextlib
import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import Partial

import ddpm_jax
from ddpm_jax.data import Arrays, Digits
from ddpm_jax.data.map_examples import over_examples
from ddpm_jax.devices.axes import automatic, take
from ddpm_jax.diffusion import forward, schedule, targets, weighting
from ddpm_jax.diffusion.bound import bound, estimate, term
from ddpm_jax.diffusion.clipping import Clip
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.guidance import guided, steered
from ddpm_jax.diffusion.likelihood import log_likelihood
from ddpm_jax.diffusion.objective import Draws, SquaredError
from ddpm_jax.features.extractor import Extracted, Extractor, extract
from ddpm_jax.nets import Network
from ddpm_jax.nets.mlp import Mlp
from ddpm_jax.nets.unet import UNet
from ddpm_jax.sampling import Ancestral, Ddim, DpmSolver, Heun, inpaint, interpolate, invert, sample, sample_path
from ddpm_jax.training.loop import train

S, KEY, SHAPE = schedule.Linear(20).build(), jax.random.key(0), (8, 4, 4, 1)
X = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
EPS = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
T = np.arange(1, 9, dtype=np.int32)


def product(weight, z_t, t):
    return weight * z_t + 0.01 * jnp.reshape(t, (-1, 1, 1, 1))


NET = Partial(product, jnp.float32([0.3]))
MESHES = {"explicit": jax.make_mesh((4, 2), ("data", "fsdp")), "auto": automatic(mesh_of(4, 2))}
EVERY_TARGET = [targets.Eps(), targets.X(), targets.V(), targets.Mean(), targets.Score()]
EVERY_WEIGHTING = [weighting.MinSnr(), weighting.Vlb(), weighting.P2(), weighting.Weights(np.arange(20.0))]

# Functions of x, t and eps: formulas, then compiled loops.
FORMULAS = {
    "transition": lambda x, t, eps: forward.transition(S, x, t).mean,
    "marginal": lambda x, t, eps: forward.marginal(S, x, t).std,
    "diffuse": lambda x, t, eps: forward.diffuse(S, x, t, eps),
    "posterior": lambda x, t, eps: forward.posterior(S, eps, x, t),
    "strided posterior": lambda x, t, eps: forward.posterior(S, eps, x, t, t - 1),
    "real t": lambda x, t, eps: forward.noise_between(S, eps, x, jnp.asarray(t) * 1.5),
    "targets": lambda x, t, eps: [targets.convert(S, x, eps, t, a, b) for a in EVERY_TARGET for b in EVERY_TARGET[1:3]],
    "weights": lambda x, t, eps: [weighting.weights(w, S, t, targets.Mean()) for w in EVERY_WEIGHTING],
    "loss": lambda x, t, eps: SquaredError()(Denoiser(NET, S), x, Draws(t, eps)),
    "gradient": lambda x, t, eps: jax.grad(lambda x: SquaredError()(Denoiser(NET, S), x, Draws(t, eps)).sum())(x),
    "term": lambda x, t, eps: term(Denoiser(NET, S, clip=Clip()), x, t, eps),
    "guided": lambda x, t, eps: guided(*[Denoiser(NET, S)] * 2, 2.0, interval=(3, 9)).predict(x, t),
    "steered": lambda x, t, eps: steered(Denoiser(NET, S), lambda x: jnp.sum(x, (1, 2, 3))).predict(x, t),
}
LOOPS = {
    "bound": lambda x, t, eps: bound(KEY, Denoiser(NET, S, clip=Clip()), x, num_steps=3),
    "estimate": lambda x, t, eps: estimate(KEY, Denoiser(NET, S, clip=Clip()), x, 3),
    "likelihood": lambda x, t, eps: log_likelihood(KEY, Denoiser(NET, S), x, max_steps=64, tolerance=0.01),
    "invert": lambda x, t, eps: invert(Denoiser(NET, S), Ddim(3), x),
    "inpaint": lambda x, t, eps: inpaint(
        KEY, Denoiser(NET, S, clip=Clip()), Heun(2), x, np.eye(4, dtype=bool)[..., None], resamples=2
    ),
    "interpolate": lambda x, t, eps: interpolate(
        KEY, Denoiser(NET, S, clip=Clip()), Ddim(3), x, eps, 9, np.float32([0.0, 0.5])
    ),
    "start": lambda x, t, eps: sample(KEY, Denoiser(NET, S, clip=Clip()), DpmSolver(3), SHAPE, start=(x, 9)),
}


def same(ours, theirs):
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


CASES = [  # the kind of axes, whether `jax.set_mesh` is used, whether the function is compiled, what is called
    ("explicit", False, False, ["diffuse", "loss"]),
    ("explicit", True, True, ["real t", "weights", "gradient", "bound", "start"]),
    ("auto", True, True, ["diffuse", "weights"]),
    *(
        pytest.param(kind, context, compiled, [*FORMULAS, *LOOPS], marks=pytest.mark.slow)
        for kind in MESHES
        for context in (False, True)
        for compiled in (False, True)
    ),
]


def entered(mesh, by_user):
    """The context that the user has made."""
    return jax.set_mesh(mesh) if by_user else contextlib.nullcontext()


def placed(mesh, *arrays):
    return [jax.device_put(a, NamedSharding(mesh, PartitionSpec(mesh.axis_names))) for a in arrays]


@cache
def on_one_device(name):
    return jax.jit({**FORMULAS, **LOOPS}[name])(X, T, EPS)


def test_the_default_mesh_has_explicit_axes():
    assert MESHES["explicit"].axis_types == (AxisType.Explicit,) * 2


@pytest.mark.parametrize(("kind", "by_user", "compiled", "names"), CASES)
def test_of_a_batch_that_is_cut_over_a_mesh(kind, by_user, compiled, names):
    """The same numbers as on one device, and the results lie as the batch does."""
    if kind == "explicit" and not by_user and not compiled:
        names = [name for name in names if name != "gradient"]  # JAX takes no gradient of a sum there, either
    expected = {name: on_one_device(name) for name in names}
    with entered(MESHES[kind], by_user):
        arrays = placed(MESHES[kind], X, T, EPS)
        for name in names:
            function = {**FORMULAS, **LOOPS}[name]
            found = (jax.jit(function) if compiled else function)(*arrays)
            same(found, expected[name])
            assert any(len(leaf.addressable_shards) == 8 for leaf in jax.tree.leaves(found)), name


@pytest.mark.parametrize(
    ("kind", "by_user"),
    [
        pytest.param("explicit", False, marks=pytest.mark.slow),
        ("explicit", True),
        pytest.param("auto", True, marks=pytest.mark.slow),
    ],
)
def test_samples_lie_as_asked(kind, by_user):
    """Also with a function that closes over arrays of the mesh, which can be traced with explicit axes only."""
    mesh = MESHES[kind]
    cut, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ([mesh.axis_names], []))
    expected = sample(KEY, Denoiser(NET, S, clip=Clip()), Ancestral(2), SHAPE)
    with entered(mesh, by_user):
        weight = jax.device_put(NET.args[0], whole)
        x = sample(KEY, Denoiser(NET, S, clip=Clip()), Ancestral(2), SHAPE, sharding=cut)
        enclosed = sample(
            KEY, Denoiser(lambda z_t, t: product(weight, z_t, t), S, clip=Clip()), Ancestral(2), SHAPE, sharding=cut
        )
        path = sample_path(
            KEY, Denoiser(Partial(product, weight), S, clip=Clip()), Ancestral(2), SHAPE, 2, sharding=cut
        )
    for found in (x, enclosed, path.x, path.frames[-1]):
        same(found, expected)
    assert x.sharding.is_equivalent_to(cut, 4)
    assert len(path.frames.addressable_shards) == 8


UNET = UNet(8, (1,), 1, (4,), dropout=0.0, norm_groups=4)


@pytest.mark.slow
@pytest.mark.parametrize("net", [Mlp(2, 1), UNET])
def test_networks(net):
    """Called by the user, and in a loss whose gradient is taken; with explicit axes attention cannot be traced."""
    mesh, params = MESHES["explicit"], net.init(KEY, SHAPE[1:])

    def loss_of(params, x, t, eps):
        return SquaredError()(Denoiser(net.bind(params), S), x, Draws(t, eps)).mean()

    @jax.jit
    def run(params, x, t, eps):
        return net.bind(params)(x, t), jax.grad(loss_of)(params, x, t, eps)

    expected = run(params, X, T, EPS)
    with jax.set_mesh(mesh):
        x, t, eps = placed(mesh, X, T, EPS)
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        found = run(params, x, t, eps)
        same(found, expected)
        same(net.bind(params)(x, t), expected[0])
    assert found[0].sharding.is_equivalent_to(x.sharding, 4)


@dataclasses.dataclass(frozen=True)
class Scale(Network):
    """A network of one parameter."""

    def init(self, key, image_shape):
        return {"scale": jnp.float32([0.3])}

    def bind(self, params):
        return Partial(product, params["scale"])


@pytest.fixture(scope="module")
def scaled(tiny):
    return dataclasses.replace(tiny, net=Scale(), schedule=schedule.Linear(20), num_steps=2, checkpoint_every=2)


@pytest.mark.slow
def test_a_run_is_read_and_sampled_on_such_a_mesh(scaled, finished):
    """Given, or set by the user, who leaves the run on the default mesh."""
    mesh, params = MESHES["explicit"], {"scale": jnp.float32([0.3])}
    stored = jax.tree.leaves(ddpm_jax.load_run(finished, mesh_of(1)).params)
    expected = ddpm_jax.Run(scaled, 2, params, (8, 8, 1), mesh_of(1), 0.9).sample(KEY, 11)
    for by_user, given in ((False, mesh), (True, mesh), (True, None)):
        with entered(mesh, by_user):
            same(ddpm_jax.load_run(finished, given).params, stored)
            run = ddpm_jax.Run(scaled, 2, params, (8, 8, 1), given or mesh_of(8), 0.9)
            same(run.sample(KEY, 11), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_run_on_such_a_mesh(scaled, tmp_path):
    """Trained, loaded, sampled and measured on it, or on the default mesh while the user has set such a one."""
    mesh, source = MESHES["explicit"], Arrays.of(Digits(split="test").arrays["image"][:11])
    train(scaled, tmp_path / "one", mesh_of(1))
    train(scaled, tmp_path / "given", mesh)
    with jax.set_mesh(mesh):
        train(scaled, tmp_path / "set")
        within = ddpm_jax.load_run(tmp_path / "set")
        found = [within.sample(KEY, 11), within.bits_per_dim(KEY, source, num_steps=2)]
        of_set = ddpm_jax.load_run(tmp_path / "set", mesh).sample(KEY, 11)
    one, given = ddpm_jax.load_run(tmp_path / "one", mesh_of(1)), ddpm_jax.load_run(tmp_path / "given", mesh)
    expected = [one.sample(KEY, 11), one.bits_per_dim(KEY, source, num_steps=2)]
    same([given.sample(KEY, 11), given.bits_per_dim(KEY, source, num_steps=2)], expected)
    same(found, expected)
    same(of_set, expected[0])
    (x,) = placed(mesh, np.zeros((8, 8, 8, 1), np.float32))
    same(given.model().predict(x, 3), one.model().predict(np.zeros(x.shape, np.float32), 3))


def test_functions_of_single_images_on_such_a_mesh():
    """Over a data set, and features by an extractor with weights."""
    mesh, images = MESHES["explicit"], np.random.default_rng(0).integers(0, 256, (11, 2, 2, 1), np.uint8)
    weight = jax.device_put(jnp.float32([2.0]), NamedSharding(mesh, PartitionSpec()))
    weighted = Partial(lambda weight, batch, first: weight * batch["image"].sum((1, 2, 3)), weight)
    extractor = Extractor("own", "0" * 64, "none", Partial(_features, weight))
    for by_user in (False, True):
        with entered(mesh, by_user):
            same(over_examples(weighted, Arrays.of(images), mesh), 2.0 * images.sum((1, 2, 3)))
            same(extract(extractor, images, mesh=mesh).features, 2.0 * images.reshape(11, -1))


def _features(weight, images):
    return Extracted(weight * images.reshape(len(images), -1).astype(jnp.float32))


def test_take_is_indexing():
    """For scalars and batches; an index beyond the end is clamped in both, as JAX does under `jit`."""
    table = jnp.arange(5.0)
    for index in (3, np.int64(3), np.array([[0, 4], [2, -1]]), jnp.array([7])):
        np.testing.assert_array_equal(take(table, index), table[jnp.asarray(index)])
    (index,) = placed(MESHES["explicit"], np.arange(8) % 5)
    found = take(table, index)
    np.testing.assert_array_equal(found, table[np.arange(8) % 5])
    assert found.sharding == index.sharding
