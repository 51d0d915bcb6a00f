"""Worker processes of the benchmark, one for each side of a case, and the arithmetic of what they measured.

Each library has a process of its own, so that their thread pools do not disturb one another and peak memory is each
one's own.  The sides take turns: in every round each of them runs once, while the others wait for a message.  So a
machine that is slower for a minute is slower for all.
"""

import ctypes
import importlib
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

# Seconds in which a worker must be ready, or done with a turn: the compilers take minutes on a slow machine.
PATIENCE = 3600
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Case:
    """What is timed: plain values, for they go to other processes."""

    mode: str
    """The kind of work: train, forward, sample, and so on."""
    net: str = "digits"
    """An experiment, experiments/NET.py, whose network, schedule and target are taken."""
    batch: int = 1
    dtype: str = "float32"
    sampler: str = ""
    """ddim or ancestral, for sampling."""
    steps: int = 0
    """Of the sampler."""
    quick: bool = False
    """A tiny network, to try the benchmark itself."""
    folder: str = ""
    """For files that are written."""
    plan: dict[str, Any] = field(default_factory=dict)
    """What `ours.describe` said of the network and the device."""
    channels: int | None = None
    """Of the network's first level, where it is not the experiment's."""
    size: int | None = None
    """Height and width of the images, where it is not the data's."""
    T: int | None = None
    """Length of the diffusion, where it is not the experiment's."""


@dataclass
class Job:
    """What a side made of a case: `run(n)` does the work n times, and returns when it is done."""

    run: Callable[[int], Any]
    facts: dict[str, Any] = field(default_factory=dict)
    """What else the side found out, until the end."""
    device_peak: Callable[[], int | None] = lambda: None
    """The most bytes that were in use on an accelerator; None where there is none."""
    close: Callable[[], Any] = lambda: None
    warm_up: int = 2
    """Runs before the first that counts."""


class Side(NamedTuple):
    """A library, in one of its modes."""

    name: str
    module: str
    """Where prepare(case, how) makes a Job."""
    how: dict[str, Any]


class Worker:
    """A process in which a side is prepared, and runs when it is told."""

    def __init__(self, side: Side, case: Case, environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, side, case, environment), daemon=False)
        self._process.start()
        theirs.close()
        self.ready: dict[str, Any] = self._receive("ready")

    def turn(self, repeats: int) -> float:
        """Seconds of one of `repeats` runs in a row."""
        self._pipe.send(repeats)
        return self._receive("time")

    def end(self) -> dict[str, Any]:
        """Stop; what the worker says at its end."""
        self._pipe.send(0)
        said = self._receive("end")
        self._process.join()
        return said

    def kill(self) -> None:
        """Stop at once, whatever it does."""
        if self._process.is_alive():
            self._process.terminate()
        self._process.join()

    def _receive(self, expected: str) -> Any:
        """The worker's next message.  Raises WorkerError where it failed or went away."""
        try:
            if not self._pipe.poll(PATIENCE):
                raise WorkerError(f"nothing was heard of it for {PATIENCE} seconds")
            kind, said = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise WorkerError(f"its process ended with exit status {self._process.exitcode}") from None
        except WorkerError:
            self.kill()
            raise
        if kind != expected:
            self.kill()
            raise WorkerError(str(said))
        return said


class WorkerError(RuntimeError):
    """A side cannot run a case; the message says why."""


def serve(pipe: Any, side: Side, case: Case, environment: dict[str, str]) -> None:
    """The life of a worker."""
    os.environ.update(environment)
    try:
        start = time.perf_counter()
        module = importlib.import_module(side.module)
        imported, library = time.perf_counter(), resident()
        job: Job = module.prepare(case, side.how)
        once = 0.0
        for _ in range(job.warm_up):
            begin = time.perf_counter()
            job.run(1)
            once = time.perf_counter() - begin
        prepared = time.perf_counter() - imported
        ready = {"import_s": imported - start, "prepare_s": prepared, "once_s": once, "prepare_peak_bytes": peak()}
        forget_peak()
        pipe.send(("ready", ready))
        while repeats := pipe.recv():
            begin = time.perf_counter()
            job.run(repeats)
            pipe.send(("time", (time.perf_counter() - begin) / repeats))
        memory = {"peak_bytes": job.device_peak() or peak(), "library_bytes": library}
        job.close()
        pipe.send(("end", {**memory, "facts": job.facts}))
    except EOFError:  # who was to tell us what to do is gone
        return
    except Exception as error:
        if os.environ.get("DDPM_JAX_DEBUG"):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        pipe.send(("failed", f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]))


def apart(module: str, function: str, *arguments: Any) -> Any:
    """What a function gives that is called in a process of its own, so that nothing heavy is imported into this one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_call, module, function, arguments).result()


def _call(module: str, function: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(importlib.import_module(module), function)(*arguments)


def resident() -> int | None:
    """The memory that this process has now, in bytes; None where the system does not tell."""
    return _status("VmRSS")


def peak() -> int | None:
    """The most memory that it had since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Begin anew with `peak` (Linux): what the compilers have freed is given back to the system first."""
    if STATUS.exists():
        with suppress(OSError, AttributeError):  # another C library than GNU's
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int | None:
    if not STATUS.exists():
        return None
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def measure(
    case: Case,
    sides: Sequence[Side],
    rounds: int,
    turn_seconds: float,
    environment: dict[str, str],
    say: Callable[[str], None],
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """(what each side measured, why others failed), by the names of the sides.

    In each round each side in turn runs for about `turn_seconds`, or once if that takes longer; each round begins
    with another side.
    """
    workers: dict[str, Worker] = {}
    times: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    found: dict[str, dict[str, Any]] = {}
    try:
        for side in sides:  # one after another: compilers take all cores
            try:
                worker = Worker(side, case, environment)
            except WorkerError as error:
                failed[side.name] = str(error)
                say(f"  {side.name}: left out. {error}")
                continue
            workers[side.name], times[side.name] = worker, []
            say(f"  {side.name}: ready after {worker.ready['prepare_s']:.1f} s")
        for number in range(rounds):
            names = list(workers)
            for name in names[number % max(len(names), 1) :] + names[: number % max(len(names), 1)]:
                once = workers[name].ready["once_s"]
                times[name].append(workers[name].turn(repeats(once, turn_seconds)))
        for name, worker in workers.items():
            median = statistics.median(times[name])
            found[name] = {"median_s": median, "times": times[name], **worker.ready, **worker.end()}
    finally:
        for worker in workers.values():
            worker.kill()
    return found, failed


def repeats(once: float, turn_seconds: float) -> int:
    """How many runs take about `turn_seconds`; 1 where one takes longer, or where it is not known what one takes."""
    return max(1, round(turn_seconds / once)) if once > 0 else 1


def compare(ours: dict[str, Any], peers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The peer with the smallest median, and how many times as fast we are: the median of the rounds' ratios."""
    if not peers:
        return {"best_peer": None, "ratio": None, "ratio_range": None}
    best = min(peers, key=lambda name: peers[name]["median_s"])
    ratios = [theirs / own for theirs, own in zip(peers[best]["times"], ours["times"], strict=True)]
    return {"best_peer": best, "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}


def exponent(x: Sequence[float], y: Sequence[float], last: int = 3) -> float:
    """p of the fit y = c x^p, by least squares in the logarithms, to the last points."""
    if len(x) != len(y) or min(len(x), last) < 2:
        raise ValueError(f"there are {len(x)} and {len(y)} points; expected as many of both, at least 2")
    logs = [(math.log(a), math.log(b)) for a, b in list(zip(x, y, strict=True))[-last:]]
    mean_x, mean_y = (statistics.fmean(values) for values in zip(*logs, strict=True))
    return sum((a - mean_x) * (b - mean_y) for a, b in logs) / sum((a - mean_x) ** 2 for a, _ in logs)
