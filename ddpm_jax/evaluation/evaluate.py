"""Evaluating a run: draw, extract, score, report.  Whatever is on disk already is not made again.

report = evaluate(load_run("runs/digits"), "runs/digits", read_extractor("pixels"), Evaluation(num_samples=1000))

    RUN/evaluations/STEP-DIGEST/report.json, report.html      DIGEST is that of all conditions
    RUN/evaluations/samples-DIGEST/, bits-DIGEST/             what the next evaluation finds there
"""

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from ddpm_jax.check import require, whole
from ddpm_jax.data.images import grid
from ddpm_jax.data.sources import Source, image_shape
from ddpm_jax.data.splits import held_out_split
from ddpm_jax.evaluation import provenance, scores
from ddpm_jax.evaluation.chart import Line, chart
from ddpm_jax.evaluation.page import Picture, page
from ddpm_jax.evaluation.progress import Waiting
from ddpm_jax.evaluation.reference import Reference
from ddpm_jax.evaluation.report import Report, Score
from ddpm_jax.evaluation.samples import PER_DEVICE, Drawing, Features, draw, features_of
from ddpm_jax.evaluation.shards import Shards
from ddpm_jax.features.extractor import Extractor, extract
from ddpm_jax.paths import RunPath, failures, run_path, write_bytes
from ddpm_jax.run import Run
from ddpm_jax.training.mesh import broadcast

METRICS = ("fid", "kid", "pr", "is", "swd", "nn", "bpd")
DEFAULT_METRICS = ("fid", "kid", "pr", "nn", "bpd")
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
    bound_terms: int | None = None
    """How many of the T terms of the bound are drawn for each image, for bits/dim; None for all."""
    batch_size: int = PER_DEVICE
    """Images drawn at a time on each device; a shard holds those of all devices."""

    def __post_init__(self) -> None:
        for metric in self.metrics:
            require("metrics", metric, metric in METRICS, f"one or more of {','.join(METRICS)}")
        require("metrics", self.metrics, len(self.metrics) > 0, f"one or more of {','.join(METRICS)}")
        whole("num_samples", self.num_samples, 2)
        whole("batch_size", self.batch_size, 1)
        if self.bound_terms is not None:
            whole("bound_terms", self.bound_terms, 1)


def evaluate(
    run: Run,
    folder: str | os.PathLike,
    extractor: Extractor,
    evaluation: Evaluation = Evaluation(),
    *,
    reference: Source | None = None,
    held_out: Source | None = None,
) -> tuple[Report, RunPath] | None:
    """The report of a run, and where it lies; the run draws with the sampler and clipping of its experiment.

    folder: the run's; images, features and the report go into its `evaluations`.  reference: what samples are compared
    with, the run's own data unless given.  held_out: real images that the run has not seen, for comparison and for
    bits/dim; the split called test or validation of the run's data, if there is one, unless given.

    Of many processes all take part, and the first one gets the report, the others None.

    Raises ValueError where the data are not as the run's images, or lack what a metric needs.
    """
    folder = run_path(folder) / "evaluations"
    compared: Source = run.experiment.data if reference is None else reference
    held_out = held_out_split(compared) if held_out is None else held_out
    for name, source in (("reference", compared), ("held_out", held_out)):
        if source is not None and (shape := image_shape(source)) != run.image_shape:
            raise ValueError(f"the images of {name} are {shape}; expected those of the run, {run.image_shape}")
    job = Job(run, folder, extractor, evaluation, compared, held_out)
    job.check()
    images = job.draw() if job.draws else None
    bits = job.bits() if "bpd" in evaluation.metrics else None
    found = job.report(images, bits) if jax.process_index() == 0 else None
    broadcast(True)  # the others wait: who leaves early is taken for dead
    return found


@dataclass(frozen=True, eq=False)
class Job:
    """One evaluation."""

    run: Run
    folder: RunPath
    extractor: Extractor
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
            terms, most = evaluation.bound_terms, run.schedule.num_steps
            require("bound_terms", terms, terms is None or terms <= most, f"at most {most}, all terms of the bound")
            self.run.check_labels(self._measured)
        if self.draws:
            run.check_guidance(evaluation.guidance)
            example = np.stack([self.reference[0]["image"]])
            known = extract(self.extractor, example).logits is not None
            expected = f"metrics without it, as the features {self.extractor.name} know no classes"
            require("metrics", "is", known or "is" not in evaluation.metrics, expected)

    @property
    def _measured(self) -> Source:
        """The images that bits/dim are of."""
        return self.reference if self.held_out is None else self.held_out

    @cached_property
    def drawing(self) -> Drawing:
        """The images that are scored."""
        return Drawing(self.run, self.evaluation.seed, self.evaluation.guidance)

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
        conditions = {name: value for name, value in conditions.items() if name not in ("sampler", "guidance")}
        shards = Shards(self.folder / f"bits-{provenance.digest(conditions)}")
        quiet, key = jax.process_index() > 0, jax.random.key(self.evaluation.seed)
        done = broadcast(len(shards))
        with Waiting("bits/dim", len(source), done, quiet) as waiting:
            if done < len(source):
                for rows in self.run.bits_per_dim_of_batches(key, source, num_terms=terms, start=done):
                    done += len(rows)
                    if not quiet:
                        shards.append(rows)
                    waiting.reached(done)
        return np.asarray(shards[:]) if not quiet else np.zeros(0)

    def report(self, images: Any, bits: np.ndarray | None) -> tuple[Report, RunPath]:
        """Scores, conditions and pictures, written as JSON and as a page."""
        found: list[Score] = []
        pictures, charts, notes = [], [loss_chart(self.folder.parent)], ()
        if images is not None:
            n, mesh = self.evaluation.num_samples, self.run.mesh if jax.process_count() == 1 else None
            place = self._samples / f"{slug(self.extractor.name)}-{self.extractor.digest[:12]}"
            features = features_of(images, self.extractor, place, "features of the samples", mesh).first(n)
            seen = scores.Seen(
                features,
                Reference(self.reference, self.extractor, mesh),
                None if self.held_out is None else Reference(self.held_out, self.extractor, mesh),
                self.evaluation.seed,
            )
            for metric in self.evaluation.metrics:
                found += scores.OF[metric](seen) if metric in scores.OF else []
            pictures.append(Picture("Samples", "The first ones, not chosen.", grid(images[: min(n, IN_PICTURE)])))
            if "nn" in self.evaluation.metrics:
                pictures.append(self._neighbours(images, features, seen))
                charts.append(seen.distances_chart())
        if bits is not None:
            found.append(self._bits_score(bits))
        report = Report(self.conditions(), tuple(found), notes)
        return report, self._write(report, page(report, pictures, charts))

    def conditions(self) -> dict[str, Any]:
        """All that the scores depend on."""
        run, extractor, evaluation = self.run, self.extractor, self.evaluation
        times = run.experiment.sampler.times(run.schedule)
        return {
            "drawing": self.drawing.conditions,
            "num_samples": evaluation.num_samples if self.draws else 0,
            "evaluations": len(times) - 1 + (len(times) - 2) * run.experiment.sampler.extra_evaluations,
            "reference": provenance.of_source(self.reference),
            "held_out": None if self.held_out is None else provenance.of_source(self.held_out),
            "features": {
                "name": extractor.name,
                "digest": extractor.digest,
                "preprocessing": extractor.preprocessing,
            },
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
        name = Reference(source, self.extractor).name
        what = "all terms of the bound" if terms is None else f"{terms} drawn terms of the bound"
        about = f"variational bound, 256 levels, of all {len(bits):,} images of {name}; {what}; less is better"
        return Score("bits/dim", float(bits.mean(dtype=np.float64)), about, float(bits.std() / np.sqrt(len(bits))))

    def _neighbours(self, images: Any, features: Features, seen: "scores.Seen") -> Picture:
        rows = min(WITH_NEIGHBOURS, len(features.features))
        nearest = scores.nearest(features.features[:rows], seen.reference.features.features, NEIGHBOURS)
        cells = []
        for sample, indices in zip(images[:rows], nearest, strict=True):
            cells += [sample, *(self.reference[int(index)]["image"] for index in indices)]
        caption = f"Left a sample, then the {NEIGHBOURS} nearest images of {seen.reference.name}, in the features."
        return Picture("Nearest training images", caption, grid(np.stack(cells), columns=NEIGHBOURS + 1))


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def loss_chart(folder: RunPath) -> str:
    """The run's loss against the step, from its metrics.jsonl; "" where there is none."""
    path = folder / "metrics.jsonl"
    try:
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        steps, loss = (np.array([entry[name] for entry in entries], float) for name in ("step", "loss"))
    except (failures(path), ValueError, KeyError, TypeError):
        return ""
    return chart("Loss in training", "step", "loss", [Line("loss", steps, loss)], log_y=True) if len(entries) else ""
