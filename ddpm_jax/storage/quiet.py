"""Orbax without its messages: it logs, in up to sixty lines, errors that it also raises."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_ORBAX = f"{os.sep}orbax{os.sep}"
_lock, _count, _undo = threading.Lock(), 0, ExitStack()


@contextmanager
def quiet_orbax() -> Iterator[None]:
    """Keep Orbax's messages from stderr; contexts may overlap, and the last one that ends puts everything back."""
    global _count
    with _lock:
        _count += 1
        if _count == 1:
            _undo.enter_context(_quiet())
    try:
        yield
    finally:
        with _lock:
            _count -= 1
            if _count == 0:
                _undo.close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop log records, warnings and errors without a catcher that come from Orbax or the coroutines it dropped."""
    hook = sys.unraisablehook

    def without_orbax(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        is_ours = code is None or _ORBAX not in code.co_filename
        if is_ours and str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"coroutine 'Store\..*' was never awaited", RuntimeWarning)
        sys.unraisablehook = without_orbax
        for logger in loggers:
            logger.addFilter(_is_not_orbax)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(_is_not_orbax)
            if sys.unraisablehook is without_orbax:
                sys.unraisablehook = hook


def _is_not_orbax(record: logging.LogRecord) -> bool:
    return _ORBAX not in record.pathname and "orbax" not in record.getMessage()
