"""Denoising diffusion probabilistic models in JAX and Flax.

The mathematics, bottom to top: `schedule`, `forward`, `targets`, `variance`, `denoiser`; on these stand `bound`,
`likelihood`, `objective`, `guidance` and `sampling`.  The networks are in `nets`; `train` runs an `Experiment`, and
`load_run` reads what it trained.  The architecture page, README.md beside this file, says which folder holds what.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_jax import data, errors, evaluation, features, interop, metrics, nets, sampling
    from ddpm_jax.cli.main import launch
    from ddpm_jax.devices import mesh, precision
    from ddpm_jax.diffusion import (
        arrays,
        bound,
        clipping,
        denoiser,
        forward,
        gaussian,
        grids,
        guidance,
        likelihood,
        mixture,
        objective,
        process,
        schedule,
        targets,
        timesteps,
        variance,
        weighting,
    )
    from ddpm_jax.diffusion.denoiser import Denoiser
    from ddpm_jax.run import Run, load_run
    from ddpm_jax.training import average, optimizer
    from ddpm_jax.training.experiment import Experiment
    from ddpm_jax.training.fit import fit
    from ddpm_jax.training.loop import train
    from ddpm_jax.training.step import Recipe

__version__ = "0.3.0"

# The public modules, and where each is.  experiment.json names classes by them, as in "schedule:Cosine", so that a file
# may move without breaking a run.
MODULES = {
    **{name: name for name in ("data", "errors", "evaluation", "features", "interop", "metrics", "nets", "sampling")},
    **{name: f"devices.{name}" for name in ("mesh", "precision")},
    **{
        name: f"diffusion.{name}"
        for name in (
            *("arrays", "bound", "clipping", "denoiser", "forward", "gaussian", "grids", "guidance", "likelihood"),
            *("mixture", "objective", "process", "schedule", "targets", "timesteps", "variance", "weighting"),
        )
    },
    **{name: f"training.{name}" for name in ("average", "optimizer")},
}
# The public functions and classes of the package itself, and the module of each.
OBJECTS = {
    "Denoiser": "diffusion.denoiser",
    "Experiment": "training.experiment",
    "Recipe": "training.step",
    "Run": "run",
    "fit": "training.fit",
    "launch": "cli.main",
    "load_run": "run",
    "train": "training.loop",
}

__all__ = [
    "Denoiser", "Experiment", "Recipe", "Run", "__version__", "arrays", "average", "bound", "clipping", "data",
    "denoiser", "errors", "evaluation", "features", "fit", "forward", "gaussian", "grids", "guidance", "interop",
    "launch", "likelihood", "load_run", "mesh", "metrics", "mixture", "nets", "objective", "optimizer", "precision",
    "process", "sampling", "schedule", "targets", "timesteps", "train", "variance", "weighting",
]  # fmt: skip


def lazy_modules(package: str, names: list[str]) -> Callable[[str], Any]:
    """A `__getattr__` for a package, which imports its modules of these names when they are first used.

    Args:
        package: the name of the package.
        names: its modules.
    """

    def find(name: str) -> Any:
        if name in names:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


def __getattr__(name: str) -> Any:
    # Imported when first used: JAX takes a second.
    if name in MODULES:
        found = import_module(f"ddpm_jax.{MODULES[name]}")
    elif name in OBJECTS:
        found = getattr(import_module(f"ddpm_jax.{OBJECTS[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return list(__all__)
