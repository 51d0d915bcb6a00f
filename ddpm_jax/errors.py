"""The checks that every specification and function makes of its arguments, and the errors that they raise.

A message names the field, its value and what is accepted: "batch_size is 0; expected a whole number, at least 1".
"""

import dataclasses
import operator
import types
from functools import cached_property
from typing import Any, Literal, get_args, get_origin

import numpy as np

__all__ = ["RunError", "as_int", "as_numbers", "check_fields", "require", "require_int", "require_key"]
__all__ += ["require_number", "require_part", "require_shape", "short_repr"]


class RunError(RuntimeError):
    """A run cannot start or continue; the message says why and what to do."""


def require(field: str, value: object, holds: bool | np.bool_, expected: str) -> None:
    """Raise ValueError("FIELD is VALUE; expected EXPECTED") unless `holds`.

    Args:
        field: the name of the field or argument.
        value: its value.
        holds: whether the value is accepted.
        expected: what would be accepted.
    """
    if not holds:
        raise ValueError(f"{field} is {short_repr(value)}; expected {expected}")


def short_repr(value: Any) -> str:
    """A value as one short line of a message."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and ((shape and np.prod(shape) > 8) or "Tracer" in type(value).__name__):
        return f"an array of {dtype} {list(shape or ())}"
    text = repr(value)
    return text if len(text) <= 400 and "\n" not in text else f"a {type(value).__name__}"


def require_part(field: str, value: Any, kind: Any, expected: str) -> None:
    """Raise ValueError unless `value` is a `kind`, a frozen dataclass whose fields are all that it holds.

    Compiled programs are found by these fields: two values that differ in anything else would share one program.

    Args:
        field: the name of the field or argument.
        value: its value.
        kind: the class, or the union of classes, that is accepted.
        expected: what would be accepted.
    """
    require(field, value, isinstance(value, kind) and not isinstance(value, type), expected)
    frozen = dataclasses.is_dataclass(value) and type(value).__hash__ is not None  # others have no hash
    require(field, value, frozen, f"{expected}: a class with @dataclass(frozen=True)")
    fields = [part.name for part in dataclasses.fields(value)]
    for hidden in set(getattr(value, "__dict__", {})) - set(fields):
        if isinstance(getattr(type(value), hidden, None), cached_property):
            continue
        about = f"{field} is a {type(value).__name__} with the attribute {hidden}, which is no field"
        raise ValueError(f"{about}; expected a class with @dataclass(frozen=True)")
    for part in fields:
        content = getattr(value, part)
        hashable = "Tracer" in type(content).__name__ or _is_hashable(content)
        require(f"{field}.{part}", content, hashable, "a number, a string, a tuple of them or a frozen dataclass")


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def require_number(field: str, value: Any, expected: str) -> None:
    """Raise ValueError unless `value` is one number, Python's, NumPy's or JAX's.

    Args:
        field: the name of the field or argument.
        value: its value.
        expected: what would be accepted.
    """
    in_array = getattr(value, "shape", None) == () and np.dtype(value.dtype).kind in "iuf"
    require(field, value, _is_number(value) or in_array, expected)


def as_int(value: Any) -> int | None:
    """A Python or NumPy integer, or an integer array of shape (), as int; None for anything else, bool included."""
    if isinstance(value, bool | np.bool_) or getattr(value, "shape", ()) != ():
        return None
    try:
        return operator.index(value)  # a tracer raises TypeError, as its value is not known
    except TypeError:
        return None


def require_int(field: str, value: Any, least: int, expected: str | None = None) -> int:
    """`value` as int; ValueError unless it is a whole number (not a boolean), `least` or more."""
    number = as_int(value)
    accepted = expected or f"at least {least}"
    if number is None or expected is None:
        accepted = accepted if "whole" in accepted else f"a whole number, {accepted}"
    require(field, value, number is not None and number >= least, accepted)
    assert number is not None
    return number


def check_fields(spec: Any) -> None:
    """Make the fields of a frozen dataclass what experiment.json can hold.

    NumPy and JAX numbers become Python numbers, 1-d arrays become tuples, and paths become strings.  Raises ValueError
    if a field that declares a float, a bool, a Literal or a tuple of numbers holds something else.
    """
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if (changed := _declared(field.name, _converted(value), field.type)) is not value:
            object.__setattr__(spec, field.name, changed)


def _declared(name: str, value: Any, kind: Any) -> Any:
    """A field's value, as a tuple if its type is one; ValueError unless it is of its type, if that is checked."""
    options = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if "Tracer" in type(value).__name__ or (value is None and type(None) in options):
        return value
    if float in options:
        require(name, value, _is_number(value), "a number or None" if type(None) in options else "a number")
    elif bool in options:
        require(name, value, isinstance(value, bool), "True or False")
    elif get_origin(kind) is Literal:
        require(name, value, value in get_args(kind), f"one of {', '.join(map(repr, get_args(kind)))}")
    elif get_origin(kind) is tuple and get_args(kind)[0] in (int, float):
        item, numbers = (int, "whole numbers") if get_args(kind)[0] is int else (int | float, "numbers")
        items = tuple(value) if isinstance(value, tuple | list | range | set | frozenset) else None
        holds = items is not None and all(_is_number(one) and isinstance(one, item) for one in items)
        require(name, value, holds, f"a tuple of {numbers}")
        return value if isinstance(value, tuple) else items
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _converted(value: Any) -> Any:
    if _is_array(value):
        return tuple(value.tolist()) if value.ndim == 1 else value.item() if value.ndim == 0 else value
    if hasattr(value, "__fspath__"):
        return value.__fspath__()
    if isinstance(value, tuple | list) and any(map(_is_array, value)):
        return tuple(map(_converted, value))
    return value


def _is_array(value: Any) -> bool:
    """Whether a value is an array, NumPy's or JAX's, whose numbers are known."""
    return hasattr(value, "tolist") and hasattr(value, "ndim") and "Tracer" not in type(value).__name__


def require_shape(field: str, value: Any, expected: str) -> tuple[int, ...]:
    """A shape as a tuple of ints; ValueError unless it is a tuple or list of whole numbers, each at least 1.

    Args:
        field: the name of the field or argument.
        value: its value.
        expected: what would be accepted.
    """
    sizes = [as_int(size) for size in value] if isinstance(value, tuple | list | np.ndarray) else [None]
    require(field, value, all(size is not None and size >= 1 for size in sizes), expected)
    return tuple(size for size in sizes if size is not None)


def as_numbers(field: str, value: Any) -> np.ndarray:
    """`value` as a NumPy array of float64; ValueError for a ragged list, or for values that are not numbers.

    Args:
        field: the name of the field or argument.
        value: its value.
    """
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"{field} is {short_repr(value)}; expected numbers, or lists of equal length of them"
        ) from None


def require_key(value: Any, name: str = "key") -> None:
    """Raise ValueError unless `value` is one key of `jax.random`.

    Args:
        value: the value.
        name: the name of the argument.
    """
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = str(dtype).startswith("key<")
    old = dtype == np.uint32 and shape in ((2,), (4,))
    require(name, value, (typed and shape == ()) or old, "one key of random numbers, such as jax.random.key(0)")
