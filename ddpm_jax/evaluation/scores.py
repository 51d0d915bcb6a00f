"""The scores of samples against a reference, each beside the same score of real images that were held out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from ddpm_jax.evaluation.chart import Line, chart
from ddpm_jax.evaluation.reference import Reference
from ddpm_jax.evaluation.report import FEW, Score
from ddpm_jax.evaluation.samples import Drawing, Features
from ddpm_jax.evaluation.shards import Some
from ddpm_jax.features.extractor import PUBLISHED_INCEPTION
from ddpm_jax.metrics.frechet import frechet_distance, moments
from ddpm_jax.metrics.inception_score import inception_score
from ddpm_jax.metrics.jackknife import frechet_estimate
from ddpm_jax.metrics.kernel import kernel_distance
from ddpm_jax.metrics.manifold import manifold
from ddpm_jax.metrics.memorisation import memorisation
from ddpm_jax.metrics.neighbours import neighbours
from ddpm_jax.metrics.sliced import sliced_wasserstein

# Precision and its kind compare every row with every other: at most so many of each set.
MANIFOLD_ROWS, MANIFOLD_K = 10_000, 5


@dataclass(frozen=True, eq=False)
class Comparison:
    """Samples, reference and held-out images, all through one extractor."""

    samples: Features
    reference: Reference
    held_out: Reference | None
    training: Reference
    """What the run has learned from, whatever the reference is."""
    seed: int = 0
    drawing: Drawing | None = None
    """How the samples were drawn."""

    @property
    def count(self) -> int:
        """How many samples."""
        return len(self.samples.features)

    def named(self, published: str, other: str) -> str:
        """The name of a score: the field's own only in the field's features and of enough samples."""
        known = self.reference.extractor.name == PUBLISHED_INCEPTION and self.count >= FEW
        return f"{published if known else other}-{in_short(self.count)}"

    def against(self, what: str) -> str:
        """What was compared with what."""
        count = self.reference.about["count"]
        return f"{what} between {self.count:,} samples and the {count:,} images of {self.reference.name}"

    @cached_property
    def real(self) -> Features | None:
        """As many held-out images as there are samples, or all: scores of more images are other scores."""
        if self.held_out is None:
            return None
        features, logits = self.held_out.features.features, self.held_out.features.logits
        return Features(Some.spread(features, self.count), None if logits is None else Some.spread(logits, self.count))

    @property
    def strata(self) -> Any:
        """The classes of the samples where each has a fixed number of them; None where images are independent."""
        drawing = self.drawing
        balanced = drawing is not None and drawing.num_classes is not None and drawing.counts is None
        return drawing.labels(0, self.count) if drawing is not None and balanced else None

    def strata_of(self, real: Reference | None) -> Any:
        """The classes of the real images, as many as are scored of those held out.

        None where there are none, or samples of an unconditional network do not follow their frequencies.
        """
        conditional = self.drawing is not None and self.drawing.num_classes is not None
        labels = real.labels if real is not None and conditional else None
        return labels if labels is None or real is self.reference else Some.spread(labels, self.count)[:]

    @property
    def note(self) -> str:
        """What must be said where there are fewer held-out images than samples."""
        count = self.count if self.real is None else len(self.real.features)
        if count >= self.count:
            return ""
        return (
            f"Held out are {count:,} images, fewer than the {self.count:,} samples: their distances are larger, and "
            "their coverage is smaller, for that alone."
        )

    def of_held_out(self, measure: Callable[[Features], float]) -> float | None:
        """The same measure of the held-out images."""
        return None if self.real is None else measure(self.real)

    @cached_property
    def nearest(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The distances of samples, and of held-out images, to their nearest training images."""
        training = self.training.features.features

        def closest(features: Features) -> np.ndarray:
            return neighbours(features.features, training).distances[:, 0]

        return closest(self.samples), None if self.held_out is None else closest(self.held_out.features)

    def distances_chart(self) -> str:
        """How many samples, and held-out images, have a training image within a distance."""
        samples, held_out = self.nearest
        sets = {"samples": samples} | ({} if held_out is None else {"held-out images": held_out})
        lines = [Line(name, np.sort(x), np.arange(1, len(x) + 1) / len(x)) for name, x in sets.items()]
        return chart("Distance to the nearest training image", "distance in the features", "share within", lines)


def in_short(count: int) -> str:
    """10k for 10,000; other numbers as they are."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def frechet(seen: Comparison) -> list[Score]:
    """The Frechet distance; of few samples with an interval."""
    reference = seen.reference.moments
    held_out = seen.of_held_out(lambda features: frechet_distance(moments(features.features), reference))
    name, about = seen.named("FID", "FD"), f"{seen.against('Frechet distance')}; less is better"
    if seen.count >= FEW:
        return [Score(name, frechet_distance(moments(seen.samples.features), reference), about, held_out=held_out)]
    estimate = frechet_estimate(seen.samples.features, reference)
    about = (
        f"{about}, and more samples give less; interval of the mean over draws of {seen.count:,} samples (jackknife)"
    )
    return [Score(name, estimate.value, about, interval=estimate.interval(), held_out=held_out)]


def kernel(seen: Comparison) -> list[Score]:
    """The kernel distance."""

    reference = seen.strata_of(seen.reference)

    def distance(features: Features, strata: Any) -> Any:
        options = {"seed": seen.seed, "x_strata": strata, "y_strata": reference}
        return kernel_distance(features.features, seen.reference.features.features, **options)

    found, about = distance(seen.samples, seen.strata), "unbiased kernel distance (polynomial, degree 3; 100 subsets)"
    held_out = seen.of_held_out(lambda features: distance(features, seen.strata_of(seen.held_out)).value)
    about = f"{seen.against(about)}; less is better"
    return [Score(seen.named("KID", "KD"), found.value, about, found.standard_error, held_out=held_out)]


def manifolds(seen: Comparison) -> list[Score]:
    """Precision, recall, density and coverage."""
    reference = Some.spread(seen.reference.features.features, MANIFOLD_ROWS)

    def measure(features: Features) -> Any:
        return manifold(Some.spread(features.features, MANIFOLD_ROWS), reference, MANIFOLD_K)

    found, held_out = measure(seen.samples), None if seen.real is None else measure(seen.real)
    used = min(seen.count, MANIFOLD_ROWS)
    of = f"k = {MANIFOLD_K}; {used:,} samples, {len(reference):,} images of {seen.reference.name}"
    about = {
        "precision": "share of samples amid reference images",
        "recall": "share of reference images amid samples",
        "density": "how densely samples lie amid reference images, 1 for the reference itself",
        "coverage": "share of reference images with a sample nearby",
    }
    return [
        Score(
            f"{name}-{in_short(used)}",
            getattr(found, name),
            f"{text} ({of}); more is better",
            held_out=None if held_out is None else getattr(held_out, name),
        )
        for name, text in about.items()
    ]


def inception(seen: Comparison) -> list[Score]:
    """The Inception score, in classes that the extractor knows."""
    name, found = seen.reference.extractor.name, inception_score(seen.samples.logits, min(10, seen.count))

    def of_held_out(features: Features) -> float:
        return inception_score(features.logits, min(10, len(features.logits))).value

    title = f"IS-{in_short(seen.count)}" if name == PUBLISHED_INCEPTION else f"class score-{in_short(seen.count)}"
    about = (
        f"exp of the information in a class ({name}) of an image, mean of 10 splits; ± is their spread; more is better"
    )
    return [Score(title, found.value, about, found.spread, held_out=seen.of_held_out(of_held_out))]


def sliced(seen: Comparison) -> list[Score]:
    """The sliced Wasserstein distance."""
    key = jax.random.key(seen.seed)

    def distance(features: Features) -> Any:
        return sliced_wasserstein(key, features.features, seen.reference.features.features)

    found, held_out = distance(seen.samples), seen.of_held_out(lambda features: distance(features).value)
    about = f"{seen.against('sliced Wasserstein distance (order 2, 512 directions)')}; less is better"
    return [Score(f"SWD-{in_short(seen.count)}", found.value, about, found.standard_error, held_out=held_out)]


def memorised(seen: Comparison) -> list[Score]:
    """Whether samples are copies of what was learned from."""
    samples, held_out = seen.nearest
    if held_out is None:
        about = f"median distance to the nearest image of {seen.training.name}"
        return [Score("nearest", float(np.median(samples)), about)]
    found = memorisation(samples, held_out)
    about = (
        f"share of samples closer to an image of {seen.training.name} than all but {100 * found.expected:.2g}% of the "
        f"held-out images are; of images that are not copies {100 * found.expected:.2g} ± "
        f"{100 * found.expected_spread:.1g}%"
    )
    error = found.standard_error
    return [Score("copies", found.fraction, about, error, held_out=found.expected)]


def nearest(features: Any, reference: Any, k: int) -> np.ndarray:
    """The indices of the k nearest reference rows of each row."""
    return neighbours(features, reference, min(k, len(reference))).indices


SCORES: dict[str, Callable[[Comparison], list[Score]]] = {
    "fid": frechet,
    "kid": kernel,
    "pr": manifolds,
    "is": inception,
    "swd": sliced,
    "nn": memorised,
}
