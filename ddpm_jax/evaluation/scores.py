"""The scores of samples against a reference, each with the same score of held-out real images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float32, Int

from ddpm_jax import metrics
from ddpm_jax.evaluation.reference import Reference
from ddpm_jax.evaluation.report import FEW, Score
from ddpm_jax.evaluation.samples import Drawing, Features
from ddpm_jax.evaluation.shards import Some
from ddpm_jax.features.extractor import PUBLISHED_INCEPTION

__all__ = ["SCORES", "Comparison", "bits_per_dim"]

# Precision, recall, density and coverage compare every row with every other, so they use at most this many rows.
MANIFOLD_ROWS, MANIFOLD_K = 10_000, 5


@dataclass(frozen=True, eq=False)
class Comparison:
    """Samples, reference and held-out images, all through one extractor."""

    samples: Features
    reference: Reference
    held_out: Reference | None
    training: Reference
    """The images that the run was trained on, whatever the reference is."""
    drawing: Drawing
    """The origin of the samples."""

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.samples.features)

    def named(self, published: str, other: str) -> str:
        """The name of a score with the number of samples.

        Args:
            published: its usual name, for the usual features and enough samples.
            other: its name otherwise.
        """
        known = self.reference.extractor.name == PUBLISHED_INCEPTION and self.count >= FEW
        return f"{published if known else other}-{in_short(self.count)}"

    def against(self, what: str) -> str:
        """A phrase that says what was compared with what."""
        count = self.reference.about["count"]
        return f"{what} between {self.count:,} samples and the {count:,} images of {self.reference.name}"

    @cached_property
    def real(self) -> Features | None:
        """As many held-out images as there are samples, or all: the scores depend on the number of images."""
        held_out = self.held_out
        return None if held_out is None else held_out.features.chosen(lambda rows: Some.spread(rows, self.count))

    @property
    def strata(self) -> Int[np.ndarray, " n"] | None:
        """The classes of the samples if each has a fixed number of them; None if the images are independent."""
        return self.drawing.labels(0, self.count) if self.drawing.counts is None else None

    def strata_of(self, real: Reference | None) -> Int[np.ndarray, " n"] | None:
        """The classes of real images: of all in the reference, and of the scored ones among those held out.

        None if they have no labels, or if the labels of the samples do not follow their frequencies.
        """
        labels = None if real is None or self.drawing.num_classes is None else real.labels
        return labels if labels is None or real is self.reference else Some.spread(labels, self.count)[:]

    @property
    def note(self) -> str:
        """A sentence for a report with fewer held-out images than samples; "" for another one."""
        count = self.count if self.real is None else len(self.real.features)
        if count >= self.count:
            return ""
        found = f"There are {count:,} held-out images, fewer than the {self.count:,} samples."
        return f"{found} For this reason alone their distances are larger and their coverage is smaller."

    def of_held_out(self, measure: Callable[[Features], float]) -> float | None:
        """A measure of the held-out images; None if there are none."""
        return None if self.real is None else measure(self.real)

    @cached_property
    def nearest(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"] | None]:
        """The distances of the samples, and of the held-out images, to their nearest training images."""
        training = self.training.features.features

        def closest(features: Features) -> Any:
            return metrics.neighbours.neighbours(features.features, training).distances[:, 0]

        return closest(self.samples), None if self.held_out is None else closest(self.held_out.features)


def in_short(count: int) -> str:
    """A count as part of a name: 10k for 10,000; other numbers unchanged."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def frechet(seen: Comparison) -> list[Score]:
    """The Frechet distance; with an interval if there are few samples."""
    reference, samples = seen.reference.moments, seen.samples
    name, about = seen.named("FID", "FD"), f"{seen.against('Frechet distance')}; less is better"

    def distance(features: Features) -> float:
        return metrics.frechet.frechet_distance(metrics.frechet.moments(features.features), reference)

    held_out = seen.of_held_out(distance)
    if seen.count >= FEW:
        return [Score(name, distance(samples), about, held_out=held_out)]
    estimate = metrics.jackknife.frechet_estimate(samples.features, reference)
    about += f"; more samples give less; 95% interval of the mean over draws of {seen.count:,} samples (jackknife)"
    return [Score(name, estimate.value, about, interval=estimate.interval(), held_out=held_out)]


def kernel(seen: Comparison) -> list[Score]:
    """The kernel distance."""
    y_strata = seen.strata_of(seen.reference)

    def distance(features: Features, strata: Any) -> Any:
        options = {"seed": seen.drawing.seed, "x_strata": strata, "y_strata": y_strata}
        return metrics.kernel.kernel_distance(features.features, seen.reference.features.features, **options)

    found = distance(seen.samples, seen.strata)
    held_out = seen.of_held_out(lambda features: distance(features, seen.strata_of(seen.held_out)).value)
    about = f"{seen.against('unbiased kernel distance (polynomial, degree 3; 100 subsets)')}; less is better"
    return [Score(seen.named("KID", "KD"), found.value, about, found.standard_error, held_out=held_out)]


def manifolds(seen: Comparison) -> list[Score]:
    """Precision, recall, density and coverage."""
    reference = Some.spread(seen.reference.features.features, MANIFOLD_ROWS)

    def measure(features: Features) -> Any:
        return metrics.manifold.manifold(Some.spread(features.features, MANIFOLD_ROWS), reference, MANIFOLD_K)

    found, held_out = measure(seen.samples), None if seen.real is None else measure(seen.real)
    used = min(seen.count, MANIFOLD_ROWS)
    of = f"k = {MANIFOLD_K}; {used:,} samples, {len(reference):,} images of {seen.reference.name}"
    about = {
        "precision": "share of samples among reference images",
        "recall": "share of reference images among samples",
        "density": "density of samples among reference images, 1 for the reference itself",
        "coverage": "share of reference images with a sample nearby",
    }
    scores = []
    for name, text in about.items():
        phrase, real = f"{text} ({of}); more is better", getattr(held_out, name, None)
        scores.append(Score(f"{name}-{in_short(used)}", getattr(found, name), phrase, held_out=real))
    return scores


def inception(seen: Comparison) -> list[Score]:
    """The Inception score, in the classes of the extractor."""
    extractor = seen.reference.extractor.name

    def score(features: Features) -> Any:
        return metrics.inception_score.inception_score(features.logits, min(10, len(features.logits)))

    found, held_out = score(seen.samples), seen.of_held_out(lambda features: score(features).value)
    name = f"{'IS' if extractor == PUBLISHED_INCEPTION else 'class score'}-{in_short(seen.count)}"
    what = f"exp of the mutual information of image and class ({extractor}), mean of 10 splits"
    about = f"{what}; ± is their spread; more is better"
    return [Score(name, found.value, about, found.spread, held_out=held_out)]


def sliced(seen: Comparison) -> list[Score]:
    """The sliced Wasserstein distance."""
    key = jax.random.key(seen.drawing.seed)

    def distance(features: Features) -> Any:
        return metrics.sliced.sliced_wasserstein(key, features.features, seen.reference.features.features)

    found, held_out = distance(seen.samples), seen.of_held_out(lambda features: distance(features).value)
    about = f"{seen.against('sliced Wasserstein distance (order 2, 512 directions)')}; less is better"
    return [Score(f"SWD-{in_short(seen.count)}", found.value, about, found.standard_error, held_out=held_out)]


def memorised(seen: Comparison) -> list[Score]:
    """The share of samples that are copies of training images."""
    samples, held_out = seen.nearest
    if held_out is None:
        about = f"median distance to the nearest image of {seen.training.name}"
        return [Score("nearest", float(np.median(samples)), about)]
    found = metrics.memorisation.memorisation(samples, held_out)
    share, spread = 100 * found.expected, 100 * found.expected_spread
    than = f"than all but the closest {share:.2g}% of the held-out images"
    if_none = f"{share:.2g} ± {spread:.1g}% if no sample is a copy"
    about = f"share of samples closer to an image of {seen.training.name} {than}; {if_none}"
    return [Score("copies", found.fraction, about, found.standard_error, held_out=found.expected)]


def bits_per_dim(bits: Float32[np.ndarray, " n"], name: str, terms: int | None) -> Score:
    """The mean bits/dim.

    Args:
        bits: the bits/dim of each image.
        name: the name of the images.
        terms: the number of terms of the bound that were drawn for each image; None for all.
    """
    what = "all terms of the bound" if terms is None else f"{terms} random terms of the bound for each image"
    about = f"variational bound, 256 levels, of all {len(bits):,} images of {name}; {what}; less is better"
    return Score("bits/dim", float(bits.mean(dtype=np.float64)), about, float(bits.std() / np.sqrt(len(bits))))


SCORES: dict[str, Callable[[Comparison], list[Score]]] = {
    "fid": frechet,
    "kid": kernel,
    "pr": manifolds,
    "is": inception,
    "swd": sliced,
    "nn": memorised,
}
