"""The evaluation of a run: draw samples, extract features, compute scores, write a report.

report = evaluate(load_run("runs/digits"), "runs/digits", read_extractor("pixels"), Evaluation(num_samples=1000))

    RUN/evaluations/STEP-DIGEST/report.json, report.html      DIGEST is a digest of all conditions
    RUN/evaluations/samples-DIGEST/, bits-DIGEST/             samples and bits/dim, which later evaluations reuse
"""

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import jax
import numpy as np
from jaxtyping import Float32
from tyro.constructors import PrimitiveConstructorSpec

from ddpm_jax.data import Deferred, Source, sources, splits
from ddpm_jax.devices.mesh import broadcast, on_first_process
from ddpm_jax.errors import require, require_int
from ddpm_jax.evaluation import figures, page, provenance, scores
from ddpm_jax.evaluation.progress import ProgressBar
from ddpm_jax.evaluation.reference import Reference, class_counts, name_of
from ddpm_jax.evaluation.report import Report, Score
from ddpm_jax.evaluation.samples import PER_DEVICE, Drawing, check_finite, draw, features_of
from ddpm_jax.evaluation.shards import Shards, Some
from ddpm_jax.features.extractor import Extractor, extract
from ddpm_jax.run import Run
from ddpm_jax.storage.paths import RunPath, io_errors, run_path, write_bytes

__all__ = ["DEFAULT_METRICS", "METRICS", "Evaluation", "evaluate"]

METRICS = ("fid", "kid", "pr", "is", "swd", "nn", "bpd")
DEFAULT_METRICS = ("fid", "kid", "pr", "nn", "bpd")
# The least number of images for which a metric has a meaning.
FEWEST = 10
# The metrics on the command line: their names, joined by commas.
NAMES = PrimitiveConstructorSpec(
    nargs=1,
    metavar="NAME,NAME...",
    instance_from_str=lambda given: tuple(name.strip() for name in given[0].split(",")),
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda value: [",".join(value)],
)


@dataclass(frozen=True)
class Evaluation:
    """What is measured, and on which images."""

    metrics: Annotated[tuple[str, ...], NAMES] = DEFAULT_METRICS
    """fid: Frechet distance. kid: kernel distance. pr: precision, recall, density, coverage. is: Inception score.
    swd: sliced Wasserstein distance. nn: nearest training images. bpd: bits/dim."""
    num_samples: int = 50_000
    """The number of images to draw. Below 10,000 the names of the scores show it: FD-1k, not FID."""
    seed: int = 0
    """The seed of all random numbers; image i depends on the seed and on i alone."""
    guidance: float | None = None
    """The scale of classifier-free guidance, for networks trained with label dropout; None for no guidance."""
    labels: Literal["reference", "balanced"] = "reference"
    """For a class-conditional network: balanced draws all classes in turn, reference draws random labels.
    Their frequencies are those of the reference, or of the training data if the reference has no labels."""
    bound_terms: int | None = None
    """For bits/dim: the number of terms of the bound to draw for each image, an unbiased estimate; None for all T.
    Of a continuous process, whose terms are endless, None stands for 100."""
    batch_size: int = PER_DEVICE
    """Images drawn at a time on each device; an interruption loses one such batch."""

    def __post_init__(self) -> None:
        wrong = next((metric for metric in self.metrics if metric not in METRICS), None)
        holds = wrong is None and len(self.metrics) > 0
        require("metrics", self.metrics if wrong is None else wrong, holds, f"one or more of {','.join(METRICS)}")
        require("labels", self.labels, self.labels in ("reference", "balanced"), "'reference' or 'balanced'")
        require_int("num_samples", self.num_samples, FEWEST)
        require_int("batch_size", self.batch_size, 1)
        if self.bound_terms is not None:
            require_int("bound_terms", self.bound_terms, 1)


def evaluate(
    run: Run,
    folder: str | os.PathLike,
    extractor: Extractor | None,
    evaluation: Evaluation = Evaluation(),
    *,
    reference: Source | None = None,
    held_out: Source | None = None,
) -> tuple[Report, RunPath] | None:
    """Evaluate a run with the sampler and clipping of its experiment.

    All arithmetic is in full float32, unless JAX is set to another precision (`ddpm_jax.precision`).  If there are
    several processes, each must call this.

    Args:
        run: the run.
        folder: the folder of the run; samples, features and the report are written into its `evaluations`.
        extractor: the features to compare; None if bits/dim is the only metric.
        evaluation: what is measured.
        reference: the images to compare samples with; None for the data of the run.
        held_out: real images that the run has not seen, for comparison and for bits/dim; None for the split called
            test or validation of the run's data, if there is one.

    Returns:
        The report and its folder on the first process, None on the others.

    Raises:
        ValueError: the images are not shaped like the run's, or lack what a metric needs.
        RunError: a sample or a bits/dim is not finite.
    """
    folder = run_path(folder) / "evaluations"
    compared: Source = run.experiment.data if reference is None else reference
    held_out = splits.held_out_split(run.experiment.data) if held_out is None else held_out
    for name, source in (("reference", compared), ("held_out", held_out)):
        if source is not None and (shape := sources.image_shape(source)) != run.image_shape:
            raise ValueError(f"the images of {name} are {shape}; expected those of the run, {run.image_shape}")
    job = EvaluationJob(run, folder, extractor, evaluation, compared, held_out)
    job.check()
    images = job.draw() if job.draws else None
    bits = job.bits() if "bpd" in evaluation.metrics else None
    return on_first_process(lambda: job.report(images, bits), "finish the report")


@dataclass(frozen=True, eq=False)
class EvaluationJob:
    """One evaluation."""

    run: Run
    folder: RunPath
    extractor: Extractor | None
    evaluation: Evaluation
    reference: Source
    held_out: Source | None

    @property
    def draws(self) -> bool:
        """Whether samples are needed."""
        return set(self.evaluation.metrics) != {"bpd"}

    def check(self) -> None:
        """Raise ValueError if the network, the data or the features cannot provide what the metrics need."""
        run, evaluation = self.run, self.evaluation
        given = {"reference": self.reference} | ({} if self.held_out is None else {"held_out": self.held_out})
        if "bpd" in evaluation.metrics:
            self._check_bound()
            known = run.experiment.net.num_classes is None or "label" in self.measured[0]
            name, expected = list(given)[-1], "images with labels, which bits/dim of a class-conditional network need"
            require(name, name_of(self.measured), known, f"{expected}; or metrics without bpd")
        if not self.draws:
            return
        require("extractor", None, self.extractor is not None, "one, as samples are compared by their features")
        assert self.extractor is not None
        run.check_guidance(evaluation.guidance)
        for name, source in given.items():
            require(f"the number of images of {name}", len(source), len(source) >= FEWEST, f"{FEWEST} or more")
        example = np.stack([self.reference[0]["image"]])
        known = "is" not in evaluation.metrics or extract(self.extractor, example).logits is not None
        require("metrics", "is", known, f"metrics without it, as the features {self.extractor.name} have no classes")

    def _check_bound(self) -> None:
        """Raise ValueError if the bound has fewer terms than are asked for, or cannot be estimated."""
        terms, of = self.evaluation.bound_terms, self.run.experiment
        process = of.schedule.build()
        if process.is_chain:
            holds = terms is None or terms <= process.last
            require("bound_terms", terms, holds, f"at most {process.last}, all terms of the bound")
            return
        fixed = "a fixed one, which bits/dim of a continuous process need; or metrics without bpd"
        require("variance", of.variance, not of.variance.learned, fixed)

    @property
    def measured(self) -> Source:
        """The images on which bits/dim are measured."""
        return self.reference if self.held_out is None else self.held_out

    @cached_property
    def drawing(self) -> Drawing:
        """The images that are scored."""
        num_classes, counts = self.run.experiment.net.num_classes, None
        if num_classes is not None and self.draws and self.evaluation.labels == "reference":
            counts = class_counts(num_classes, self._reference, self._training)
        return Drawing(self.run, self.evaluation.seed, self.evaluation.guidance, counts)

    def draw(self) -> Shards:
        """The samples, on disk."""
        return draw(self.drawing, self._samples, self.evaluation.num_samples, self.evaluation.batch_size)

    @cached_property
    def _samples(self) -> RunPath:
        return self.folder / f"samples-{provenance.digest(self.drawing.conditions)}"

    def bits(self) -> Float32[np.ndarray, " n"]:
        """The bits/dim of every image that is measured, on the first process; an empty array on the others."""
        source, terms = self.measured, self.evaluation.bound_terms
        conditions = {**self.drawing.conditions, "source": provenance.of_source(source), "terms": terms}
        for name in ("sampler", "guidance", "labels"):
            del conditions[name]
        shards = Shards(self.folder / f"bits-{provenance.digest(conditions)}")
        quiet, key = jax.process_index() > 0, jax.random.key(self.evaluation.seed)
        done = broadcast(len(shards))
        with ProgressBar("bits/dim", len(source), done, quiet) as progress:
            if done < len(source):
                for rows in self.run.bits_per_dim_of_batches(key, source, num_terms=terms, start=done):
                    check_finite("bits/dim of image", rows, done)
                    done += len(rows)
                    if not quiet:
                        shards.append(rows)
                    progress.reached(done)
        return np.zeros(0, np.float32) if quiet else np.asarray(shards[:])

    def report(self, images: Any, bits: Float32[np.ndarray, " n"] | None) -> tuple[Report, RunPath]:
        """Compute the scores, and write the report as JSON and as a page.

        Args:
            images: the samples, uint8 rows; None if no metric needs them.
            bits: the bits/dim of every image that is measured; None if they are not among the metrics.

        Returns:
            The report and its folder.
        """
        found: list[Score] = []
        pictures, charts, notes = [], [figures.loss_chart(self.folder.parent)], []
        if images is not None:
            seen = self._comparison(images)
            for metric in self.evaluation.metrics:
                found += scores.SCORES[metric](seen) if metric in scores.SCORES else []
            pictures.append(figures.samples_picture(images[: self.evaluation.num_samples]))
            if "nn" in self.evaluation.metrics:
                pictures.append(figures.neighbours_picture(images, seen))
                charts.append(figures.distances_chart(seen))
            notes = [note for note in (seen.note, self._earlier_commit()) if note]
        if bits is not None:
            found.append(scores.bits_per_dim(bits, name_of(self.measured), self.evaluation.bound_terms))
        report = Report(self.conditions(), tuple(found), tuple(notes))
        place = self.folder / f"{self.run.step:08d}-{provenance.digest(report.conditions)}"
        write_bytes(place / "report.html", page.page(report, pictures, charts).encode())
        write_bytes(place / "report.json", report.as_json().encode())
        return report, place

    def _comparison(self, images: Any) -> scores.Comparison:
        """The samples and what they are compared with, through the extractor."""
        extractor = self.extractor
        assert extractor is not None
        digest = provenance.digest([extractor.name, extractor.digest, extractor.preprocessing])
        slug = re.sub(r"[^a-z0-9]+", "-", extractor.name.lower()).strip("-")
        folder, mesh = self._samples / f"{slug}-{digest}", self._reference.mesh
        features = features_of(images, extractor, folder, "features of the samples", mesh)
        chosen = features.chosen(lambda rows: Some.first(rows, self.evaluation.num_samples))
        real = None if self.held_out is None else self._through(self.held_out)
        return scores.Comparison(chosen, self._reference, real, self._training or self._reference, self.drawing)

    def _through(self, source: Source) -> Reference:
        """A source, seen through the extractor."""
        assert self.extractor is not None
        return Reference(source, self.extractor, self.run.mesh if jax.process_count() == 1 else None)

    @cached_property
    def _reference(self) -> Reference:
        return self._through(self.reference)

    @cached_property
    def _training(self) -> Reference | None:
        """The images that the run was trained on; None if they are not known."""
        data = self.run.experiment.data
        return None if isinstance(data, Deferred) and data.path is None else self._through(data)

    def _earlier_commit(self) -> str:
        """A note if the samples were drawn by another commit than that of this report."""
        path, commit = self._samples / "conditions.json", provenance.commit()
        try:
            drawn = json.loads(path.read_text())["commit"]
        except (io_errors(path), ValueError, KeyError, TypeError):
            drawn = None
        return "" if drawn == commit else f"The samples were drawn earlier, by commit {drawn or 'unknown'}."

    def conditions(self) -> dict[str, Any]:
        """All that the scores depend on."""
        run, extractor, evaluation = self.run, self.extractor, self.evaluation
        evaluations = run.experiment.sampler.evaluations(run.experiment.schedule.build())
        fields = ("name", "digest", "preprocessing")
        return {
            "drawing": self.drawing.conditions,
            "num_samples": evaluation.num_samples if self.draws else 0,
            "evaluations": evaluations * (1 if evaluation.guidance is None else 2),
            "reference": provenance.of_source(self.reference),
            "held_out": None if self.held_out is None else provenance.of_source(self.held_out),
            "features": {name: getattr(extractor, name) for name in fields} if self.draws else None,
            "metrics": list(evaluation.metrics),
            "bound_terms": evaluation.bound_terms,
            "images_at_a_time": evaluation.batch_size,
            "code": provenance.of_code(),
        }
