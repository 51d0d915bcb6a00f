"""The precision of matrix products and convolutions in numbers that are quoted.

By default JAX leaves the precision of float32 products to the hardware: NVIDIA GPUs round the factors to 11 bits
(TF32), TPUs to 8 bits (bfloat16).  That is fast, and accurate enough for training.  It is not accurate enough for
numbers that are compared with those of other papers, libraries or devices.  So there is one rule and one setting:

    training, `sample`                                          JAX's default
    bounds, likelihoods, features, all of an evaluation         full float32, "highest"
    distances between features                                  full float32, whatever the setting

The setting is JAX's own.  If it is set, it holds for everything except the last line, training included:

    with jax.default_matmul_precision("default"): ...           for the code inside
    JAX_DEFAULT_MATMUL_PRECISION=highest                        for a process
    ddpm-jax evaluate RUN --precision default                   for one evaluation; its report names the precision

The setting concerns float32.  A network whose dtype is bfloat16 multiplies in bfloat16.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax

__all__ = ["FULL", "quoted", "quoted_precision"]

FULL = "highest"

P = ParamSpec("P")
R = TypeVar("R")


def quoted_precision() -> str:
    """The precision of numbers that are quoted: what the user has set, or "highest"."""
    config: Any = jax.config
    return config.jax_default_matmul_precision or FULL


def quoted(function: Callable[P, R]) -> Callable[P, R]:
    """The function, computed in `quoted_precision`; what it calls inherits it."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision(quoted_precision()):
            return function(*args, **kwargs)

    return call
