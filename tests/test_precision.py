"""Numbers that are quoted come from products in full float32, unless the user sets another precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import equations

from ddpm_jax.devices.precision import quoted, quoted_precision
from ddpm_jax.diffusion import bound, likelihood
from ddpm_jax.diffusion.clipping import Clip
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.guidance import guided
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.schedule import Cosine
from ddpm_jax.evaluation.report import PRECISIONS, summary
from ddpm_jax.evaluation.samples import Drawing, draw
from ddpm_jax.features.classifier import Classifier
from ddpm_jax.features.extractor import extract, of_function
from ddpm_jax.metrics import manifold, neighbours, sliced
from ddpm_jax.nets.classifier import ConvClassifier
from ddpm_jax.nets.mlp import Mlp
from ddpm_jax.nets.unet import UNet
from ddpm_jax.run import Run
from ddpm_jax.sampling import Ddim, sample

HIGHEST, DEFAULT = jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT
KEY, SCHEDULE = jax.random.key(0), Cosine(num_steps=4).build()
UNET = UNet(4, (1,), 1, (), num_classes=2, label_dropout=0.1)
MLP, CLASSIFIER = Mlp(4, 1), ConvClassifier(2, 2, 4)
IMAGES, POINTS, ROWS = np.zeros((2, 8, 8, 1), np.float32), np.zeros((2, 3), np.float32), np.ones((6, 2), np.float32)


def unet():
    net, params = UNET, UNET.init(KEY, (8, 8, 1))
    labels = np.zeros(2, int)
    return guided(*(Denoiser(net.bind(params, n), SCHEDULE) for n in (labels, labels + 2)), 2.0).predict


def mlp():
    return MLP.bind(MLP.init(KEY, (3,)))


def classify():
    return Classifier(CLASSIFIER, (8, 8, 1), CLASSIFIER.init(KEY, (8, 8, 1))).apply(IMAGES.astype(np.uint8))


def gradient_of_bound():
    params = MLP.init(KEY, (3,))
    return jax.grad(
        lambda p: bound.estimate(KEY, Denoiser(MLP.bind(p), SCHEDULE, clip=Clip()), POINTS, 2, bins=None).sum()
    )(params)


QUOTED = {
    "bound": lambda: bound.bound(KEY, Denoiser(unet(), SCHEDULE, clip=Clip()), IMAGES).total,
    "one term": lambda: bound.term(Denoiser(mlp(), SCHEDULE, clip=Clip()), POINTS, 2, POINTS).nats,
    "drawn terms": lambda: bound.estimate(KEY, Denoiser(mlp(), SCHEDULE, clip=Clip()), POINTS, 2),
    "drawn terms, gradient": gradient_of_bound,
    "likelihood": lambda: likelihood.log_likelihood(KEY, Denoiser(mlp(), SCHEDULE), POINTS),
    "classifier": classify,
}
EXACT = {
    "neighbours": lambda: neighbours.squared(jnp.asarray(ROWS), jnp.asarray(ROWS)),
    "balls": lambda: manifold._decide(jnp.asarray(ROWS), jnp.asarray(ROWS), jnp.ones(6)),
    "lines": lambda: sliced._project(jnp.asarray(ROWS), jnp.asarray(ROWS)),
    "mixture": lambda: Mixture.of([0.5, 0.5], [0.0, 1.0], 1.0).cdf(jnp.zeros(3)),
}


def precisions(function) -> set:
    """Those of all products and convolutions of a function's program."""
    found = [equation.params for equation in equations(jax.make_jaxpr(function)().jaxpr)]
    products = [params["precision"] for params in found if "precision" in params]
    assert products
    return {kind for pair in products for kind in (pair or (DEFAULT,))}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "likelihood")) for name in QUOTED]
)
def test_a_quoted_number_is_of_full_float32_unless_asked_otherwise(name):
    assert precisions(QUOTED[name]) == {HIGHEST}
    with jax.default_matmul_precision("default"):
        others = {HIGHEST} if name == "likelihood" else set()  # diffrax adds its stages up in full
        assert precisions(QUOTED[name]) == {DEFAULT} | others


@pytest.mark.parametrize("name", EXACT)
def test_what_is_proven_is_of_full_float32_whatever_is_asked_for(name):
    with jax.default_matmul_precision("default"):
        assert precisions(EXACT[name]) == {HIGHEST}


def test_the_compiled_program_has_the_precision_that_is_asked_for():
    products = jax.jit(quoted(lambda x: x @ x)).trace(jnp.ones((2, 2)))
    for platform in ("cuda", "tpu"):
        assert "precision = [HIGHEST, HIGHEST]" in products.lower(lowering_platforms=(platform,)).as_text()


def test_samples_have_the_precision_that_jax_is_set_to():
    network = mlp()

    def drawn():
        return sample(KEY, Denoiser(network, SCHEDULE, clip=Clip()), Ddim(num_steps=2), POINTS.shape)

    assert precisions(drawn) == {DEFAULT}
    with jax.default_matmul_precision("highest"):
        assert precisions(drawn) == {HIGHEST}


def seen() -> list[str]:
    """What extractors of other people's code, and the drawing of images to be scored, are run in."""
    found = []

    def features(images):
        found.append(jax.config.jax_default_matmul_precision)
        return np.zeros((len(images), 2))

    extract(of_function(features), np.zeros((2, 4, 4, 1), np.uint8))
    return found


def test_features_by_other_functions_are_of_full_float32_too():
    assert seen() == ["highest"]
    with jax.default_matmul_precision("high"):
        assert seen() == ["high"]


def test_images_that_are_scored_are_drawn_in_full_float32(tiny, one, monkeypatch, tmp_path):
    found = []

    def drawn(run, key, n, **_):
        found.append(jax.config.jax_default_matmul_precision)
        return np.zeros((n, 8, 8, 1), np.float32)

    monkeypatch.setattr(Run, "sample", drawn)
    drawing = Drawing(Run(tiny, 1, {"a": np.zeros(1)}, (8, 8, 1), one, 0.9))
    draw(drawing, tmp_path / "a", 3)
    with jax.default_matmul_precision("default"):
        draw(drawing, tmp_path / "b", 3)
    assert found == ["highest", "default"]


def test_a_report_says_the_precision_and_other_precisions_are_other_images(tiny, one):
    def conditions(precision=None):
        with jax.default_matmul_precision(precision or quoted_precision()):
            drawing = Drawing(Run(tiny, 1, {"a": np.zeros(1)}, (8, 8, 1), one, 0.9)).conditions
        rest = {"num_samples": 1, "evaluations": 1, "held_out": None, "features": None, "code": drawing["versions"]}
        about = {"data": "digits", "split": None, "count": 1, "digest": "0"}
        return {"drawing": drawing, "reference": about, **rest, "code": {**drawing["versions"], "commit": None}}

    assert summary(conditions())["precision"] == PRECISIONS["highest"]
    assert summary(conditions("default"))["precision"] == PRECISIONS["default"]
    assert conditions()["drawing"] != conditions("default")["drawing"]
    old = conditions()
    del old["drawing"]["precision"]
    assert summary(old)["precision"] == "not recorded"
