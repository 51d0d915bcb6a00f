"""Denoising diffusion probabilistic models in JAX and Flax.

The mathematics, bottom to top: `schedule`, `forward`, `targets`, `variance`, `decoder`; on these stand `bound`,
`likelihood`, `objective`, `guidance` and `sampling`.  The network is in `nets.unet`; `train` runs an
`Experiment`, and `load_run` reads what it trained.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_jax.experiment import Experiment
    from ddpm_jax.run import Run, load_run
    from ddpm_jax.training.loop import train

__version__ = "0.1.0"
__all__ = ["Experiment", "Run", "__version__", "load_run", "train"]

_HOMES = {"Experiment": "experiment", "Run": "run", "load_run": "run", "train": "training.loop"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # imported when first used: JAX takes a second
        return getattr(import_module(f"ddpm_jax.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
