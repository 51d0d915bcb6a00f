"""Everything works where JAX promotes neither ranks nor dtypes by itself: nothing here leaves that to chance."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import NETWORKS, case

from ddpm_jax.data.images import random_flip, to_pixels, to_unit
from ddpm_jax.diffusion import bound, forward, likelihood, objective, targets, weighting
from ddpm_jax.diffusion.clipping import Clip, DynamicThreshold
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.guidance import guided, steered
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.schedule import Cosine
from ddpm_jax.diffusion.timesteps import LossAwareTimesteps, StratifiedTimesteps, UniformTimesteps
from ddpm_jax.diffusion.variance import FixedLarge, FixedSmall, LearnedRange
from ddpm_jax.features import inception, inception_layers
from ddpm_jax.features.classifier import moved
from ddpm_jax.metrics.frechet import frechet_distance, moments
from ddpm_jax.metrics.inception_score import inception_score
from ddpm_jax.metrics.kernel import kernel_distance
from ddpm_jax.metrics.manifold import manifold
from ddpm_jax.metrics.memorisation import memorisation
from ddpm_jax.metrics.neighbours import neighbours
from ddpm_jax.metrics.sliced import sliced_wasserstein
from ddpm_jax.metrics.spectrum import power_spectrum
from ddpm_jax.nets.classifier import ConvClassifier
from ddpm_jax.nets.mlp import Mlp
from ddpm_jax.sampling import (
    Ancestral,
    Ddim,
    DpmSolver,
    Heun,
    Karras,
    LogSnr,
    Quadratic,
    inpaint,
    interpolate,
    invert,
    sample,
    sample_path,
)
from ddpm_jax.training.average import Ema, PowerEma
from ddpm_jax.training.optimizer import Adam
from ddpm_jax.training.step import Recipe

KEY, SCHEDULE = jax.random.key(0), Cosine(num_steps=8).build()
X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
T = np.array([1, 8], np.int32)
ROWS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
PIXELS = np.zeros((2, 6, 6, 1), np.uint8)
MIXTURE = Mixture.of([0.25, 0.75], [[0.0, 1.0, 2.0], [1.0, 0.0, -1.0]], [0.5, 0.3])


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def traced(function, *args):
    """Trace a function, for its errors."""
    jax.make_jaxpr(lambda *args: jax.tree.leaves(function(*args)))(*args)


def predict(z, t):
    return 0.5 * z


def twice(z, t):
    return jnp.concatenate([0.5 * z, z], -1)


@pytest.mark.slow  # test_bfloat16.py traces the same networks in bfloat16, under the same rules
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    loss, params = case(NETWORKS[name], 2, 16)
    jax.eval_shape(jax.grad(lambda params: loss(params, "float32")), params)


@pytest.mark.parametrize("out_multiplier", [1, 2])
def test_mlp_and_classifier(out_multiplier):
    net = Mlp(4, 2, waves=2, out_multiplier=out_multiplier)
    params = net.init(KEY, (3,))
    jax.eval_shape(jax.grad(lambda params: net.bind(params)(X, T).sum()), params)
    classifier = ConvClassifier(3, 2, 4)
    params = classifier.init(KEY, (6, 6, 1))
    jax.eval_shape(lambda x: classifier.apply(params, to_unit(moved(KEY, x))), PIXELS)


TARGETS = {target: getattr(targets, target)() for target in ("Eps", "X", "V", "Mean", "Score")}
VARIANCES = {"small": FixedSmall(), "large": FixedLarge(), "learned": LearnedRange()}


@pytest.mark.parametrize(
    ("target", "variance"), [*((target, "small") for target in TARGETS), ("V", "large"), ("X", "learned")]
)
def test_targets_variances_and_terms(target, variance):
    network = twice if variance == "learned" else predict
    how = {"target": TARGETS[target], "variance": VARIANCES[variance]}
    traced(lambda: bound.term(Denoiser(network, SCHEDULE, **how), X, T, X))
    traced(lambda: bound.term(Denoiser(network, SCHEDULE, **how), X, 3, X, bins=None, s=jnp.int32(0)))
    traced(lambda: targets.convert(SCHEDULE, X, X, T, TARGETS[target], targets.V()))


def test_forward():
    traced(lambda: forward.chain(KEY, SCHEDULE, X))
    for t in (T, 3):
        traced(lambda x, t=t: forward.transition(SCHEDULE, x, t).sample(KEY), X)
        traced(lambda x, t=t: forward.marginal(SCHEDULE, x, t), X)
        traced(lambda x, t=t: forward.posterior(SCHEDULE, x, x, t).kl(forward.posterior(SCHEDULE, x, x, t, 0)), X)


WEIGHTINGS = [weighting.Simple(), weighting.MinSnr(5.0), weighting.Vlb(), weighting.P2()]
WEIGHTINGS.append(weighting.Weights(tuple(np.linspace(0, 1, 8))))


@pytest.mark.parametrize("weight", WEIGHTINGS, ids=lambda weight: type(weight).__name__)
def test_losses(weight):
    draws = objective.Draws(jnp.asarray(T), jnp.asarray(X))
    for target in TARGETS.values():
        traced(partial(objective.SquaredError(weight), Denoiser(predict, SCHEDULE, target), X, draws))


@pytest.mark.parametrize("loss", [objective.FullBound(), objective.FullBound(None), objective.Hybrid()], ids=str)
def test_bounds_as_losses(loss):
    decoder = Denoiser(twice, SCHEDULE, targets.Eps(), LearnedRange())
    traced(lambda: loss(decoder, X, objective.draw(KEY, SCHEDULE, X.shape)))


def test_bounds():
    traced(lambda: bound.bound(KEY, Denoiser(predict, SCHEDULE, clip=Clip()), X, num_steps=3).rate_distortion())
    traced(
        lambda: bound.bits_per_dim(
            bound.estimate(KEY, Denoiser(predict, SCHEDULE, clip=Clip()), X, 3, first_index=2), X
        )
    )


@pytest.mark.parametrize("trace", ["hutchinson", "exact"])
def test_likelihood(trace):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        import diffrax  # noqa: F401
    traced(lambda: likelihood.log_likelihood(KEY, Denoiser(predict, SCHEDULE), X, trace=trace))


SAMPLERS = [Ancestral(), Ancestral(3, Quadratic()), Ddim(3, eta=0.5), Ddim(3, LogSnr()), DpmSolver(4)]
SAMPLERS += [DpmSolver(4, sde=True), DpmSolver(4, Karras()), Heun(3)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_samplers(sampler):
    traced(
        lambda: sample(
            KEY, Denoiser(predict, SCHEDULE, clip=Clip()), sampler, (2, 3), start=(X, 4), first_index=jnp.int32(5)
        )
    )


def test_a_path_that_is_clipped_and_whose_variance_is_learned():
    options = {"target": targets.V(), "variance": LearnedRange(), "clip": DynamicThreshold()}
    traced(lambda: sample_path(KEY, Denoiser(twice, SCHEDULE, **options), Ancestral(), (2, 3), 2, of="x"))
    traced(lambda: sample_path(KEY, Denoiser(predict, SCHEDULE, clip=Clip()), Ddim(3), (2, 3), 2))


@pytest.mark.parametrize("mask", [np.array([[1, 0, 1]] * 2, bool), np.array([1, 0, 1], bool)], ids=["each", "one"])
def test_inpainting(mask):
    traced(lambda: inpaint(KEY, Denoiser(predict, SCHEDULE, clip=Clip()), Ancestral(4), X, mask, jump=2, resamples=2))


def test_interpolation_and_inversion():
    traced(lambda: interpolate(KEY, Denoiser(predict, SCHEDULE, clip=Clip()), Ddim(4), X, -X, 4, np.array([0.0, 0.5])))
    traced(lambda: invert(Denoiser(predict, SCHEDULE), Ddim(4), X, iterations=3))


@pytest.mark.parametrize("scale", [2.0, jnp.array([1.0, 3.0])], ids=["one", "each"])
def test_guidance(scale):
    learned = Denoiser(twice, SCHEDULE, variance=LearnedRange())
    for interval in (None, (2, 5)):
        traced(guided(learned, learned, scale, interval=interval).predict, X, T)
    traced(steered(Denoiser(predict, SCHEDULE), lambda x: -(x**2).sum(-1), scale=scale).predict, X, T)
    traced(steered(learned, lambda x: -(x**2).sum(-1), scale=scale).predict, X, T)


def test_mixtures():
    def everything(y):
        diffused = MIXTURE.diffused(SCHEDULE, 3)
        own = diffused.log_prob(y), diffused.responsibilities(y), diffused.score(y), diffused.moments()
        reverse = jax.vmap(Mixture.moments)(MIXTURE.reverse(SCHEDULE, y, T)), MIXTURE.denoiser(SCHEDULE).predict(y, T)
        return own, reverse, MIXTURE.sample(KEY, 5)

    traced(everything, X)
    numbers = Mixture.of([0.5, 0.5], [0.0, 1.0], 1.0)
    jax.eval_shape(numbers.cdf, jnp.zeros(4))
    assert len(numbers.modes(np.zeros(2, np.float32), steps=2)) > 0


METRICS = {
    "neighbours": lambda: neighbours(ROWS, ROWS, 2, exclude_self=True),
    "kernel": lambda: kernel_distance(ROWS, 2 * ROWS, subsets=2),
    "sliced": lambda: sliced_wasserstein(KEY, ROWS, 2 * ROWS, directions=4),
    "manifold": lambda: manifold(ROWS, ROWS + 0.1, 2),
    "frechet": lambda: frechet_distance(moments(ROWS), moments(2 * ROWS)),
    "inception": lambda: inception_score(ROWS, 2),
    "memorisation": lambda: memorisation(ROWS[:, 0] ** 2, ROWS[:, 1] ** 2),
    "spectrum": lambda: power_spectrum(to_unit(PIXELS)),
    "pixels": lambda: random_flip(KEY, to_pixels(to_unit(PIXELS))),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_and_images(name):
    METRICS[name]()


def test_inception():
    shapes = {"fc.kernel": (2048, 1008)}
    channels = 3
    for stage in inception_layers.STAGES.values():
        for unit, inputs in inception_layers.units(stage, channels)[0]:
            height, width = unit.size if isinstance(unit.size, tuple) else (unit.size,) * 2
            shapes[f"{unit.name}.kernel"] = (height, width, inputs, unit.features)
            shapes[f"{unit.name}.bias"] = (unit.features,)
        channels = inception_layers.units(stage, channels)[1]
    weights = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    jax.eval_shape(inception.activations, weights, PIXELS)


RULES = [UniformTimesteps(), StratifiedTimesteps(), LossAwareTimesteps()]
COSINE = Adam(warmup_steps=0, decay="cosine", weight_decay=0.1, clip_norm=None)
OPTIMIZERS = [optax.sgd(0.1), Adam().build(10), COSINE.build(10)]
AVERAGES = [Ema(), Ema(0.99, warmup=True, others=(0.9,)), PowerEma()]


@pytest.mark.parametrize(("rule", "optimizer", "ema"), [*zip(RULES, OPTIMIZERS, AVERAGES, strict=True)])
def test_a_training_step(rule, optimizer, ema):
    recipe = Recipe(Mlp(4, 1), SCHEDULE, timesteps=rule, update=optimizer, ema=ema, accumulate=2)
    state = jax.eval_shape(lambda: recipe.start(recipe.net.init(KEY, (3,))))
    after, _ = jax.eval_shape(recipe.step, state, {"image": jax.ShapeDtypeStruct((4, 3), jnp.float32)}, KEY)
    assert jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)


def test_a_training_step_on_images():
    from ddpm_jax.nets.unet import UNet

    net = UNet(4, (1,), 1, (), num_classes=3, label_dropout=0.1, out_multiplier=2)
    how = {"variance": LearnedRange(), "objective": objective.Hybrid(), "update": optax.sgd(0.1)}
    recipe = Recipe(net, SCHEDULE, **how, flip=True)
    state = jax.eval_shape(lambda: recipe.start(net.init(KEY, (8, 8, 1))))
    batch = {"image": jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.uint8), "label": jax.ShapeDtypeStruct((2,), jnp.int32)}
    jax.eval_shape(recipe.step, state, batch, KEY)
