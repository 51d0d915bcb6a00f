"""Denoising diffusion probabilistic models in JAX and Flax.

The mathematics, bottom to top: `schedule`, `forward`, `targets`, `variance`, `decoder`; on these stand `bound`,
`likelihood`, `objective`, `guidance` and `sampling`.  The network is in `nets.unet`; `load_run` reads what an
experiment trained.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_jax.run import Run, load_run

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "load_run"]


def __getattr__(name: str) -> Any:
    if name in ("Run", "load_run"):
        from ddpm_jax import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
