"""What the benchmark times from the start of a process: imports, and the way to the first finished training step.

A cold start finds no compiled programs, a warm one those of the start before it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workers import Case, Job

SCRIPTS = Path(__file__).parent
# What one needs to sample: of a run that was trained, which Orbax reads.
IMPORTS = {
    "ours": "import ddpm_jax.run, ddpm_jax.training.snapshots",
    "peer": "import torch; from diffusers import UNet2DModel, DDIMScheduler",
}
# The command of the experiment, all of it, until the first step is done.
OURS = """
import os, runpy, sys
from ddpm_jax.training.loop import Training
take = Training.take
def first(self, step, batch):
    take(self, step, batch)
    os._exit(0)
Training.take = first
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PEER = """
import json, os, sys
import peer
from workers import Case
case, how = json.loads(sys.argv[1])
peer.prepare(Case(**case), how).run(1)
os._exit(0)
"""


def prepare(case: Case, how: dict[str, Any]) -> Job:
    """The case as a job that starts processes."""
    side = how["side"]
    if case.mode == "import":
        return Job(lambda count: [start(["-c", IMPORTS[side]], {}) for _ in range(count)], warm_up=1)
    folder = Path(tempfile.mkdtemp(dir=case.folder))
    cold = case.mode == "startup, cold"

    def once() -> None:
        caches, workdir = folder / "caches", folder / "run"
        for path in (caches, workdir) if cold else (workdir,):
            shutil.rmtree(path, ignore_errors=True)
        environment = {"XDG_CACHE_HOME": str(caches), "TORCHINDUCTOR_CACHE_DIR": str(caches / "torch")}
        if side == "ours":
            experiment = SCRIPTS.parent / "experiments" / f"{case.net}.py"
            program = [OURS, str(experiment), "--workdir", str(workdir), "--batch-size", str(case.batch)]
        else:
            program = [PEER, json.dumps([{**asdict(case), "mode": "train"}, how])]
        start(["-c", *program], environment)

    def close() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    return Job(lambda count: [once() for _ in range(count)], close=close, warm_up=0 if cold else 1)


def start(arguments: list[str], environment: dict[str, str]) -> None:
    """Run Python in a new process to its end.  Raises RuntimeError with its last line where it fails."""
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    paths = [str(SCRIPTS.parent), str(SCRIPTS), *filter(None, [inherited.get("PYTHONPATH")])]
    inherited |= {"PYTHONPATH": os.pathsep.join(paths), **environment}
    done = subprocess.run([sys.executable, *arguments], env=inherited, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit status {done.returncode}")
