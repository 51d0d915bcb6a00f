"""How fast ddpm_jax is beside PyTorch and diffusers' `UNet2DModel` of the same architecture, on this machine.

    pip install -e .[benchmark]
    python scripts/benchmark                      # all modes, CPU or GPU: whatever JAX finds
    python scripts/benchmark --growth             # how time and memory grow, our side alone

    train        the whole training step: draws, loss, gradient, clipping, Adam, average
    forward      one evaluation of the network
    sample       images by DDIM in 50 steps, and by ancestral sampling in 1000
    data         shuffled batches of 50,000 images in memory
    checkpoint   saving and restoring a training state, until it is on disk
    startup      from the start of a process to the first finished training step, without and with compiled programs
    import       importing what one needs to sample

PyTorch runs in several modes (eager, channels_last, torch.compile, on GPUs CUDA graphs), and the fastest of them is
what we are held against.  Every side of every case has a process of its own, and they take turns.  Writes a JSON file,
after every row, and a chart beside it; prints a table.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import tyro
from chart import draw, duration, label
from growth import grow
from growth import table as growth_table
from workers import Case, Side, apart, compare, measure

Mode = Literal["train", "forward", "sample", "data", "checkpoint", "startup", "import"]
MODES: tuple[Mode, ...] = ("train", "forward", "sample", "data", "checkpoint", "startup", "import")
PACKAGES = ("jax", "jaxlib", "torch", "diffusers", "ddpm-jax")
INSTALL = "PyTorch and diffusers are not installed, so only our side runs; pip install -e .[benchmark] brings them"
# Rounds of what takes a process for each of its times.
PROCESS_ROUNDS = 3


@dataclass(frozen=True)
class Options:
    """Time ddpm_jax beside PyTorch and diffusers."""

    modes: tuple[Mode, ...] = MODES
    """What is timed."""
    nets: tuple[str, ...] = ("digits", "cifar10")
    """Networks: those of experiments/NAME.py."""
    batch: int | None = None
    """Images in a step, and of a sampled batch, unless it is the network's own (8 for cifar10 on CPUs)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the layers compute in; in float32, GPUs multiply matrices in TF32 on both sides."""
    rounds: int = 7
    """How often each side has its turn."""
    turn: float = 1.0
    """Seconds of a turn; what takes longer runs once."""
    steps: int = 50
    """Of DDIM."""
    ancestral_steps: int = 1000
    """Of ancestral sampling; 0 for none."""
    long: bool = False
    """Ancestral sampling also where it takes minutes for an image: of larger networks, on CPUs."""
    peers: Literal["all", "eager", "none"] = "all"
    """PyTorch in all modes; without torch.compile, which takes minutes to compile; not at all."""
    growth: bool = False
    """Instead, how time and memory grow with the sizes."""
    quick: bool = False
    """Tiny networks and short turns, to try the benchmark itself."""
    output: Path = Path("runs/benchmark/benchmark.json")
    """The JSON file to write; the chart goes beside it."""

    def __post_init__(self) -> None:
        for name in ("batch", "rounds", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if self.output.suffix != ".json":
            raise ValueError(f"output is {str(self.output)!r}; expected NAME.json")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    if options.quick:
        options = replace(options, rounds=2, turn=0.02, steps=3, ancestral_steps=4, batch=options.batch or 2)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.growth:
        rows = grow(options.quick, options.rounds, options.turn, say)
        result, told = {**machine(options), "growth": rows}, growth_table(rows, options.quick)
    else:
        scratch = tempfile.mkdtemp(prefix="benchmark-", dir=options.output.parent)
        try:
            result = run(options, Path(scratch))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        told = table(result)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{told}\n\nwrote {options.output}")
    if options.growth:
        return
    chart = options.output.with_suffix(".png")
    print(f"wrote {chart}" if draw(result, chart) else "no chart: pip install -e .[benchmark] brings Matplotlib")


def say(line: str) -> None:
    """Progress: to stderr, so that the table can be kept by itself."""
    print(line, file=sys.stderr, flush=True)


def machine(options: Options, plan: dict[str, Any] | None = None) -> dict[str, Any]:
    """The device and the versions."""
    known: dict[str, Any] = plan or apart("ours", "describe", options.nets[0], options.quick)
    device = {"platform": known["platform"], "name": known["device"], "cores": known["cores"]}
    python = ".".join(map(str, sys.version_info[:3]))
    return {"device": device, "versions": {"python": python, **{name: installed(name) for name in PACKAGES}}}


def installed(package: str) -> str | None:
    """Its version; None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run(options: Options, scratch: Path) -> dict[str, Any]:
    """All rows."""
    plans = {name: apart("ours", "describe", name, options.quick) for name in options.nets}
    plan = next(iter(plans.values()))
    peers = options.peers
    if peers != "none" and not (find_spec("torch") and find_spec("diffusers")):
        say(INSTALL)
        peers = "none"
    # Neither side finds programs that it compiled in another run, nor takes all of a GPU's memory at once.
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }

    failed: dict[str, str] = {}
    result = {**machine(options, plan), "peak_flops": None, "rows": [], "failed": failed}

    def timed(case: Case) -> dict[str, Any] | None:
        say(label_of(case))
        rounds = min(options.rounds, PROCESS_ROUNDS) if in_processes(case) else options.rounds
        sides = list(sides_of(case, peers))
        found, left_out = measure(case, sides, rounds, options.turn, environment, say)
        if "ours" in found:
            return row(case, found, left_out)
        failed[label_of(case)] = left_out["ours"]
        return None

    if {"train", "forward"} & set(options.modes):
        result["peak_flops"] = best_product(options, plan, timed)
    for case in cases(options, plans, scratch):
        if one := timed(case):
            if one["flops"] and result["peak_flops"]:
                rate = {side: one["flops"] / seconds for side, seconds in seconds_of(one).items()}
                one["of_peak"] = {side: value / result["peak_flops"] for side, value in rate.items()}
            result["rows"].append(one)
        about_data(result["rows"])
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if not result["rows"]:
        raise ValueError("; ".join(f"{name} fails: {why}" for name, why in failed.items()))
    return result


def cases(options: Options, plans: dict[str, dict[str, Any]], scratch: Path) -> Iterator[Case]:
    """What is to be timed, in order."""
    on_cpu = next(iter(plans.values()))["platform"] == "cpu"
    largest = max(plans, key=lambda name: plans[name]["parameters"])
    for mode in options.modes:
        for net, plan in plans.items():
            batch = options.batch or (8 if net == "cifar10" and on_cpu else plan["batch"])
            case = Case(mode, net, batch, options.dtype, quick=options.quick, folder=str(scratch), plan=plan)
            if mode in ("train", "forward"):
                yield case
            elif mode == "sample":
                yield from sampling(options, case, small=net == "digits" or options.long or not on_cpu)
        case = Case(mode, largest, 1, quick=options.quick, folder=str(scratch), plan=plans[largest])
        if mode == "data":
            yield replace(case, batch=128, plan={**case.plan, "shape": (32, 32, 3)})
        elif mode == "checkpoint":
            yield from (replace(case, mode=name) for name in ("save", "restore"))
        elif mode == "startup":
            net = "digits" if "digits" in plans else largest
            case = replace(case, net=net, batch=options.batch or plans[net]["batch"], plan=plans[net])
            yield from (replace(case, mode=f"startup, {how}") for how in ("cold", "warm"))
        elif mode == "import":
            yield case


def sampling(options: Options, case: Case, small: bool) -> Iterator[Case]:
    """DDIM for one image and for many, ancestral sampling for one."""
    sizes = [options.batch] if options.batch else [1, 256] if case.net == "digits" else [1]
    for size in sizes:
        yield replace(case, sampler="ddim", steps=options.steps, batch=size)
    if options.ancestral_steps and small:
        yield replace(case, sampler="ancestral", steps=options.ancestral_steps, batch=sizes[0])


def in_processes(case: Case) -> bool:
    """Whether each time is that of a process."""
    return case.mode.startswith("startup") or case.mode == "import"


def sides_of(case: Case, peers: str) -> Iterator[Side]:
    """Ours, and PyTorch in its modes: all, eager, or none."""
    module = "processes" if in_processes(case) else "ours"
    yield Side("ours", module, {"side": "ours"})
    if peers == "none":
        return
    if case.mode == "import":
        ways: dict[str, dict[str, Any]] = {"torch and diffusers": {}}
    elif in_processes(case):
        ways = {"eager": {}, "torch.compile": {"compile": True}}
    else:
        module, ways = "peer", apart("peer", "modes", case.mode, case.plan["platform"])
    for name, how in ways.items():
        if peers == "all" or not how.get("compile"):
            yield Side(name, module, {"side": "peer", **how})


def best_product(
    options: Options, plan: dict[str, Any], timed: Callable[[Case], dict[str, Any] | None]
) -> float | None:
    """FLOP/s of a large product of matrices: the larger of what the two libraries reach."""
    size = 128 if options.quick else 2048 if plan["platform"] == "cpu" else 8192
    found = timed(Case("matmul", "", dtype=options.dtype, plan=plan, size=size))
    return max(2 * size**3 / seconds for seconds in seconds_of(found).values()) if found else None


def row(case: Case, found: dict[str, dict[str, Any]], failed: dict[str, str]) -> dict[str, Any]:
    """What is written about a case."""
    ours, peers = found["ours"], {name: side for name, side in found.items() if name != "ours"}
    fields = ("mode", "net", "batch", "dtype", "sampler", "steps")
    known = {name: getattr(case, name) for name in fields}
    one: dict[str, Any] = {**known, "ours": ours, "peers": peers, "failed": failed, **compare(ours, peers)}
    images = case.batch if case.mode in ("train", "forward", "sample", "data") else None
    one["images_per_second"] = images and {side: images / seconds for side, seconds in seconds_of(one).items()}
    share = {"train": 1.0, "forward": 1 / 3}.get(case.mode)  # the forward pass is a third of a step
    one["flops"] = share and share * case.batch * case.plan["train_flops"]
    return one


def seconds_of(one: dict[str, Any]) -> dict[str, float]:
    """The medians of us and of the fastest peer."""
    seconds = {"ours": one["ours"]["median_s"]}
    return {**seconds, "best_peer": one["peers"][one["best_peer"]]["median_s"]} if one["best_peer"] else seconds


def about_data(rows: list[dict[str, Any]]) -> None:
    """How many times the images that training takes the data pipeline gives, where both were timed."""
    trained = [one["images_per_second"]["ours"] for one in rows if one["mode"] == "train" and one["net"] == "cifar10"]
    for one in rows:
        if one["mode"] == "data" and trained:
            one["times_needed"] = one["images_per_second"]["ours"] / trained[0]


def label_of(case: Case) -> str:
    """What a case is, in words."""
    if case.mode == "matmul":
        return f"product of two matrices of {case.size} rows, {case.dtype}"
    return label({name: getattr(case, name) for name in ("mode", "net", "batch", "dtype", "sampler", "steps")})


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown, and what else was found."""
    lines = ["| | ours | PyTorch | its mode | ratio | (range) | memory, ours | PyTorch |"]
    lines.append("|---|--:|--:|---|--:|---|--:|--:|")
    for one in result["rows"]:
        ours, best = one["ours"], one["peers"].get(one["best_peer"], {})
        cells = [label(one), duration(ours["median_s"])]
        if best:
            low, high = one["ratio_range"]
            cells += [duration(best["median_s"]), one["best_peer"], f"{one['ratio']:.2f}", f"{low:.2f} to {high:.2f}"]
        else:
            cells += [""] * 4
        cells += ["" if in_processes(Case(one["mode"])) else memory(side) for side in (ours, best)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(["ratio: PyTorch's time / ours, above 1 where we are faster", "", *lines, "", *notes(result)])


def memory(side: dict[str, Any]) -> str:
    """The peak while it runs, and what of it is more than the libraries once imported."""
    peak, library = side.get("peak_bytes"), side.get("library_bytes")
    if not peak:
        return ""
    return f"{peak / 1e6:,.0f} MB" + (f" ({(peak - library) / 1e6:+,.0f})" if library and peak > library else "")


def notes(result: dict[str, Any]) -> Iterator[str]:
    """What the table does not say."""
    yield "memory: the peak while it runs (and what is above the libraries, just imported)"
    yield from (f"{name}: our side fails, so there is no row. {why}" for name, why in result["failed"].items())
    for one in result["rows"]:
        if shares := one.get("of_peak"):
            told = ", PyTorch ".join(f"{100 * share:.0f}%" for share in shares.values())
            rate = one["flops"] / one["ours"]["median_s"] / 1e9
            yield f"{label(one)}: {rate:,.1f} model GFLOP/s, of a large matrix product's rate {told}"
        if one.get("times_needed"):
            yield f"{label(one)}: {one['times_needed']:,.0f} times the images that training takes"
        if blocked := one["ours"]["facts"].get("blocked_s"):
            size = one["ours"]["facts"]["state_bytes"] / 1e6
            yield f"{label(one)}: {size:,.0f} MB, of which training waits for {duration(blocked)}"
        ready = {"ours": one["ours"], one["best_peer"]: one["peers"].get(one["best_peer"])}
        told = ", ".join(f"{name} {side['prepare_s']:.1f} s" for name, side in ready.items() if side)
        if one["mode"] in ("train", "forward", "sample"):
            yield f"{label(one)}: ready after {told}"
        yield from (f"{label(one)}: {name} is left out. {why}" for name, why in one["failed"].items())


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"benchmark: {error}")
