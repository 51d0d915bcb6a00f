"""Any callable as an argument of a compiled function: its arrays are inputs, the rest is part of the program.

A program is compiled once for each rest, so the same network with other parameters uses it again.  What a callable is
taken apart into:

    a pytree (Equinox and NNX modules, flax structs, `jax.tree_util.Partial`)     its leaves
    functools.partial                                                             its function and arguments
    a bound method                                                                its object
    an object with arrays, numbers or strings among its attributes                its attributes
    any other function or object                                                  it is all rest

Arrays are JAX's and NumPy's; strings, functions, booleans and Python numbers are rest.  A function is taken to be pure,
as by `jax.jit`: arrays that it closes over, or reads from a global name, are those of its first call.  Of an object a
copy is called: what it writes to itself is lost.
"""

import functools
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import flax.struct
import jax
import numpy as np
from jax.tree_util import Partial


class Fixed:
    """A value that is part of a compiled program: equal to one of its type that ==, or the same object without hash."""

    def __init__(self, value: Any) -> None:
        self.value = value
        try:
            self.hash = hash((type(value), value))
        except TypeError:
            self.hash = None

    def __hash__(self) -> int:
        return hash(type(self.value)) if self.hash is None else self.hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fixed) or type(self.value) is not type(other.value):
            return False
        hashed = self.hash is not None and self.hash == other.hash
        return self.value is other.value or (hashed and bool(self.value == other.value))


@dataclass(frozen=True)
class Held:
    """A NumPy array of an object: it stays one, as code that is being traced may read sizes from it."""

    value: np.ndarray = field(compare=False)
    content: tuple[tuple[int, ...], str, bytes]

    @classmethod
    def of(cls, value: np.ndarray) -> "Held":
        """An array, equal to others of its shape, dtype and bytes."""
        return cls(value, (value.shape, value.dtype.str, value.tobytes()))


# What is noticed when it has changed among the attributes of an object since its last call.
KINDS = (jax.Array, Held, np.generic, bool, int, float, complex, str)


@flax.struct.dataclass(eq=False)
class Opened:
    """A callable that is no pytree, taken apart; `closed` puts it together again."""

    kind: type = flax.struct.field(pytree_node=False)
    what: Any = flax.struct.field(pytree_node=False)
    parts: Any


@flax.struct.dataclass(eq=False)
class Split:
    """A callable as a list of arrays and the rest."""

    arrays: list[Any]
    rest: tuple[Fixed | None, ...] = flax.struct.field(pytree_node=False)
    """For each leaf: None for an array."""
    structure: Fixed = flax.struct.field(pytree_node=False)

    @property
    def function(self) -> Any:
        """The callable, put together again."""
        arrays = iter(self.arrays)
        leaves = [next(arrays) if fixed is None else fixed.value for fixed in self.rest]
        return closed(jax.tree.unflatten(self.structure.value, leaves))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self.function)


def as_pytree(function: Any) -> Any:
    """`function` as a value that a jitted function takes as an argument: a callable pytree whose leaves are arrays.

    It is `function` itself where that is such a pytree already and does not change: NNX modules, which may count their
    random numbers, are put together anew for each call.
    """
    tree = opened(function)
    leaves, structure = jax.tree.flatten(tree)
    rest = tuple(None if _is_array(leaf) else Fixed(leaf) for leaf in leaves)
    frozen = isinstance(tree, Partial) or getattr(getattr(tree, "__dataclass_params__", None), "frozen", False)
    if tree is function and frozen and not any(rest) and Fixed(structure).hash is not None:
        return function
    return Split([leaf for leaf in leaves if _is_array(leaf)], rest, Fixed(structure))


def opened(function: Any, inside: tuple[Any, ...] = ()) -> Any:
    """`function`, or what it is taken apart into, a pytree; it was found inside other ones."""
    if isinstance(function, functools.partial):
        inner = opened(function.func, inside)
        if isinstance(function, Partial) and inner is function.func and Fixed(inner).hash is not None:
            return function
        return Opened(functools.partial, None, (inner, function.args, function.keywords))
    if not jax.tree_util.all_leaves([function]) or any(function is outer for outer in inside):
        return function
    if isinstance(function, MethodType):
        return Opened(MethodType, Fixed(function.__func__), opened(function.__self__, inside))
    attributes = _opened_attributes(function, (*inside, function))
    if not any(isinstance(leaf, KINDS) for leaf in jax.tree.leaves(attributes)):
        return function
    return Opened(object, Fixed(type(function)), attributes)


def _opened_attributes(value: Any, inside: tuple[Any, ...]) -> dict[str, Any]:
    """The attributes of an object that can be made anew from them, with the callable ones opened; or none."""

    def one(part: Any) -> Any:
        return Held.of(part) if isinstance(part, np.ndarray) else opened(part, inside) if callable(part) else part

    if isinstance(value, type) or hasattr(value, "__wrapped__"):  # `functools.wraps`: the wrapper may know its object
        return {}
    try:
        object.__new__(type(value))  # refused for functions, and for other types that are not made in Python
        return jax.tree.map(one, vars(value))
    except (TypeError, ValueError):  # no attributes, or keys that cannot be sorted
        return {}


def closed(tree: Any) -> Any:
    """What `opened` made this of, in which other arrays may stand."""
    if isinstance(tree, Held):
        return tree.value
    if not isinstance(tree, Opened):
        return tree
    inner = jax.tree.map(closed, tree.parts, is_leaf=lambda part: isinstance(part, Opened | Held))
    if tree.kind is functools.partial:
        return functools.partial(inner[0], *inner[1], **inner[2])
    if tree.kind is MethodType:
        return MethodType(tree.what.value, inner)
    new = object.__new__(tree.what.value)
    new.__dict__.update(inner)
    return new


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)
