"""What functions refuse, in one line that names the argument and the remedy; and what they accept in other forms."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data import Digits
from ddpm_jax.devices.mesh import MeshShape
from ddpm_jax.diffusion import forward, grids, objective, schedule, targets, timesteps, variance, weighting
from ddpm_jax.diffusion.arrays import as_data
from ddpm_jax.diffusion.bound import bound, estimate, prior, term
from ddpm_jax.diffusion.clipping import Clip, DynamicThreshold
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.discretised import discretised_log_prob
from ddpm_jax.diffusion.gaussian import Normal
from ddpm_jax.diffusion.guidance import guided, steered
from ddpm_jax.diffusion.likelihood import log_likelihood
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.objective import Draws, SquaredError, draw, draw_noise
from ddpm_jax.errors import as_int, require_int, short_repr
from ddpm_jax.features.extractor import extract, of_function
from ddpm_jax.nets import Network
from ddpm_jax.nets.classifier import ConvClassifier
from ddpm_jax.nets.mlp import Mlp
from ddpm_jax.nets.unet import UNet
from ddpm_jax.run import Run
from ddpm_jax.sampling import Ancestral, Ddim, DpmSolver, inpaint, interpolate, invert, sample, sample_path
from ddpm_jax.storage import specs
from ddpm_jax.training.average import Ema, PowerEma
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.fit import fit
from ddpm_jax.training.optimizer import Adam
from ddpm_jax.training.step import Recipe

pytestmark = pytest.mark.usefixtures("unchecked")  # what users see, to whom no annotation is enforced

SPEC, KEY, SHAPE = schedule.Linear(10), jax.random.key(0), (2, 4, 4, 1)
S = SPEC.build()
X = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
T = np.array([3, 7])
MASK = np.eye(4, dtype=bool)[..., None]
MIXTURE = Mixture.of([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 0.1)
RECIPE = Recipe(Mlp(4, 1), S)


def net(z_t, t):
    return 0.3 * z_t


MODEL = Denoiser(net, S)
NOISE = np.ones((2, 3), np.float32)


def run(tiny, one, **changes):
    experiment = dataclasses.replace(tiny, net=Free(), **changes)
    return Run(experiment, 0, {}, (8, 8, 1), one, 0.9)


@dataclasses.dataclass(frozen=True)
class Free(Network):
    """A network without parameters."""

    def init(self, key, image_shape):
        return {}

    def bind(self, params):
        return net


KEYS = {
    "sample": lambda key: sample(key, Denoiser(net, S, clip=Clip()), Ddim(5), SHAPE),
    "sample_path": lambda key: sample_path(key, Denoiser(net, S, clip=Clip()), Ddim(5), SHAPE, 2),
    "bound": lambda key: bound(key, Denoiser(net, S, clip=Clip()), X),
    "estimate": lambda key: estimate(key, Denoiser(net, S, clip=Clip()), X, 2),
    "log_likelihood": lambda key: log_likelihood(key, Denoiser(net, S), X),
    "inpaint": lambda key: inpaint(key, Denoiser(net, S, clip=Clip()), Ancestral(), X, MASK),
    "interpolate": lambda key: interpolate(key, Denoiser(net, S, clip=Clip()), Ddim(5), X, X, 5, [0.5]),
    "draw": lambda key: draw(key, S, SHAPE),
    "draw_noise": lambda key: draw_noise(key, SHAPE),
    "chain": lambda key: forward.chain(key, S, X),
    "fit": lambda key: fit(key, RECIPE, lambda key: MIXTURE.sample(key, 4), 2),
    "UNet.init": lambda key: UNet(8, (1,)).init(key, (8, 8, 1)),
    "Mlp.init": lambda key: Mlp().init(key, (2,)),
    "ConvClassifier.init": lambda key: ConvClassifier(2).init(key, (8, 8, 1)),
    "Mixture.sample": lambda key: MIXTURE.sample(key, 3),
    "Normal.sample": lambda key: Normal(jnp.zeros(2), jnp.ones(2)).sample(key),
}
NO_KEYS = [0, np.int64(0), None, X, np.arange(3), jax.random.split(KEY), jnp.uint32(3)]


@pytest.mark.parametrize("name", KEYS)
def test_what_is_no_key(name):
    for key in NO_KEYS:
        with pytest.raises(ValueError, match=r"^key is .*; expected one key .* such as jax.random.key\(0\)$"):
            KEYS[name](key)


def test_a_run_takes_a_key(tiny, one):
    with pytest.raises(ValueError, match=r"key is 0; expected .* jax.random.key\(0\)"):
        run(tiny, one).sample(0, 4)
    with pytest.raises(ValueError, match=r"key is 0; expected .* jax.random.key\(0\)"):
        run(tiny, one).bits_per_dim(0, Digits())


def test_keys_of_both_kinds():
    """Typed, and old ones, also as NumPy arrays."""
    old = jax.random.key_data(KEY)
    for key in (KEY, old, np.asarray(old)):
        np.testing.assert_array_equal(draw_noise(key, SHAPE), draw_noise(KEY, SHAPE))


EVERY_TARGET = [targets.Eps(), targets.X(), targets.V(), targets.Mean(), targets.Score()]
SCHEDULES = {
    "transition": lambda s: forward.transition(s, X, T),
    "marginal": lambda s: forward.marginal(s, X, T),
    "diffuse": lambda s: forward.diffuse(s, X, T, X),
    "noise_between": lambda s: forward.noise_between(s, X, X, T),
    "step": lambda s: s.step(T, T - 1),
    "posterior": lambda s: forward.posterior(s, X, X, T),
    "chain": lambda s: forward.chain(KEY, s, X),
    "walk": lambda s: forward.walk(s, X, np.zeros((10, *SHAPE))),
    "convert": lambda s: targets.convert(s, X, X, T, targets.Eps(), targets.Eps()),
    **{f"{target}.decode": functools.partial(lambda target, s: target.decode(s, X, X, T), target)
       for target in EVERY_TARGET if target != targets.X()},
    **{f"{target}.encode": functools.partial(lambda target, s: target.encode(s, X, X, T), target)
       for target in EVERY_TARGET[2:]},
    **{f"{target}.error_ratio": functools.partial(lambda target, s: target.error_ratio(s, T), target)
       for target in EVERY_TARGET},
    **{f"{of}": functools.partial(lambda of, s: weighting.weights(of, s, T, targets.Eps()), of)
       for of in (weighting.Simple(), weighting.MinSnr(), weighting.Vlb(), weighting.P2())},
    **{f"{of}": functools.partial(lambda of, s: of(s.step(T, T - 1)), of)
       for of in (variance.FixedSmall(), variance.FixedLarge())},
    **{f"{grid}.times": functools.partial(lambda grid, s: grid.times(s, None), grid)
       for grid in (grids.Uniform(), grids.Leading(), grids.LogSnr(), grids.Karras(), grids.Given((5, 2)))},
    "Sampler.times": lambda s: Ddim(5).times(s),
    "draw": lambda s: draw(KEY, s, SHAPE),
    "loss": lambda s: SquaredError()(Denoiser(net, s), X, Draws(T, X)),
    "prior": lambda s: prior(s, X),
    "term": lambda s: term(Denoiser(net, s, clip=Clip()), X, T, X),
    "bound": lambda s: bound(KEY, Denoiser(net, s, clip=Clip()), X),
    "estimate": lambda s: estimate(KEY, Denoiser(net, s, clip=Clip()), X, 2),
    "log_likelihood": lambda s: log_likelihood(KEY, Denoiser(net, s), X),
    "sample": lambda s: sample(KEY, Denoiser(net, s, clip=Clip()), Ddim(5), SHAPE),
    "inpaint": lambda s: inpaint(KEY, Denoiser(net, s, clip=Clip()), Ancestral(), X, MASK),
    "invert": lambda s: invert(Denoiser(net, s), Ddim(5), X),
    "interpolate": lambda s: interpolate(KEY, Denoiser(net, s, clip=Clip()), Ddim(5), X, X, 5, [0.5]),
    "steered": lambda s: steered(Denoiser(net, s), jnp.sum),
    "Mixture.diffused": lambda s: MIXTURE.diffused(s, 3),
    "Mixture.denoiser": lambda s: MIXTURE.denoiser(s).predict,
    "Mixture.reverse": lambda s: MIXTURE.reverse(s, X[:, 0, :2, 0], T),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_is_not_built(name):
    """The message says so; and any other value is named, too, by the functions that are called most."""
    with pytest.raises(ValueError, match=r"^process is Linear\(num_steps=10.*\(call its build\(\)\)$"):
        SCHEDULES[name](SPEC)


@pytest.mark.parametrize("name", ["diffuse", "marginal", "posterior", "convert", "loss", "bound", "sample", "draw"])
def test_what_is_no_schedule(name):
    for value in (None, 10, X, net):
        with pytest.raises(ValueError, match=r"^process is .*; expected a process, such as Linear"):
            SCHEDULES[name](value)


def test_a_spec_lacks_attributes_as_any_object():
    """And one that calls a field `beta` has it."""

    @dataclasses.dataclass(frozen=True)
    class Constant(schedule.Schedule):
        beta: float
        num_steps: int = 3

        def betas(self):
            return np.full(self.num_steps, self.beta)

    assert Constant(0.5).beta == 0.5
    assert not hasattr(SPEC, "nothing")


FIVE = [np.int64(5), np.array(5, np.uint8), jnp.asarray(5)]
WHOLE = {
    "t of diffuse": lambda n: forward.diffuse(S, X, n, X),
    "t of posterior": lambda n: forward.posterior(S, X, X, n, s=np.int64(2)).mean,
    "Linear": lambda n: schedule.Linear(n).build().snr(5),
    "Cosine": lambda n: schedule.Cosine(n).build().snr(5),
    "Sigmoid": lambda n: schedule.Sigmoid(n).build().snr(5),
    "Grid.times": lambda n: grids.Uniform().times(S, n),
    "Leading": lambda n: grids.Leading(n).times(S, 2),
    "Sampler": lambda n: sample(KEY, Denoiser(net, S, clip=Clip()), Ddim(n), (2, 3)),
    "shape": lambda n: sample(KEY, Denoiser(net, S, clip=Clip()), Ddim(2), (2, n)),
    "start": lambda n: sample(KEY, Denoiser(net, S, clip=Clip()), Ddim(2), (2, 3), start=(NOISE, n)),
    "first_index": lambda n: sample(KEY, Denoiser(net, S, clip=Clip()), Ancestral(2), (2, 3), first_index=n),
    "frames": lambda n: sample_path(KEY, Denoiser(net, S, clip=Clip()), Ddim(5), (2, 3), n).frames,
    "interpolate": lambda n: interpolate(KEY, Denoiser(net, S, clip=Clip()), Ddim(2), X, -X, n, [0.5]),
    "iterations": lambda n: invert(Denoiser(net, S), Ddim(2), X, iterations=n),
    "jump": lambda n: inpaint(KEY, Denoiser(net, S, clip=Clip()), Ddim(2), X, MASK, jump=n, resamples=np.int64(2)),
    "num_steps of bound": lambda n: bound(KEY, Denoiser(net, S, clip=Clip()), X, num_steps=n).total,
    "bins": lambda n: bound(KEY, Denoiser(net, S, clip=Clip()), X, num_steps=2, bins=n).total,
    "num_terms": lambda n: estimate(KEY, Denoiser(net, S, clip=Clip()), X, n),
    "levels": lambda n: discretised_log_prob(Normal(jnp.zeros(3), jnp.ones(3)), jnp.zeros(3), n),
    "max_steps": lambda n: log_likelihood(KEY, Denoiser(net, S), X[:, 0, 0], max_steps=n).latent,
    "interval": lambda n: guided(MODEL, MODEL, 2.0, interval=(np.int64(2), n)).predict(X, T),
    "draw": lambda n: draw(KEY, S, (2, n)).eps,
    "Mixture.sample": lambda n: MIXTURE.sample(KEY, n),
    "Mixture.diffused": lambda n: MIXTURE.diffused(S, n).means,
    "modes": lambda n: MIXTURE.modes(MIXTURE.means, steps=n),
    "Mlp": lambda n: Mlp(4, 1).init(KEY, (n,))["in"]["kernel"],
    "chunk": lambda n: extract(of_function(lambda x: x.reshape(len(x), -1)), np.zeros((7, 2, 2, 1), np.uint8), n)[0],
}  # fmt: skip


SLOW = {"levels", "max_steps", "modes", "num_steps of bound", "num_terms", "bins", "jump", "interval", "iterations"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in WHOLE])
def test_whole_numbers_of_every_kind(name):
    """NumPy's, and arrays without axes, are what Python's are."""
    expected = WHOLE[name](5)
    for five in FIVE:
        np.testing.assert_array_equal(WHOLE[name](five), expected)


@pytest.mark.parametrize("value", [True, np.True_, 5.0, np.float32(5), "5", None, np.array([5]), jnp.float32(5), [5]])
def test_what_is_no_whole_number(value):
    assert as_int(value) is None
    for call in (
        lambda: require_int("n", value, 1),
        lambda: schedule.Cosine(value),
        lambda: sample(KEY, Denoiser(net, S, clip=Clip()), Ddim(2), (2, value)),
        lambda: grids.Uniform().times(S, [value]),
        lambda: guided(MODEL, MODEL, 1.0, interval=(1, value)),
        lambda: interpolate(KEY, Denoiser(net, S, clip=Clip()), Ddim(2), X, X, value, [0.5]),
        lambda: MIXTURE.sample(KEY, value),
        lambda: Experiment("own", Digits(), Mlp(), num_steps=value),
    ):
        with pytest.raises(ValueError, match=r"^(n|num_steps|shape|interval|t|count) is .*; expected "):
            call()


def test_a_run_takes_whole_numbers_of_every_kind(tiny, one):
    few = run(tiny, one, sampler=Ancestral(2))
    expected = few.sample(KEY, 3, first_index=2, chunk=2)
    for n in (np.int64, jnp.asarray):
        np.testing.assert_array_equal(few.sample(KEY, n(3), first_index=n(2), chunk=n(2)), expected)
    for name, value in (("n", 0), ("n", 2.5), ("first_index", -1), ("chunk", 0), ("labels", [[1], [1, 2]])):
        with pytest.raises(ValueError, match=f"^{name} is .*; expected"):
            few.sample(**{"key": KEY, "n": 3, name: value})


FROZEN = {
    "schedules": lambda i, f: (schedule.Linear(i(10), f(0.25), f(0.5)), schedule.Cosine(i(10), max_beta=f(0.5)),
                               schedule.Sigmoid(i(10), f(-2.0))),
    "samplers": lambda i, f: (Ddim(i(5), eta=f(0.5)), DpmSolver(i(5)), Ancestral(i(2), grids.Given(np.array([5, 3])))),
    "grids": lambda i, f: (grids.Leading(i(1)), grids.Karras(f(5.0), f(0.5), f(8.0)), grids.LogSnr(f(-8.0))),
    "weightings": lambda i, f: (weighting.MinSnr(f(4.0)), weighting.P2(f(0.5), f(2.0))),
    "clippings": lambda i, f: (Clip(f(-2.0), f(2.0)), DynamicThreshold(f(0.5), f(2.0))),
    "objectives": lambda i, f: (objective.FullBound(i(16)), objective.Hybrid(f(0.5), bins=i(16))),
    "timesteps": lambda i, f: (timesteps.LossAwareTimesteps(i(4), f(0.5)),),
    "networks": lambda i, f: (UNet(i(8), (i(1), i(2)), dropout=f(0.5)), Mlp(i(8), i(2))),
    "the rest": lambda i, f: (
        MeshShape(fsdp=i(2)),
        Experiment("own", Digits(), Mlp(), batch_size=i(8), num_steps=i(9), keep_every=i(3), seed=i(4)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_specs_of_numpy_numbers(name):
    """They are equal to those of Python's, have the same hash and the same JSON."""
    for plain in FROZEN[name](int, float):
        assert json.loads(json.dumps(specs.encode(plain)))
    for kinds in ((np.int64, np.float64), (np.int32, np.float32), (np.array, np.array), (jnp.asarray, jnp.asarray)):
        for ours, plain in zip(FROZEN[name](*kinds), FROZEN[name](int, float), strict=True):
            assert ours == plain
            assert hash(ours) == hash(plain)
            assert repr(ours) == repr(plain)
            assert json.dumps(specs.encode(ours)) == json.dumps(specs.encode(plain))


NO_NUMBER, NO_FLAG = "expected a number", "expected True or False"
OTHER_KINDS = {
    "learning_rate is '1e-3'; " + NO_NUMBER: lambda: Adam(learning_rate="1e-3"),
    "learning_rate is inf; expected more than 0, and finite": lambda: Adam(learning_rate=float("inf")),
    "warmup_steps is 3.5; expected a whole number": lambda: Adam(warmup_steps=3.5),
    "clip_norm is '1'; expected a number or None": lambda: Adam(clip_norm="1"),
    "decay is None; " + NO_NUMBER: lambda: Ema(None),
    "others is 0.9; expected a tuple of numbers": lambda: Ema(others=0.9),
    "warmup is 'no'; " + NO_FLAG: lambda: Ema(warmup="no"),
    "width is '0.1'; " + NO_NUMBER: lambda: PowerEma("0.1"),
    "eta is '1'; " + NO_NUMBER: lambda: Ddim(5, eta="1"),
    "sde is 1; " + NO_FLAG: lambda: DpmSolver(5, sde=1),
    "rho is '7'; " + NO_NUMBER: lambda: grids.Karras(rho="7"),
    "offset is 'a'; " + NO_NUMBER: lambda: schedule.Cosine(10, offset="a"),
    "quantile is True; " + NO_NUMBER: lambda: DynamicThreshold(True),
    "vlb_weight is 'a'; " + NO_NUMBER: lambda: objective.Hybrid("a"),
    "dropout is '0.1'; " + NO_NUMBER: lambda: UNet(8, (1,), dropout="0.1"),
    "channel_multipliers is 1; expected a tuple of whole numbers": lambda: UNet(8, 1),
    "channel_multipliers is (1.5,); expected a tuple of whole numbers": lambda: UNet(8, (1.5,)),
    "num_res_blocks is [1, 2]; expected a whole number": lambda: UNet(8, (1, 2), [1, 2]),
    "flip is 'no'; " + NO_FLAG: lambda: Experiment("own", Digits(), Mlp(), flip="no"),
    "name is 3; expected a name": lambda: Experiment(3, Digits(), Mlp()),
}


@pytest.mark.parametrize("message", OTHER_KINDS)
def test_fields_of_another_kind(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        OTHER_KINDS[message]()


def test_a_list_is_a_tuple_where_a_field_declares_one():
    assert Ema(others=[0.9]) == Ema(others=(0.9,))
    assert hash(UNet(8, [1, 2], 1, {4})) == hash(UNet(8, (1, 2), 1, (4,)))


@pytest.mark.parametrize("output", [None, (X, X), {"sample": X}], ids=["None", "tuple", "dict"])
def test_a_network_that_returns_no_array(output):
    with pytest.raises(ValueError, match=f"the network returned a {type(output).__name__}; expected one array"):
        SquaredError()(Denoiser(lambda z_t, t: output, S), X, Draws(T, X))


def test_a_class_of_the_user_with_numpy_numbers():
    @dataclasses.dataclass(frozen=True)
    class Mine:
        count: object = np.int64(3)
        rate: object = np.float32(0.5)
        flag: object = np.True_
        both: object = (np.int8(1), jnp.asarray(2))

    encoded = {name: specs.encode(value) for name, value in vars(Mine()).items()}
    assert json.dumps(encoded) == '{"count": 3, "rate": 0.5, "flag": true, "both": [1, 2]}'


DATA = {
    "loss": lambda x: SquaredError()(Denoiser(net, S), x, Draws(T, X)),
    "term": lambda x: term(Denoiser(net, S, clip=Clip()), x, T, X),
    "bound": lambda x: bound(KEY, Denoiser(net, S, clip=Clip()), x, num_steps=2),
    "estimate": lambda x: estimate(KEY, Denoiser(net, S, clip=Clip()), x, 2),
    "log_likelihood": lambda x: log_likelihood(KEY, Denoiser(net, S), x, max_steps=4),
    "inpaint": lambda x: inpaint(KEY, Denoiser(net, S, clip=Clip()), Ancestral(2), x, MASK, resamples=1),
    "invert": lambda x: invert(Denoiser(net, S), Ddim(2), x),
    "interpolate": lambda x: interpolate(KEY, Denoiser(net, S, clip=Clip()), Ddim(2), x, X, 5, [0.5]),
    "interpolate to": lambda x: interpolate(KEY, Denoiser(net, S, clip=Clip()), Ddim(2), X, x, 5, [0.5]),
}
RNG = np.random.default_rng(0)
PIXELS = [
    np.full(SHAPE, 255.0, np.float32),
    RNG.integers(0, 256, SHAPE).astype(np.float64),
    RNG.uniform(0, 255, SHAPE).astype(np.float32),
    jnp.asarray(RNG.integers(0, 200, SHAPE), jnp.bfloat16),
    jnp.asarray(RNG.integers(0, 256, SHAPE), jnp.float32),
]


@pytest.mark.parametrize("name", DATA)
def test_pixels_that_are_not_scaled(name):
    for x in PIXELS:
        with pytest.raises(ValueError, match=r"^x(_a|_b)? reaches \d+(\.\d+)?; expected data in \[-1, 1\]"):
            DATA[name](x)
    with pytest.raises(
        ValueError, match=r"^x(_a|_b)? has dtype uint8; expected floats in \[-1, 1\]: data.images.to_unit"
    ):
        DATA[name](PIXELS[1].astype(np.uint8))
    with pytest.raises(ValueError, match=r"^x(_a|_b)? is a list of parts of different shapes; expected an array"):
        DATA[name]([[0.1, 0.2], [0.3]])
    for nothing in (net, "x", None):
        with pytest.raises(ValueError, match=r"^x(_a|_b)? is .*; expected an array of floats"):
            DATA[name](nothing)


def test_data_that_are_no_pixels():
    """Points, latents, counts, and images in other ranges are what they are; nothing is looked at inside `jit`."""
    for x in (
        [[3.0, -3.0], [0.0, 3.0]],
        5 * RNG.standard_normal((2, 8, 8, 4)),
        np.array([[0.0, 1.0], [2.0, 3.0]]),
        RNG.uniform(0, 1, SHAPE),
        RNG.uniform(0, 30, SHAPE),
        RNG.uniform(-255, 255, SHAPE),
        RNG.uniform(0, 255, (5, 2)),
        np.full((3, 2), 1000.0),
        np.zeros((0, 4, 4, 1)),
        np.full(SHAPE, np.nan),
    ):
        np.testing.assert_array_equal(as_data(x, scaled=True), np.asarray(x, np.float32))
    assert jnp.isfinite(jax.jit(DATA["loss"])(PIXELS[0])).all()
    assert as_data(PIXELS[0]).max() == 255


def test_only_the_first_examples_are_looked_at():
    x = np.zeros((100, 2, 2, 1), np.float32)
    x[99] = 255
    as_data(x, scaled=True)
    x[63] = 255
    for array in (x, jnp.asarray(x)):
        with pytest.raises(ValueError, match="x reaches 255"):
            as_data(array, scaled=True)


OTHER = [X[:1], X[:, :1], X[0], X[..., None], np.float32(1.0), np.zeros((3, 4, 4, 1), np.float32)]
SHAPES = {
    "eps": [
        lambda y: forward.diffuse(S, X, T, y),
        lambda y: SquaredError()(Denoiser(net, S), X, Draws(T, y)),
        lambda y: term(Denoiser(net, S, clip=Clip()), X, T, y),
        lambda y: targets.V().encode(S, X, y, T),
        lambda y: targets.Mean().encode(S, X, y, T),
    ],
    "x": [lambda y: forward.posterior(S, X, y, T), lambda y: forward.noise_between(S, X, y, T)],
    "output": [
        *(functools.partial(lambda of, y: of.decode(S, y, X, T), of) for of in (targets.Eps(), targets.V())),
        lambda y: targets.convert(S, y, X, T, targets.X(), targets.Eps()),
    ],
    "x_b": [lambda y: interpolate(KEY, Denoiser(net, S, clip=Clip()), Ddim(2), X, y, 5, [0.5])],
    "mask": [lambda y: inpaint(KEY, Denoiser(net, S, clip=Clip()), Ddim(2), X, np.ones((*SHAPE, 2), bool))],
}


@pytest.mark.parametrize("name", SHAPES)
def test_arrays_of_another_shape(name):
    """Nothing is broadcast without being asked to be."""
    for call in SHAPES[name]:
        for other in OTHER:
            with pytest.raises(ValueError, match=f"^{name} (has shape|is)"):
                call(other)


SWAPPED = {
    "predict is a Chain; expected a function": lambda: sample(KEY, Denoiser(S, net, clip=Clip()), Ddim(2), SHAPE),
    "sampler is .2, 4, 4, 1.; expected a Sampler": lambda: sample(KEY, Denoiser(net, S, clip=Clip()), SHAPE, (2, 3)),
    "shape is Ddim.*; expected .batch, ....": lambda: sample(KEY, Denoiser(net, S, clip=Clip()), SHAPE, Ddim(2)),
    "key is an array of float32": lambda: bound(X, Denoiser(net, S, clip=Clip()), KEY),
    "predict is an array of float32": lambda: bound(KEY, Denoiser(X, S, clip=Clip()), net),
    "x is .*; expected an array of floats": lambda: invert(Denoiser(net, S), Ddim(2), KEY),
    "sampler is an array": lambda: invert(Denoiser(net, S), X, Ddim(2)),
    "mask has dtype float32": lambda: inpaint(KEY, Denoiser(net, S, clip=Clip()), Ddim(2), X, X),
    "draws is an array": lambda: SquaredError()(Denoiser(net, S), Draws(T, X), X),
    "draws is a tuple": lambda: SquaredError()(Denoiser(net, S), X, (T, X)),
    "process is an array": lambda: forward.diffuse(X, S, T, X),
    "eps has shape .2,.; expected that of x": lambda: forward.diffuse(S, X, X, T),
    "t has dtype float32": lambda: forward.transition(S, X, X),
    "recipe is <function": lambda: fit(KEY, lambda key: X, RECIPE, 2),
    "key is (a )?Recipe": lambda: fit(RECIPE, KEY, lambda key: X, 2),
    "key is .8, 8, 1.": lambda: UNet().init((8, 8, 1), KEY),
    "image_shape is .8, 8.5, 1.": lambda: UNet().init(KEY, (8, 8.5, 1)),
    "count is a PRNGKeyArray": lambda: MIXTURE.sample(KEY, KEY),
    "target is an array": lambda: targets.convert(S, X, X, T, targets.Eps(), X),
    "interval is 5": lambda: guided(MODEL, MODEL, 1.0, interval=5),
    "null_model is 2.0": lambda: guided(MODEL, 2.0, MODEL),
    "log_likelihood is an array": lambda: steered(Denoiser(net, S), X),
    "grid is 5": lambda: bound(KEY, Denoiser(net, S, clip=Clip()), X, grid=5),
    "start is 'int'": lambda: sample(KEY, Denoiser(net, S, clip=Clip()), Ddim(2), SHAPE, start=3),
    "start.1. is 0": lambda: sample(KEY, Denoiser(net, S, clip=Clip()), Ddim(2), SHAPE, start=(X, 0)),
}  # fmt: skip


@pytest.mark.parametrize("message", SWAPPED)
def test_arguments_in_another_order(message):
    with pytest.raises(ValueError, match=rf"^({message})") as error:
        SWAPPED[message]()
    assert "\n" not in str(error.value)


RAGGED = {
    "t is": lambda ragged: forward.diffuse(S, X, ragged, X),
    "betas is": lambda ragged: schedule.Betas(ragged),
    "values is": lambda ragged: weighting.Weights(ragged),
    "timesteps is": lambda ragged: grids.Given(ragged),
    "weights is": lambda ragged: interpolate(KEY, Denoiser(net, S, clip=Clip()), Ddim(2), X, X, 5, ragged),
    "means is": lambda ragged: Mixture.of([0.5, 0.5], ragged, 0.1),
    "x is": lambda ragged: forward.marginal(S, ragged, T),
}


@pytest.mark.parametrize("message", RAGGED)
def test_lists_of_different_lengths(message):
    with pytest.raises(ValueError, match=f"^{message} .*; expected"):
        RAGGED[message]([[0.1, 0.2], [0.3]])


def test_values_in_messages_are_short():
    assert short_repr(X) == "an array of float32 [2, 4, 4, 1]"
    assert short_repr(np.int64(5)) == "np.int64(5)"
    assert short_repr(np.array([1, 2])) == "array([1, 2])"
    assert short_repr(S) == "a Chain"
    assert jax.eval_shape(lambda x: jnp.zeros(len(short_repr(x))), jnp.zeros(3)).shape == (
        len("an array of float32 [3]"),
    )
