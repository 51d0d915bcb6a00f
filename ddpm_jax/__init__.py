"""Denoising diffusion probabilistic models in JAX and Flax.

The mathematics, bottom to top: `schedule`, `forward`, `targets`, `variance`, `denoiser`; on these stand `bound`,
`likelihood`, `objective`, `guidance` and `sampling`.  The networks are in `nets`; `train` runs an `Experiment`, and
`load_run` reads what it trained.  The architecture page, README.md beside this file, says which folder holds what.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_jax import data as data
    from ddpm_jax import errors as errors
    from ddpm_jax import evaluation as evaluation
    from ddpm_jax import features as features
    from ddpm_jax import interop as interop
    from ddpm_jax import metrics as metrics
    from ddpm_jax import nets as nets
    from ddpm_jax import sampling as sampling
    from ddpm_jax.cli.main import launch as launch
    from ddpm_jax.devices import mesh as mesh
    from ddpm_jax.devices import precision as precision
    from ddpm_jax.diffusion import arrays as arrays
    from ddpm_jax.diffusion import bound as bound
    from ddpm_jax.diffusion import clipping as clipping
    from ddpm_jax.diffusion import denoiser as denoiser
    from ddpm_jax.diffusion import forward as forward
    from ddpm_jax.diffusion import gaussian as gaussian
    from ddpm_jax.diffusion import grids as grids
    from ddpm_jax.diffusion import guidance as guidance
    from ddpm_jax.diffusion import likelihood as likelihood
    from ddpm_jax.diffusion import mixture as mixture
    from ddpm_jax.diffusion import objective as objective
    from ddpm_jax.diffusion import schedule as schedule
    from ddpm_jax.diffusion import targets as targets
    from ddpm_jax.diffusion import timesteps as timesteps
    from ddpm_jax.diffusion import variance as variance
    from ddpm_jax.diffusion import weighting as weighting
    from ddpm_jax.diffusion.denoiser import Denoiser as Denoiser
    from ddpm_jax.run import Run as Run
    from ddpm_jax.run import load_run as load_run
    from ddpm_jax.training import average as average
    from ddpm_jax.training import optimizer as optimizer
    from ddpm_jax.training.experiment import Experiment as Experiment
    from ddpm_jax.training.fit import fit as fit
    from ddpm_jax.training.loop import train as train
    from ddpm_jax.training.step import Recipe as Recipe

__version__ = "0.2.0"

# The public modules, and where each is.  experiment.json names classes by them, as in "schedule:Cosine", so that a file
# may move without breaking a run.
MODULES = {
    **{name: name for name in ("data", "errors", "evaluation", "features", "interop", "metrics", "nets", "sampling")},
    **{name: f"devices.{name}" for name in ("mesh", "precision")},
    **{
        name: f"diffusion.{name}"
        for name in (
            *("arrays", "bound", "clipping", "denoiser", "forward", "gaussian", "grids", "guidance", "likelihood"),
            *("mixture", "objective", "schedule", "targets", "timesteps", "variance", "weighting"),
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

__all__ = sorted([*MODULES, *OBJECTS, "__version__"])


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
