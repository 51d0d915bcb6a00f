"""The model card of an exported run, README.md: what it is, how it was made, how good it is, how to use it."""

import dataclasses
import json
import math
import re
from contextlib import suppress
from pathlib import PurePath
from typing import Any

import jax

from ddpm_jax import __version__
from ddpm_jax.errors import require
from ddpm_jax.evaluation.provenance import digest_of_arrays
from ddpm_jax.evaluation.report import Report, read_report, row, summary
from ddpm_jax.run import Run
from ddpm_jax.storage.paths import RunPath

# The file of an imported run that says where its weights came from.
ORIGIN = "imported.json"
NO_LICENSE = "None was given: ask the author before you use the weights for more than a look."


def card_text(run: Run, folder: RunPath, name: str, license: str | None) -> str:
    """The card of a run's weights in `folder`; name: that of the folder they are exported to.

    Raises ValueError where the licence is not an identifier.
    """
    if license is not None:
        known = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", license) is not None
        require("--license", license, known, "an identifier such as apache-2.0, cc-by-4.0 or other")
    height, width, channels = run.image_shape
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(run.params))
    classes = run.experiment.net.num_classes
    kind = "" if classes is None else f" of {classes} classes"
    return "\n".join(
        [
            *_front_matter(license),
            "",
            f"# {name}",
            "",
            f"A denoising diffusion model{kind} of {height}x{width}x{channels} images, with {count:,} parameters,",
            f"trained with ddpm_jax {__version__} and written for diffusers.",
            "",
            "## Recipe",
            "",
            *_table(("what", "value"), _recipe(run, folder)),
            "",
            "## Data",
            "",
            f"`{describe(run.experiment.data)}`",
            "",
            "## Metrics",
            "",
            *_metrics(run, folder),
            "",
            "## Use",
            "",
            *_use(run, name),
            "",
            "## Licence",
            "",
            license or NO_LICENSE,
            "",
        ]
    )


def _front_matter(license: str | None) -> list[str]:
    """What Hugging Face reads: YAML between two lines of dashes."""
    tags = ("ddpm_jax", "jax", "diffusion", "ddpm", "unconditional-image-generation")
    lines = ["library_name: diffusers", f"license: {(license or 'unknown').lower()}"]
    return [
        "---",
        *lines,
        "pipeline_tag: unconditional-image-generation",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
    ]


def _recipe(run: Run, folder: RunPath) -> list[tuple[str, str]]:
    """How the weights were made, part by part; of imported ones that were not trained here, what they are."""
    of, origin = run.experiment, folder / ORIGIN
    what, how = ("net", "schedule", "target", "variance", "clip", "sampler"), ("objective", "timesteps", "optimizer")
    rows = [(part, f"`{describe(getattr(of, part))}`") for part in what + how]
    rows += [
        ("averages", f"`{describe(of.ema)}`; these weights: {run.ema}"),
        ("steps", f"{run.step:,} of {of.num_steps:,}"),
    ]
    rows += [("batch", str(of.batch_size)), ("flips", str(of.flip)), ("seed", str(of.seed))]
    if origin.exists():
        name = json.loads(origin.read_text()).get("from")
        rows = rows if run.step else rows[: len(what)]
        rows.append(("began as", f"imported weights, {name}, whose own recipe and data are not known here"))
    return rows


def describe(value: Any) -> str:
    """A spec as the expression that makes it, without fields at their defaults; of paths only the last part."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        if isinstance(value, tuple) and len(value) > 8:
            return f"({', '.join(map(repr, value[:3]))}, ... {len(value)} values)"
        return repr(PurePath(value.replace("\\", "/")).name if isinstance(value, str) else value)
    shown = [
        f"{field.name}={describe(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({', '.join(shown)})"


def evaluations(run: Run, folder: RunPath) -> list[Report]:
    """The reports in RUN/evaluations/*/report.json that are of these weights; what is no report is left out."""
    found, weights = [], digest_of_arrays(run.params)
    for path in sorted(folder.glob("evaluations/*/report.json")):
        with suppress(ValueError, OSError):
            report = read_report(path.read_text())
            if report.conditions["drawing"]["weights"] == weights:
                found.append(report)
    return found


def _metrics(run: Run, folder: RunPath) -> list[str]:
    """Each report: its scores, and the conditions that they hold under."""
    lines = []
    for report in evaluations(run, folder):
        rows = [(*row(score), score.about) for score in report.scores]
        lines += [*_table(("score", "samples", "", "held-out images", "what it is"), rows), ""]
        told = summary(_without_places(report.conditions)).items()
        lines += [*(f"- {label}: {value}" for label, value in told), *(f"- {note}" for note in report.notes), ""]
    return lines[:-1] or ["These weights were not evaluated (`ddpm-jax evaluate RUN` does)."]


def _without_places(value: Any) -> Any:
    """A JSON value, of paths in it only the last part: where data lie on some machine is nobody's business."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and value.startswith(("/", "~", ".")) else value


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    """A table of Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines]


def _use(run: Run, name: str) -> list[str]:
    """How to draw images with either library."""
    steps = run.experiment.schedule.build().num_steps
    classes = run.experiment.net.num_classes
    if classes is None:
        draw = [f"images = pipeline(batch_size=4, num_inference_steps={steps}).images"]
    else:
        draw = [
            f"pipeline.scheduler.set_timesteps({steps})",
            "labels = torch.arange(4)",
            f"z = torch.randn(4, {run.image_shape[2]}, {run.image_shape[0]}, {run.image_shape[1]})",
            "for t in pipeline.scheduler.timesteps:",
            "    with torch.no_grad():",
            "        z = pipeline.scheduler.step(pipeline.unet(z, t, labels).sample, t, z).prev_sample",
        ]
    null = run.experiment.net.null_label
    told = [] if null is None else ["", f"Class {null} stands for no class, for classifier-free guidance."]
    again = f" --label-dropout {run.experiment.net.label_dropout}" if null is not None else ""
    torch = [] if classes is None else ["import torch"]
    return [
        "With diffusers:",
        "",
        "```python",
        *torch,
        "from diffusers import DDPMPipeline",
        "",
        f'pipeline = DDPMPipeline.from_pretrained("{name}")',
        *draw,
        "```",
        *told,
        "",
        "With ddpm_jax:",
        "",
        "```",
        f"ddpm-jax import {name} --output runs/{name}{again}",
        f"ddpm-jax sample runs/{name} --num-images 64",
        "```",
    ]
