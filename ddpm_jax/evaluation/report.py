"""A report: scores, and all that must be said with them so that somebody else finds the same."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

# With fewer samples a score's name says how many, and an interval stands beside it.
FEW = 10_000
# `ddpm_jax.devices.precision` says where these hold; a report made before there was a choice says nothing.
PRECISIONS = {
    "highest": "float32 products in full (highest)",
    "high": "float32 products of rounded factors: TF32 on GPUs, three bfloat16 products on TPUs (high)",
    "default": "float32 products as is fastest: TF32 on GPUs, bfloat16 on TPUs (default)",
    None: "not recorded",
}


@dataclass(frozen=True)
class Score:
    """One number, and how sure it is."""

    name: str
    """What it may be quoted as: "FID-50k", "FD-1k", "bits/dim"."""
    value: float
    about: str
    """What it is, of what, and which way is better, in one phrase."""
    error: float | None = None
    """Its standard error."""
    interval: tuple[float, float] | None = None
    """In which the mean over draws of as many samples lies, with 95% confidence."""
    held_out: float | None = None
    """The same of real images that the run has not seen, where there are some."""


@dataclass(frozen=True)
class Report:
    """The scores of a run, and under which conditions they hold."""

    conditions: dict[str, Any]
    scores: tuple[Score, ...]
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> str:
        """The report as a file: {"conditions": ..., "metrics": {NAME: {"value": ...}}, "notes": ...}."""
        metrics = {}
        for score in self.scores:
            entries = asdict(score)
            del entries["name"]
            metrics[score.name] = {key: value for key, value in entries.items() if value is not None}
        return (
            json.dumps(
                {"conditions": self.conditions, "metrics": metrics, "notes": self.notes}, indent=2, allow_nan=False
            )
            + "\n"
        )

    def as_text(self) -> str:
        """The report as a person reads it on a terminal."""
        lines = [f"{label:<12}{value}" for label, value in summary(self.conditions).items()]
        rows = [("", "samples", "", "held out"), *map(row, self.scores)]
        widths = [max(len(cells[i]) for cells in rows) for i in range(4)]
        lines.append("")
        for name, value, error, held_out in rows:
            line = f"{name:<{widths[0]}}  {value:>{widths[1]}}  {error:<{widths[2]}}  {held_out:>{widths[3]}}"
            lines.append(line.rstrip())
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])


def read_report(text: str) -> Report:
    """The report that `as_json` wrote; ValueError for anything else."""
    try:
        stored = json.loads(text)
        scores = []
        for name, entries in stored["metrics"].items():
            interval = tuple(entries["interval"]) if "interval" in entries else None
            scores.append(Score(name, **{**entries, "interval": interval}))
        report = Report(stored["conditions"], tuple(scores), tuple(stored["notes"]))
        summary(report.conditions)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"this is no report ({type(error).__name__}: {error})") from None
    return report


def row(score: Score) -> tuple[str, str, str, str]:
    """(name, value, how sure, held out) of a score, as text."""
    sure = ""
    if score.interval is not None:
        sure = f"95%: {number(score.interval[0])} to {number(score.interval[1])}"
    elif score.error is not None:
        sure = f"± {number(score.error)}"
    return score.name, number(score.value), sure, "" if score.held_out is None else number(score.held_out)


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"


def summary(conditions: dict[str, Any]) -> dict[str, str]:
    """The conditions, a line for each, as a person reads them."""
    drawing, reference, held_out = conditions["drawing"], conditions["reference"], conditions["held_out"]
    features, code = conditions["features"], conditions["code"]
    sampler, precision = short(drawing["sampler"]), drawing.get("precision")
    return {
        "run": f"{drawing['experiment']}, step {drawing['step']}, average {drawing['ema']}, "
        f"weights {drawing['weights'][:12]}",
        "samples": f"{conditions['num_samples']:,}, seed {drawing['seed']}, labels: {labels_of(drawing['labels'])}, "
        f"guidance: {'none' if drawing['guidance'] is None else drawing['guidance']}",
        "sampler": f"{sampler}; {conditions['evaluations']} network evaluations an image; {short(drawing['clip'])}",
        "precision": PRECISIONS.get(precision, f"products as {precision} says"),
        "pixels": drawing["rounding"],
        "reference": images_of(reference),
        "held out": images_of(held_out) if held_out else "none",
        "features": f"{features['name']}, sha256 {features['digest'][:12]}; {features['preprocessing']}"
        if features
        else "none",
        "code": f"ddpm_jax {code['ddpm_jax']}, commit {code['commit'] or 'unknown'}; "
        f"jax {code['jax']} on {code['device']}",
    }


def labels_of(drawn: Any) -> str:
    """How the samples' labels were drawn, with the share of each of ten classes or fewer."""
    if not isinstance(drawn, dict):
        return drawn or "none"
    counts = drawn["counts"]
    shares = [f"{100 * count / sum(counts):.3g}%" for count in counts]
    if len(shares) > 10:
        low, high = (f"{100 * end / sum(counts):.3g}%" for end in (min(counts), max(counts)))
        return f"{drawn['how']} ({low} to {high})"
    return f"{drawn['how']} ({', '.join(shares)})"


def images_of(about: dict[str, Any]) -> str:
    """A data set in a few words."""
    split = f", split {about['split']}" if about["split"] else ""
    return f"{short(about['data'])}{split}: {about['count']:,} images, digest {about['digest']}"


def short(spec: Any) -> str:
    """A spec as JSON holds it, in the manner of Python: DpmSolver(num_steps=20)."""
    if not isinstance(spec, dict) or "class" not in spec:
        return str(spec)
    arguments = ", ".join(f"{name}={short(value)}" for name, value in spec.items() if name != "class")
    return f"{spec['class'].split(':')[-1]}({arguments})"
