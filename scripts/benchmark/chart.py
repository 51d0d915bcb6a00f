"""The picture of a benchmark: how many times as fast we are, row by row."""

import importlib.util
from pathlib import Path
from typing import Any

SIZE, DOTS = (8.0, 4.5), 200
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
FASTER, SLOWER = "#0072B2", "#D55E00"


def label(row: dict[str, Any]) -> str:
    """What a row is, in words."""
    nets = {"digits": "digits net", "cifar10": "CIFAR-10 net"}
    net, batch = nets.get(row["net"], f"{row['net']} net"), f"batch {row['batch']}"
    half = ", bf16" if row["dtype"] == "bfloat16" else ""
    if row["mode"] == "sample":
        sampler = {"ddim": "DDIM", "ancestral": "ancestral"}[row["sampler"]]
        return f"{sampler}, {row['steps']} steps, {net}, {batch}{half}"
    if row["mode"] in ("train", "forward"):
        name = {"train": "train step", "forward": "forward pass"}[row["mode"]]
        return f"{name}, {net}, {batch}{half}"
    names = {
        "data": f"data pipeline, 32x32x3, {batch}",
        "save": f"save a checkpoint, {net}",
        "restore": f"restore a checkpoint, {net}",
        "startup, cold": f"start to first step, cold, {net}",
        "startup, warm": f"start to first step, warm, {net}",
        "import": "import what samples",
    }
    return names[row["mode"]]


def duration(seconds: float) -> str:
    """Three digits, with a unit."""
    unit, factor = ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    value = factor * seconds
    return f"{value:,.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"


def described(result: dict[str, Any]) -> str:
    """The device and the versions, in a line."""
    device, versions = result["device"], result["versions"]
    cores = f", {device['cores']} cores" if device["platform"] == "cpu" else ""
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return f"{device['name']}{cores}.  {told}"


def draw(result: dict[str, Any], path: Path) -> bool:
    """Draw the rows that have a peer, or without any the times; False where there is no Matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib as mpl  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    compared = [row for row in result["rows"] if row["ratio"]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        figure.set_layout_engine("constrained", rect=(0, 0.05, 1, 0.95))
        axes = figure.subplots()
        if compared:
            _ratios(axes, compared)
        else:
            _times(axes, result["rows"])
        figure.text(0.01, 0.015, described(result), fontsize=7, color="#555555")
        figure.savefig(path, dpi=DOTS)
    return True


def _ratios(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Bars from 1.0, to the right where we are faster."""
    places = range(len(rows))
    lowest = min(0.45, *(row["ratio_range"][0] for row in rows))
    highest = max(2.2, *(row["ratio_range"][1] for row in rows))
    small = 7 if len(rows) > 10 else 8
    for place, row in zip(places, rows, strict=True):
        ratio, (low, high) = row["ratio"], row["ratio_range"]
        axes.barh(place, ratio - 1, left=1, height=0.62, color=FASTER if ratio >= 1 else SLOWER)
        axes.plot([low, high], [place, place], color="#222222", linewidth=0.8)
        ours, theirs = row["ours"]["median_s"], row["peers"][row["best_peer"]]["median_s"]
        text = f"{ratio:.2f}x   {duration(ours)} : {duration(theirs)}, {row['best_peer']}"
        axes.annotate(
            text,
            (max(high, 1), place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=small,
            color="#333333",
        )
    axes.axvline(1, color="#222222", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(lowest / 1.1, highest * (highest / lowest) ** 1.1)
    ticks = [
        tick
        for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
        if lowest / 1.1 <= tick <= 1.1 * highest
    ]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(places, [label(row) for row in rows], fontsize=small + 1)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlabel("theirs / ours in time, median and range over the rounds (blue: ours is faster)", loc="left")
    axes.set_title("Speed of ddpm_jax beside PyTorch and diffusers in their fastest mode", loc="left")


def _times(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Our times alone."""
    places = range(len(rows))
    for place, row in zip(places, rows, strict=True):
        axes.barh(place, row["ours"]["median_s"], height=0.62, color=FASTER)
        text = duration(row["ours"]["median_s"])
        axes.annotate(text, (row["ours"]["median_s"], place), (4, 0), textcoords="offset points", va="center")
    axes.set_xscale("log")
    axes.set_yticks(places, [label(row) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("seconds", loc="left")
    axes.set_title("Times of ddpm_jax", loc="left")
