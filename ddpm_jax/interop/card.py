"""The model card of an exported run, README.md: its recipe, data, scores, use and licence."""

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
from ddpm_jax.interop.scheduler_config import require_chain
from ddpm_jax.run import Run
from ddpm_jax.storage.paths import RunPath

__all__ = ["ORIGIN", "card_text", "describe", "evaluations"]

# The file of an imported run with the origin of its weights.
ORIGIN = "imported.json"
NO_LICENSE = "No licence was given; ask the author before you use the weights."


# The metadata for Hugging Face: YAML between two lines of dashes.
HEADER = """---
library_name: diffusers
license: {}
pipeline_tag: unconditional-image-generation
tags: [ddpm_jax, jax, diffusion, ddpm, unconditional-image-generation]
---"""


def card_text(run: Run, folder: RunPath, name: str, license: str | None) -> str:
    """The card of the weights of a run.

    Args:
        run: the run.
        folder: its folder.
        name: the name of the folder that the weights are exported to.
        license: the identifier of the licence; None if it is not known.

    Raises:
        ValueError: the licence is not an identifier.
    """
    if license is not None:
        known = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", license) is not None
        require("--license", license, known, "an identifier such as apache-2.0, cc-by-4.0 or other")
    height, width, channels = run.image_shape
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(run.params))
    classes = run.experiment.net.num_classes
    kind = "" if classes is None else f" of {classes} classes"
    title = f"""# {name}

A denoising diffusion model{kind} of {height}x{width}x{channels} images, with {count:,} parameters,
trained with ddpm_jax {__version__} and written for diffusers."""
    sections = {
        "Recipe": "\n".join(_table(("part", "value"), _recipe(run, folder))),
        "Data": f"`{describe(run.experiment.data)}`",
        "Metrics": "\n".join(_metrics(run, folder)),
        "Use": _use(run, name),
        "Licence": license or NO_LICENSE,
    }
    parts = [HEADER.format((license or "unknown").lower()), title]
    return "\n\n".join([*parts, *(f"## {title}\n\n{text}" for title, text in sections.items())]) + "\n"


def _recipe(run: Run, folder: RunPath) -> list[tuple[str, str]]:
    """The parts of the experiment and its training; without the training for imported weights."""
    of, origin = run.experiment, folder / ORIGIN
    model, training = (
        ("net", "schedule", "target", "variance", "clip", "sampler"),
        ("objective", "timesteps", "optimizer"),
    )
    rows = [(part, f"`{describe(getattr(of, part))}`") for part in model + training]
    rows += [
        ("averages", f"`{describe(of.ema)}`; these weights: {run.ema}"),
        ("steps", f"{run.step:,} of {of.num_steps:,}"),
    ]
    rows += [("batch", str(of.batch_size)), ("flips", str(of.flip)), ("seed", str(of.seed))]
    if origin.exists():
        name = json.loads(origin.read_text()).get("from")
        rows = rows if run.step else rows[: len(model)]
        rows.append(("initial weights", f"imported weights, {name}, whose recipe and data are not known"))
    return rows


def describe(value: Any) -> str:
    """A specification as a Python expression, without fields at their defaults; of a path only the last part."""
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
    """The reports in RUN/evaluations/*/report.json about the weights of a run; other files are ignored.

    Args:
        run: the run.
        folder: its folder.
    """
    found, weights = [], digest_of_arrays(run.params)
    for path in sorted(folder.glob("evaluations/*/report.json")):
        with suppress(ValueError, OSError):
            report = read_report(path.read_text())
            if report.conditions["drawing"]["weights"] == weights:
                found.append(report)
    return found


def _metrics(run: Run, folder: RunPath) -> list[str]:
    """The scores of each report and the conditions under which they hold."""
    lines = []
    for report in evaluations(run, folder):
        rows = [(*row(score), score.about) for score in report.scores]
        lines += [*_table(("metric", "value", "uncertainty", "held-out images", "meaning"), rows), ""]
        conditions = summary(_without_places(report.conditions)).items()
        lines += [*(f"- {label}: {value}" for label, value in conditions), *(f"- {note}" for note in report.notes), ""]
    return lines[:-1] or ["These weights were not evaluated; `ddpm-jax evaluate RUN` evaluates them."]


def _without_places(value: Any) -> Any:
    """A JSON value with only the last part of each path in it, as a card shows no folders of a private machine."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and value.startswith(("/", "~", ".")) else value


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines]


def _use(run: Run, name: str) -> str:
    """Instructions for drawing images with either library."""
    net, (height, width, channels) = run.experiment.net, run.image_shape
    require_chain(run.experiment.schedule)
    steps = len(run.experiment.schedule.betas())
    torch, draw, null_class, again = "", f"images = pipeline(batch_size=4, num_inference_steps={steps}).images", "", ""
    if net.num_classes is not None:
        torch = "import torch\n"
        draw = f"""pipeline.scheduler.set_timesteps({steps})
labels = torch.arange(4)
z = torch.randn(4, {channels}, {height}, {width})
for t in pipeline.scheduler.timesteps:
    with torch.no_grad():
        z = pipeline.scheduler.step(pipeline.unet(z, t, labels).sample, t, z).prev_sample"""
    if net.null_label is not None:
        null_class = f"\nClass {net.null_label} stands for no class, for classifier-free guidance.\n"
        again = f" --label-dropout {net.label_dropout}"
    return f"""With diffusers:

```python
{torch}from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained("{name}")
{draw}
```
{null_class}
With ddpm_jax:

```
ddpm-jax import {name} --output runs/{name}{again}
ddpm-jax sample runs/{name} --num-images 64
```"""
