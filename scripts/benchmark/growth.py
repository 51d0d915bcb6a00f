"""How time and memory grow with the batch, the length of the chain, the steps of sampling, the image and the network.

    python scripts/benchmark --growth          # about five minutes on two CPU cores

Our side alone.  Each point has a process of its own; the exponent p of time = c x^p is fitted to the last three points.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from workers import Case, Side, exponent, measure

OURS = Side("ours", "ours", {})
# The small network of the digits for images of 16x16: no attention anywhere, so that all work is by the pixel.
BASE = Case("train", "digits", batch=16, size=16)


@dataclass(frozen=True)
class Series:
    """Cases that differ in one number."""

    name: str
    values: tuple[int, ...]
    case: Callable[[int], Case]
    theory: str
    """What the exponent ought to be."""


SERIES = (
    Series("train step, batch", (1, 2, 4, 8, 16, 32, 64), lambda n: replace(BASE, batch=n), "at most 1"),
    Series("train step, length T of the chain", (100, 1000, 10000), lambda n: replace(BASE, T=n), "0"),
    Series(
        "sampling, steps (batch 4)",
        (10, 30, 100, 300, 1000),
        lambda n: replace(BASE, mode="sample", batch=4, sampler="ddim", steps=n),
        "1",
    ),
    Series(
        "train step, height and width (batch 4)",
        (16, 32, 64),
        lambda n: replace(BASE, batch=4, size=n),
        "2 (1 in pixels)",
    ),
    Series("train step, channels (batch 8)", (32, 64, 128), lambda n: replace(BASE, batch=8, channels=n), "at most 2"),
)


def grow(quick: bool, rounds: int, turn_seconds: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row for each series: values, seconds, bytes above the libraries, the exponent of the time."""
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    rows = []
    for series in SERIES[1:3] if quick else SERIES:
        values = series.values[:2] if quick else series.values
        points = []
        for value in values:
            say(f"{series.name}: {value}")
            case = replace(series.case(value), quick=quick)
            found, failed = measure(case, [OURS], rounds, turn_seconds, environment, lambda line: None)
            if failed:
                raise ValueError(f"{series.name} {value}: {failed['ours']}")
            points.append(found["ours"])
        seconds = [statistics.median(point["times"]) for point in points]
        peaks = [point["peak_bytes"] for point in points]
        libraries = [point["library_bytes"] for point in points]
        rows.append(
            {
                "series": series.name,
                "values": list(values),
                "seconds": seconds,
                "peak_bytes": peaks,
                "library_bytes": libraries,
                "prepare_s": [point["prepare_s"] for point in points],
                "exponent": exponent(values, seconds),
                "theory": series.theory,
            }
        )
    return rows


def table(rows: list[dict[str, Any]], quick: bool) -> str:
    """The rows as Markdown."""
    which = "A tiny" if quick else "The"
    images = f"images of {BASE.size}x{BASE.size}, no attention; batch {BASE.batch} unless a line says otherwise"
    lines = [f"{which} {BASE.net} network, {images}."]
    for row in rows:
        lines += ["", f"**{row['series']}**", "", "| value | time | peak memory | compiling and first run |"]
        lines.append("|--:|--:|--:|--:|")
        points = zip(row["values"], row["seconds"], row["peak_bytes"], row["prepare_s"], strict=True)
        for value, seconds, peak, prepared in points:
            memory = "" if peak is None else f"{peak / 1e6:,.0f} MB"
            lines.append(f"| {value:,} | {1000 * seconds:,.1f} ms | {memory} | {prepared:.1f} s |")
        lines.append(f"\nTime grows with the power {row['exponent']:.2f} at the end; in theory: {row['theory']}.")
    if known := [size for row in rows for size in row["library_bytes"] if size]:
        lines.append(f"\nOf the memory {statistics.median(known) / 1e6:,.0f} MB are the libraries, once imported.")
    return "\n".join(lines)
