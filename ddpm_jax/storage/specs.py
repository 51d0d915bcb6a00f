"""Specs to JSON and back: frozen dataclasses of numbers, strings, tuples and other specs.

A spec becomes {"class": name, field: value, ...}; `classes` says how classes are named.  `save` also copies the
experiment files that define classes, so a run folder is complete.  Reading is strict: an unknown field, a missing one
without a default and a value of the wrong type are errors that name the field.

`_fits` is not beartype's `is_bearable`: that takes true for a whole number and refuses 1 for a float, needs a package
at run time, and would save about 15 lines.
"""

import dataclasses
import json
import re
import types
import typing
from typing import Any

import jax
import numpy as np

from ddpm_jax.storage.classes import class_name, find_class, sources
from ddpm_jax.storage.errors import SpecError
from ddpm_jax.storage.paths import RunPath, write_bytes


def encode(value: Any, where: str = "") -> Any:
    """The JSON value of a spec, or of one of its fields.

    Args:
        value: the spec or the value of the field.
        where: the name of the field, for errors; empty for a whole spec.

    Raises:
        SpecError: a spec cannot hold the value.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value))
        encoded = {name: encode(getattr(value, name), f"{where}.{name}".lstrip(".")) for name in fields}
        return {"class": class_name(type(value)), **encoded}
    if isinstance(value, tuple | list):
        return [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray | jax.Array) and value.ndim == 0):
        return encode(value.item(), where)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = type(value).__name__
    raise SpecError(f"{where} is a {kind}; a spec holds numbers, strings, booleans, None, tuples and other dataclasses")


def decode(value: Any, folder: RunPath, where: str = "") -> Any:
    """The spec that `encode` turned into this JSON value.

    Args:
        value: the JSON value.
        folder: the folder of the experiment files that the value names.
        where: the name of the field, for errors; empty for a whole spec.

    Raises:
        SpecError: the value is not a spec; the message names the field.
    """
    if isinstance(value, list):
        return tuple(decode(item, folder, f"{where}[{index}]") for index, item in enumerate(value))
    if not isinstance(value, dict):
        return value
    if "class" not in value:
        raise SpecError(f"{where or 'the experiment'} has no field 'class'")
    cls = find_class(str(value["class"]), folder, where or "the experiment")
    given = {name: item for name, item in value.items() if name != "class"}
    known = {field.name: field for field in dataclasses.fields(cls)}
    for name in given:
        if name not in known:
            accepted = ", ".join(known) or "none"
            raise SpecError(f"{f'{where}.{name}'.lstrip('.')}: {cls.__name__} has no such field; it has {accepted}")
    hints, arguments = typing.get_type_hints(cls), {}
    for name, field in known.items():
        path = f"{where}.{name}".lstrip(".")
        if name in given:
            arguments[name] = _typed(decode(given[name], folder, path), hints.get(name, Any), path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SpecError(f"{path} is missing")
    try:
        return cls(**arguments)
    except SpecError:
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
        raise SpecError(f"{where}: {error}" if where else str(error)) from None


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value`, as a float if the field is a float; raises SpecError if it does not fit the annotation."""
    if hint is float and type(value) is int:
        return float(value)
    if not _fits(value, hint):
        shown = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise SpecError(f"{where} is {value!r}; expected {shown}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value decoded from JSON has the type that a field's annotation asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = (arguments[0],) * len(value) if arguments[1:] == (...,) else arguments
        return len(items) == len(value) and all(map(_fits, value, items))
    if hint is Any or getattr(hint, "_is_protocol", False):
        return True
    if hint is float:
        return type(value) in (int, float)
    if hint in (int, bool, str):
        return type(value) is hint
    return isinstance(value, hint) if isinstance(hint, type) else True


def described(spec: Any) -> Any:
    """A spec as JSON; if that is not possible, its representation without addresses in memory."""
    try:
        return encode(spec)
    except SpecError:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(spec))


def save(spec: Any, path: RunPath) -> None:
    """Write a spec as JSON, with copies of the experiment files that define its classes beside it.

    Args:
        spec: the spec.
        path: the JSON file; files with the right content are left as they are.

    Raises:
        SpecError: the spec cannot be written; then no file has changed.
    """
    text = json.dumps(encode(spec), indent=2) + "\n"
    for name, content in {**sources(spec), path.name: text.encode()}.items():
        target = path.parent / name
        if not target.exists() or target.read_bytes() != content:
            write_bytes(target, content)


def load(path: RunPath) -> Any:
    """The spec in a JSON file, written by `save` or by hand.

    Raises SpecError with the file and the field if it is not JSON or not a spec.
    """
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path} is not JSON: {error}") from None
    try:
        return decode(value, path.parent)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error.__cause__
