"""A training step on 1 to 64 devices: compile time, memory of each device, and communication.

    python scripts/scaling.py experiments/digits.py                      # virtual devices of this CPU
    python scripts/scaling.py experiments/cifar10.py --tpu v5e           # compiled for TPU pods, without one

The step is compiled, not run; its memory and collectives are read from the compiled program.  Each device has
--per-device images of the batch.  Compiling for TPUs needs libtpu (`pip install libtpu`, in the version of
`pip install -e .[tpu]`), but no TPU.  The script prints a table; --json also writes it to a file.
"""

import json
import math
import os
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from ddpm_jax.errors import RunError, require

# The names that the compiler gives the layouts of a TPU v5e or v6e slice, by the number of chips.
SLICES = {1: "1x1", 2: "1x2", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
# The chips of one host in each direction.  A host has 2 x 2 chips, so a smaller slice is described as a smaller host.
SMALL_HOSTS = {1: (1, 1, 1), 2: (1, 2, 1)}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "u8": 1, "pred": 1, "f16": 2, "s8": 1}


@dataclass(frozen=True)
class Options:
    """Compile a training step for several meshes."""

    experiment: tyro.conf.Positional[Path]
    devices: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of devices; of TPU chips 1, 2, 4, ... 256."""
    layouts: tuple[Literal["data", "fsdp", "both"], ...] = ("data", "fsdp", "both")
    """data: the state is on every device. fsdp: it is cut over all. both: it is cut over groups of at most 4."""
    per_device: int = 16
    """Images in a step on each device."""
    steps: tuple[int, ...] = ()
    """Numbers of diffusion steps T, each compiled on 8 devices."""
    tpu: Literal["v5e", "v6e"] | None = None
    """Compile for TPUs of this kind."""
    json: Path | None = None
    """The file for the table as JSON."""

    def __post_init__(self) -> None:
        for count in self.devices:
            known = count >= 1 if self.tpu is None else count in SLICES
            expected = "1 or more" if self.tpu is None else f"one of {', '.join(map(str, SLICES))}, with --tpu"
            require("--devices", count, known, expected)


@dataclass(frozen=True)
class Row:
    """One compiled step."""

    layout: str
    devices: int
    T: int
    compile_seconds: float
    state_bytes: int
    working_bytes: int
    collectives: dict[str, tuple[int, int]]
    """The number of each kind, and the bytes that each device receives from them."""


def main() -> None:
    """Compile all cases, and print and write the table."""
    options = tyro.cli(Options)
    if options.tpu is None:
        count = max((*options.devices, 8 if options.steps else 1))
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu then asks no metadata server
    cases = [(layout, n, None) for layout in options.layouts for n in options.devices if layout == "data" or n > 1]
    cases += [("data", 8, T) for T in options.steps]
    rows = []
    for layout, count, T in cases:
        try:
            rows.append(measure(options, layout, count, T))
        except RunError as error:
            raise SystemExit(str(error)) from None
        print(line(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def measure(options: Options, layout: str, count: int, num_steps: int | None) -> Row:
    """Compile the step for `count` devices."""
    import jax
    from jax.sharding import Mesh

    from ddpm_jax.cli.dry_run import look_at_data
    from ddpm_jax.cli.train import read_experiment
    from ddpm_jax.devices.axes import automatic
    from ddpm_jax.training.plan import Plan

    fsdp = {"data": 1, "fsdp": count, "both": min(count, 4)}[layout]
    experiment = read_experiment(options.experiment)
    schedule = experiment.schedule if num_steps is None else replace(experiment.schedule, num_steps=num_steps)
    mesh_spec = replace(experiment.mesh, data=None, fsdp=fsdp)
    size = options.per_device * count
    experiment = replace(experiment, batch_size=size, mesh=mesh_spec, schedule=schedule)
    devices = jax.devices()[:count] if options.tpu is None else tpu_chips(options.tpu, count)
    mesh = Mesh(np.array(devices).reshape(count // fsdp, fsdp), ("data", "fsdp"))
    plan = Plan.of(experiment, automatic(mesh), look_at_data(experiment)[0].image_shape)
    lowered = plan.step().lower(plan.state, plan.batch, jax.eval_shape(lambda: jax.random.key(0)))
    start = time.monotonic()
    program = lowered.compile()
    seconds = time.monotonic() - start
    stats = program.memory_analysis()
    state, working = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    return Row(layout, count, plan.recipe.process.last, seconds, state, working, collectives(program.as_text()))


def tpu_chips(kind: str, count: int) -> list[Any]:
    """`count` chips of a kind, as its compiler describes them.  Raises RunError without that compiler."""
    from jax.experimental import topologies

    hosts = {"chips_per_host_bounds": SMALL_HOSTS[count]} if count in SMALL_HOSTS else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{SLICES[count]}", **hosts).devices
    except RuntimeError as error:
        raise RunError(
            f"the TPU compiler cannot describe {count} chips of a {kind} ({error}). It needs libtpu, in the version "
            "of pip install -e .[tpu], and only one process at a time can load it"
        ) from None


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """The number of collectives of each kind in a compiled program, and the bytes that each device receives from them.

    The TPU compiler writes a reduce-scatter as a fusion called all-reduce-scatter; on CPUs it is an all-reduce of which
    each device keeps its part.  The pieces of a collective that the compiler divided have one channel, and count once.
    """
    found: dict[str, dict[str, int]] = {}
    computation = ""
    for text in program.splitlines():
        if text.endswith("{") and not text.startswith(" "):
            computation = text.split()[0].lstrip("%")
        if match := re.search(rf"= (\S.*?) ({'|'.join(KINDS)})(?:-start)?\(.*?(?:channel_id=(\d+)|$)", text):
            moved, kind, channel = match.groups()
            if computation.startswith("all-reduce-scatter"):
                kind, channel = "reduce-scatter", computation
            sizes = re.findall(r"(\w+)\[([\d,]*)\]", moved)
            size = sum(BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in sizes)
            found.setdefault(kind, {}).setdefault(channel or text, size)
    return {kind: (len(sizes), sum(sizes.values())) for kind, sizes in found.items()}


def line(row: Row) -> str:
    """One line of the table, in Markdown."""
    moved = ", ".join(f"{n} {kind} ({size / 1e6:.2f} MB)" for kind, (n, size) in row.collectives.items()) or "none"
    memory = f"{row.state_bytes / 1e6:.2f} | {row.working_bytes / 1e6:.1f}"
    return f"| {row.layout} | {row.devices} | {row.T} | {row.compile_seconds:.1f} | {memory} | {moved} |"


if __name__ == "__main__":
    main()
