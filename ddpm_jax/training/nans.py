"""Finds the first number that is not finite: the step again, one operation at a time, with each result checked."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.errors import RunError


def explain(number: int, step: Callable[..., Any], arguments: tuple[Any, ...], metrics: dict[str, Any]) -> None:
    """Raise RunError, naming the operation and the lines of code, where step number `number` lost the run.

    step, arguments: the step as it is before it is compiled, and what it was given; metrics: what it told.
    """
    if all(np.all(np.isfinite(value)) for value in jax.device_get(metrics).values()):
        return
    try:
        with jax.debug_nans(True):
            step(*arguments)
    except FloatingPointError as error:
        raise RunError(f"at step {number}, {error}, in {', from '.join(_lines(error)[:4])}") from error


def _lines(error: Exception) -> list[str]:
    """The lines that led to an error, innermost first, but for JAX's own: "clip_fn (_clipping.py, line 105)"."""
    jax_folder = Path(str(jax.__file__)).parent
    frames = [f for f in traceback.extract_tb(error.__traceback__) if jax_folder not in Path(f.filename).parents]
    return [f"{frame.name} ({Path(frame.filename).name}, line {frame.lineno})" for frame in reversed(frames)]
