"""Evaluating a run: draw, extract, score, report.  Whatever is on disk already is not made again.

report = evaluate(load_run("runs/digits"), "runs/digits", read_extractor("pixels"), Evaluation(num_samples=1000))

    RUN/evaluations/STEP-DIGEST/report.json, report.html      DIGEST is that of all conditions
    RUN/evaluations/samples-DIGEST/, bits-DIGEST/             what the next evaluation finds there
"""

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.data.deferred import Deferred
from ddpm_jax.data.source import Source
from ddpm_jax.data.sources import image_shape
from ddpm_jax.data.splits import held_out_split
from ddpm_jax.devices.mesh import broadcast
from ddpm_jax.errors import RunError, require, require_int
from ddpm_jax.evaluation import provenance, scores
from ddpm_jax.evaluation.chart import Line, chart
from ddpm_jax.evaluation.page import Picture, page
from ddpm_jax.evaluation.progress import ProgressBar
from ddpm_jax.evaluation.reference import Reference, class_counts, name_of
from ddpm_jax.evaluation.report import Report, Score
from ddpm_jax.evaluation.samples import PER_DEVICE, Drawing, check_finite, draw, features_of
from ddpm_jax.evaluation.shards import Shards
from ddpm_jax.features.extractor import Extractor, extract
from ddpm_jax.run import Run
from ddpm_jax.storage.paths import RunPath, io_errors, run_path, write_bytes
from ddpm_jax.storage.pictures import grid

METRICS = ("fid", "kid", "pr", "is", "swd", "nn", "bpd")
DEFAULT_METRICS = ("fid", "kid", "pr", "nn", "bpd")
Labels = Literal["reference", "balanced"]
# Images without which no metric means anything.
FEWEST = 10
IN_PICTURE, NEIGHBOURS, WITH_NEIGHBOURS = 100, 5, 10


@dataclass(frozen=True)
class Evaluation:
    """What is measured, and on which images."""

    metrics: tuple[str, ...] = DEFAULT_METRICS
    """fid: Frechet distance; kid: kernel distance; pr: precision, recall, density, coverage; is: Inception score; swd:
    sliced Wasserstein distance; nn: nearest training images; bpd: bits/dim."""
    num_samples: int = 50_000
    """How many images are drawn."""
    seed: int = 0
    """Of the drawing, and of whatever else is left to chance."""
    guidance: float | None = None
    """The scale of classifier-free guidance; None for none."""
    labels: Labels = "reference"
    """Of a class-conditional network.  reference: each image's label is drawn from the class frequencies of the
    reference, or those of the training data where it has no labels (`evaluation.labels`).  balanced: all classes in
    turn."""
    bound_terms: int | None = None
    """How many of the T terms of the bound are drawn for each image, for bits/dim; None for all."""
    batch_size: int = PER_DEVICE
    """Images drawn at a time on each device; a shard holds those of all devices."""

    def __post_init__(self) -> None:
        for metric in self.metrics:
            require("metrics", metric, metric in METRICS, f"one or more of {','.join(METRICS)}")
        require("metrics", self.metrics, len(self.metrics) > 0, f"one or more of {','.join(METRICS)}")
        require("labels", self.labels, self.labels in get_args(Labels), "'reference' or 'balanced'")
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
    """The report of a run, and where it lies; the run draws with the sampler and clipping of its experiment.

    folder: the run's; images, features and the report go into its `evaluations`.  extractor: what samples are compared
    by; None where only bits/dim is asked for.  reference: what they are compared with, the run's own data unless given.
    held_out: real images that the run has not seen, for comparison and for bits/dim; the split called test or
    validation of the run's data, if there is one, unless given.

    Of many processes all take part, and the first one gets the report, the others None.  Everything is computed in full
    float32, or as `jax.default_matmul_precision` says (`ddpm_jax.devices.precision`).

    Raises ValueError where the data are not as the run's images, or lack what a metric needs, and RunError where
    samples are not finite.
    """
    folder = run_path(folder) / "evaluations"
    compared: Source = run.experiment.data if reference is None else reference
    held_out = held_out_split(run.experiment.data) if held_out is None else held_out
    for name, source in (("reference", compared), ("held_out", held_out)):
        if source is not None and (shape := image_shape(source)) != run.image_shape:
            raise ValueError(f"the images of {name} are {shape}; expected those of the run, {run.image_shape}")
    job = EvaluationJob(run, folder, extractor, evaluation, compared, held_out)
    job.check()
    images = job.draw() if job.draws else None
    bits = job.bits() if "bpd" in evaluation.metrics else None
    found, done = None, jax.process_index() > 0
    try:
        if jax.process_index() == 0:
            found, done = job.report(images, bits), True
    finally:
        done = broadcast(done)  # the others wait: who leaves early is taken for dead
    if not done:
        raise RunError("the first process could not finish the report; it says why")
    return found


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
        """Raise ValueError where the network, the data or the features cannot give what is asked for."""
        run, evaluation = self.run, self.evaluation
        if "bpd" in evaluation.metrics:
            terms, most = evaluation.bound_terms, run.experiment.schedule.build().num_steps
            require("bound_terms", terms, terms is None or terms <= most, f"at most {most}, all terms of the bound")
            self._check_measured()
        if not self.draws:
            return
        require("extractor", None, self.extractor is not None, "one, as samples are compared by their features")
        assert self.extractor is not None
        run.check_guidance(evaluation.guidance)
        for name, source in (("reference", self.reference), ("held_out", self.held_out)):
            if source is not None:
                require(f"the number of images of {name}", len(source), len(source) >= FEWEST, f"{FEWEST} or more")
        example = np.stack([self.reference[0]["image"]])
        known = extract(self.extractor, example).logits is not None
        expected = f"metrics without it, as the features {self.extractor.name} know no classes"
        require("metrics", "is", known or "is" not in evaluation.metrics, expected)

    def _check_measured(self) -> None:
        """Raise ValueError where bits/dim of a class-conditional network are asked for, of images without labels."""
        try:
            self.run.check_labels(self._measured)
        except ValueError as error:
            name = "reference" if self.held_out is None else "held_out"
            raise ValueError(
                f"{name} ({name_of(self._measured)}) has no labels, which bits/dim of a class-conditional network "
                "need; give images with labels, or metrics without bpd"
            ) from error

    @property
    def _measured(self) -> Source:
        """The images that bits/dim are of."""
        return self.reference if self.held_out is None else self.held_out

    @cached_property
    def drawing(self) -> Drawing:
        """The images that are scored."""
        num_classes, counts = self.run.experiment.net.num_classes, None
        if num_classes is not None and self.draws and self.evaluation.labels == "reference":
            counts = class_counts(num_classes, self._through(self.reference), self._training)
        return Drawing(self.run, self.evaluation.seed, self.evaluation.guidance, counts)

    def draw(self) -> Shards:
        """The samples, on disk."""
        return draw(self.drawing, self._samples, self.evaluation.num_samples, self.evaluation.batch_size)

    @cached_property
    def _samples(self) -> RunPath:
        return self.folder / f"samples-{provenance.digest(self.drawing.conditions)}"

    def bits(self) -> np.ndarray:
        """Bits/dim of every held-out example (of the reference where there is none): [N]."""
        source, terms = self._measured, self.evaluation.bound_terms
        conditions = {**self.drawing.conditions, "source": provenance.of_source(source), "terms": terms}
        conditions = {
            name: value for name, value in conditions.items() if name not in ("sampler", "guidance", "labels")
        }
        shards = Shards(self.folder / f"bits-{provenance.digest(conditions)}")
        quiet, key = jax.process_index() > 0, jax.random.key(self.evaluation.seed)
        done = broadcast(len(shards))
        with ProgressBar("bits/dim", len(source), done, quiet) as waiting:
            if done < len(source):
                for rows in self.run.bits_per_dim_of_batches(key, source, num_terms=terms, start=done):
                    check_finite("bits/dim of image", rows, done)
                    done += len(rows)
                    if not quiet:
                        shards.append(rows)
                    waiting.reached(done)
        return np.asarray(shards[:]) if not quiet else np.zeros(0)

    def report(self, images: Any, bits: np.ndarray | None) -> tuple[Report, RunPath]:
        """Scores, conditions and pictures, written as JSON and as a page."""
        found: list[Score] = []
        pictures, charts, notes = [], [loss_chart(self.folder.parent)], []
        if images is not None:
            n, seen = self.evaluation.num_samples, self._seen(images)
            for metric in self.evaluation.metrics:
                found += scores.SCORES[metric](seen) if metric in scores.SCORES else []
            pictures.append(Picture("Samples", "The first ones, not chosen.", grid(images[: min(n, IN_PICTURE)])))
            if "nn" in self.evaluation.metrics:
                pictures.append(self._neighbours(images, seen))
                charts.append(seen.distances_chart())
            notes += [seen.note] if seen.note else []
            notes += self._drawn_by_others()
        if bits is not None:
            found.append(self._bits_score(bits))
        report = Report(self.conditions(), tuple(found), tuple(notes))
        return report, self._write(report, page(report, pictures, charts))

    def _seen(self, images: Any) -> "scores.Comparison":
        """The samples and what they are compared with, through the extractor."""
        extractor, mesh = self.extractor, self._mesh
        assert extractor is not None
        digest = provenance.digest([extractor.name, extractor.digest, extractor.preprocessing])
        place = self._samples / f"{slug(extractor.name)}-{digest}"
        features = features_of(images, extractor, place, "features of the samples", mesh)
        return scores.Comparison(
            features.first(self.evaluation.num_samples),
            self._through(self.reference),
            None if self.held_out is None else self._through(self.held_out),
            self._training or self._through(self.reference),
            self.evaluation.seed,
            self.drawing,
        )

    @property
    def _mesh(self) -> Mesh | None:
        return self.run.mesh if jax.process_count() == 1 else None

    def _through(self, source: Source) -> Reference:
        """A source, seen through the extractor."""
        assert self.extractor is not None
        return Reference(source, self.extractor, self._mesh)

    @cached_property
    def _training(self) -> Reference | None:
        """What the run has learned from; None where that is not known."""
        data = self.run.experiment.data
        return None if isinstance(data, Deferred) and data.path is None else self._through(data)

    def _drawn_by_others(self) -> list[str]:
        """A note where the samples were drawn, earlier, by another commit than that of this report."""
        path, commit = self._samples / "conditions.json", provenance.commit()
        try:
            drawn = json.loads(path.read_text())["commit"]
        except (io_errors(path), ValueError, KeyError, TypeError):
            drawn = None
        return [] if drawn == commit else [f"The samples were drawn earlier, by commit {drawn or 'unknown'}."]

    def conditions(self) -> dict[str, Any]:
        """All that the scores depend on."""
        run, extractor, evaluation = self.run, self.extractor, self.evaluation
        evaluations = run.experiment.sampler.evaluations(run.experiment.schedule.build())
        features = None
        if self.draws and extractor is not None:
            how = {"digest": extractor.digest, "preprocessing": extractor.preprocessing}
            features = {"name": extractor.name, **how}
        return {
            "drawing": self.drawing.conditions,
            "num_samples": evaluation.num_samples if self.draws else 0,
            "evaluations": evaluations * (1 if evaluation.guidance is None else 2),
            "reference": provenance.of_source(self.reference),
            "held_out": None if self.held_out is None else provenance.of_source(self.held_out),
            "features": features,
            "metrics": list(evaluation.metrics),
            "bound_terms": evaluation.bound_terms,
            "images_at_a_time": evaluation.batch_size,
            "code": provenance.of_code(),
        }

    def _write(self, report: Report, text: str) -> RunPath:
        """RUN/evaluations/STEP-DIGEST with report.json and report.html; gives its path."""
        place = self.folder / f"{self.run.step:08d}-{provenance.digest(report.conditions)}"
        write_bytes(place / "report.html", text.encode())
        write_bytes(place / "report.json", report.as_json().encode())
        return place

    def _bits_score(self, bits: np.ndarray) -> Score:
        source, terms = self._measured, self.evaluation.bound_terms
        name = name_of(source)
        what = "all terms of the bound" if terms is None else f"{terms} drawn terms of the bound"
        about = f"variational bound, 256 levels, of all {len(bits):,} images of {name}; {what}; less is better"
        return Score("bits/dim", float(bits.mean(dtype=np.float64)), about, float(bits.std() / np.sqrt(len(bits))))

    def _neighbours(self, images: Any, seen: "scores.Comparison") -> Picture:
        rows = min(WITH_NEIGHBOURS, seen.count)
        nearest = scores.nearest(seen.samples.features[:rows], seen.training.features.features, NEIGHBOURS)
        cells = []
        for sample, indices in zip(images[:rows], nearest, strict=True):
            cells += [sample, *(seen.training.source[int(index)]["image"] for index in indices)]
        caption = f"Left a sample, then the {NEIGHBOURS} nearest images of {seen.training.name}, in the features."
        return Picture("Nearest training images", caption, grid(np.stack(cells), columns=NEIGHBOURS + 1))


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def loss_chart(folder: RunPath) -> str:
    """The run's loss against the step, from its metrics.jsonl; "" where there is none."""
    path = folder / "metrics.jsonl"
    points = []
    with suppress(io_errors(path)):
        for line in path.read_text().splitlines() if path.exists() else []:
            with suppress(ValueError, KeyError, TypeError):  # a line that a kill cut short
                entry = json.loads(line)
                points.append((float(entry["step"]), float(entry["loss"])))
    steps, loss = np.array(points).reshape(-1, 2).T
    return chart("Loss in training", "step", "loss", [Line("loss", steps, loss)], log_y=True)
