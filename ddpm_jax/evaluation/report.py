"""A report: scores, with the conditions that are needed to reproduce them."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["FEW", "PRECISIONS", "Report", "Score", "read_report", "row", "summary"]

# With fewer samples a Frechet distance is not called FID, and it has an interval.
FEW = 10_000
# See `ddpm_jax.devices.precision`; older reports have no precision.
PRECISIONS = {
    "highest": "full float32 products (highest)",
    "high": "float32 products of rounded factors: TF32 on GPUs, three bfloat16 products on TPUs (high)",
    "default": "the fastest float32 products: TF32 on GPUs, bfloat16 on TPUs (default)",
    None: "not recorded",
}


@dataclass(frozen=True)
class Score:
    """One number with its uncertainty."""

    name: str
    """The name to quote: "FID-50k", "FD-1k", "bits/dim"."""
    value: float
    about: str
    """A phrase that says what is measured, on which images, and which direction is better."""
    error: float | None = None
    """The standard error."""
    interval: tuple[float, float] | None = None
    """A 95% confidence interval of the mean over draws of as many samples."""
    held_out: float | None = None
    """The same score of real images that the run has not seen; None if there are none."""


@dataclass(frozen=True)
class Report:
    """The scores of a run and the conditions under which they hold."""

    conditions: dict[str, Any]
    scores: tuple[Score, ...]
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> str:
        """The report as JSON: {"conditions": ..., "metrics": {NAME: {"value": ...}}, "notes": ...}."""
        metrics = {}
        for score in self.scores:
            entries = asdict(score).items()
            metrics[score.name] = {key: value for key, value in entries if key != "name" and value is not None}
        found = {"conditions": self.conditions, "metrics": metrics, "notes": self.notes}
        return json.dumps(found, indent=2, allow_nan=False) + "\n"

    def as_text(self) -> str:
        """The report as text for a terminal."""
        lines = [f"{label:<12}{value}" for label, value in summary(self.conditions).items()]
        rows = [("", "value", "", "held out"), *map(row, self.scores)]
        widths = [max(len(cells[i]) for cells in rows) for i in range(4)]
        lines.append("")
        for name, value, error, held_out in rows:
            line = f"{name:<{widths[0]}}  {value:>{widths[1]}}  {error:<{widths[2]}}  {held_out:>{widths[3]}}"
            lines.append(line.rstrip())
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])


def read_report(text: str) -> Report:
    """The report that `as_json` wrote.  Raises ValueError for anything else."""
    try:
        stored = json.loads(text)
        scores = []
        for name, entries in stored["metrics"].items():
            interval = tuple(entries["interval"]) if "interval" in entries else None
            scores.append(Score(name, **{**entries, "interval": interval}))
        report = Report(stored["conditions"], tuple(scores), tuple(stored["notes"]))
        summary(report.conditions)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"this is not a report ({type(error).__name__}: {error})") from None
    return report


def row(score: Score) -> tuple[str, str, str, str]:
    """(name, value, uncertainty, held out) of a score, as text."""
    sure = ""
    if score.interval is not None:
        sure = f"95%: {number(score.interval[0])} to {number(score.interval[1])}"
    elif score.error is not None:
        sure = f"± {number(score.error)}"
    return score.name, number(score.value), sure, "" if score.held_out is None else number(score.held_out)


def number(value: float) -> str:
    """A number with four significant digits."""
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"


def summary(conditions: dict[str, Any]) -> dict[str, str]:
    """The conditions as text for a reader, by their labels.  Raises KeyError or TypeError if one is missing."""
    drawing, reference, held_out = conditions["drawing"], conditions["reference"], conditions["held_out"]
    features, code = conditions["features"], conditions["code"]
    sampler, precision = short(drawing["sampler"]), drawing.get("precision")
    weights, labels = drawing["weights"][:12], labels_of(drawing["labels"])
    guidance = "none" if drawing["guidance"] is None else drawing["guidance"]
    extractor = "{name}, sha256 {digest:.12}; {preprocessing}".format(**features) if features else "none"
    package = f"ddpm_jax {code['ddpm_jax']}, commit {code['commit'] or 'unknown'}"
    return {
        "run": f"{drawing['experiment']}, step {drawing['step']}, average {drawing['ema']}, weights {weights}",
        "samples": f"{conditions['num_samples']:,}, seed {drawing['seed']}, labels: {labels}, guidance: {guidance}",
        "sampler": f"{sampler}; {conditions['evaluations']} network evaluations per image; {short(drawing['clip'])}",
        "precision": PRECISIONS.get(precision, f"float32 products of precision {precision}"),
        "pixels": drawing["rounding"],
        "reference": images_of(reference),
        "held out": images_of(held_out) if held_out else "none",
        "features": extractor,
        "code": f"{package}; jax {code['jax']} on {code['device']}",
    }


def labels_of(drawn: Any) -> str:
    """The origin of the samples' labels, with the share of each class if there are at most ten."""
    if not isinstance(drawn, dict):
        return drawn or "none"
    counts, few = drawn["counts"], len(drawn["counts"]) <= 10
    shown = counts if few else (min(counts), max(counts))
    shares = (", " if few else " to ").join(f"{100 * count / sum(counts):.3g}%" for count in shown)
    return f"{drawn['how']} ({shares})"


def images_of(about: dict[str, Any]) -> str:
    """A description of a data set for a reader."""
    split = f", split {about['split']}" if about["split"] else ""
    return f"{short(about['data'])}{split}: {about['count']:,} images, digest {about['digest']}"


def short(spec: Any) -> str:
    """A specification in its JSON form as a Python expression: DpmSolver(num_steps=20)."""
    if not isinstance(spec, dict) or "class" not in spec:
        return str(spec)
    arguments = ", ".join(f"{name}={short(value)}" for name, value in spec.items() if name != "class")
    return f"{spec['class'].split(':')[-1]}({arguments})"
