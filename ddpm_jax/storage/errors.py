"""Errors of reading and writing: two classes, and one line for what the file system, JSON or TensorStore raise."""

import json
import os
import re

# TensorStore's status of an array, and its name in messages.
ARRAY_STATUS = {"NOT_FOUND": "missing", "OUT_OF_RANGE": "cut short", "DATA_LOSS": "damaged"}


class SpecError(ValueError):
    """A spec cannot be written or read; the message names the field and what is accepted."""


class CheckpointError(ValueError):
    """No checkpoint in a folder can be used; the message gives the reason for each."""


def error_summary(error: BaseException) -> str:
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
    if text.startswith('Error opening "'):  # TensorStore: the shape or dtype differs
        return "a description in it is damaged"
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
