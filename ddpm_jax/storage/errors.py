"""What went wrong in reading or writing, in a few words; the rest of it is kept from the screen.

Orbax and TensorStore say it in sixty lines, some of them on stderr, from their own threads.
"""

import json
import logging
import os
import re
import sys
import warnings
from typing import Any

# TensorStore's word for what is wrong with an array, and ours.
ARRAY_STATUS = {"NOT_FOUND": "missing", "OUT_OF_RANGE": "cut short", "DATA_LOSS": "damaged"}


class SpecError(ValueError):
    """A spec cannot be written or read; the message names the field and what is accepted."""


class CheckpointError(ValueError):
    """No checkpoint in a folder can be used; the message gives the reason for each."""


def reason(error: BaseException) -> str:
    """An error of the file system, of JSON or of TensorStore, in one line."""
    text = str(error).strip()
    code = re.search(r"os_error_code='(\d+)'", text)
    if code:
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.errno is not None:
        name = f": {error.filename}" if error.filename and isinstance(error, FileNotFoundError) else ""
        return f"{os.strerror(error.errno)}{name}"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | KeyError | TypeError | AttributeError):
        return "a description in it is damaged"
    if "structure" in text.partition("\n")[0]:
        return "its arrays are not those of this experiment, or a description in it is missing"
    array = re.search(r'Error reading "(.+?)/', text) or re.search(r'Metadata at "(.+?)/', text)
    status = ARRAY_STATUS.get(text.partition(":")[0])
    if array and status:
        return f"{array[1]} is {status}"
    if text.startswith('Error opening "'):  # TensorStore, by a shape or a type that is not that of the array
        return "a description in it is damaged"
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__


class _NotOrbax(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname and "orbax" not in record.getMessage()


def hush_orbax() -> None:
    """Keep from stderr what Orbax logs of errors that it raises as well, and the reads and writes it then forgets."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_NotOrbax())
    warnings.filterwarnings("ignore", r"coroutine 'Store\..*' was never awaited", RuntimeWarning)
    hook = sys.unraisablehook

    def without_orbax(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
        ours = code is None or f"{os.sep}orbax{os.sep}" not in code.co_filename
        if ours and str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = without_orbax
