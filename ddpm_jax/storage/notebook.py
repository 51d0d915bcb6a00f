"""The source of classes that a notebook's cells define, as a Python file that stands by itself.

The file contains the imports, functions, classes and constants of the notebook that a class refers to.
"""

import ast
import builtins
import linecache
import symtable
import sys
import types
from collections.abc import Iterator
from typing import Any

from ddpm_jax.storage.errors import SpecError

# The name of the file.
FILE = "notebook_cells.py"


def _globals_of(table: symtable.SymbolTable) -> Iterator[str]:
    """The global names that some code refers to."""
    is_top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (is_top or symbol.is_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _globals_of(child)


def cell_of(thing: Any) -> str | None:
    """The code of a class or function in a cell of a notebook; None if it is not known."""
    for file in _files_of(thing):
        lines = linecache.getlines(file)
        try:
            tree = ast.parse("".join(lines))
        except SyntaxError:  # a line of IPython, such as %matplotlib
            lines = [line if not line.lstrip().startswith(("%", "!")) else "\n" for line in lines]
            try:
                tree = ast.parse("".join(lines))
            except SyntaxError:
                continue
        for node in reversed(tree.body):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == thing.__name__:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                return "".join(lines[first - 1 : node.end_lineno]).rstrip() + "\n"
    return None


def _files_of(thing: Any) -> Iterator[str]:
    """The names by which `linecache` may know the cell: those of the code of functions, and then all cells."""
    for value in vars(thing).values() if isinstance(thing, type) else [thing]:
        for function in (value, *(getattr(value, name, None) for name in ("fget", "func", "__func__", "__wrapped__"))):
            code = getattr(function, "__code__", None)
            if isinstance(code, types.CodeType) and code.co_filename != "<string>":
                yield code.co_filename
    if isinstance(thing, type):  # one without methods
        yield from (file for file in reversed(list(linecache.cache)) if "ipykernel" in file or "ipython" in file)


def source_of(classes: list[type]) -> str:
    """A Python file that defines the classes.

    Raises SpecError if one refers to a value that cannot be written to a file, such as an array.
    """
    imports: dict[str, None] = {}
    parts: dict[str, str] = {}
    for cls in classes:
        _add(cls.__name__, cls, imports, parts, cls.__name__)
    head = ["".join(f"{line}\n" for line in imports)] if imports else []
    return "\n\n".join([*head, *parts.values()])


def _add(name: str, value: Any, imports: dict[str, None], parts: dict[str, str], user: str) -> None:
    """Add the import or the definition of `name`, after the definitions that it needs."""
    if line := _import_of(name, value):
        imports[line] = None
        return
    if name in parts:
        return
    if _is_literal(value):
        parts[name] = f"{name} = {value!r}\n"
        return
    cell = cell_of(value) if isinstance(value, type | types.FunctionType) else None
    if cell is None or value.__name__ != name:
        why = f"{user} is a class of a notebook whose code refers to {name}, a {type(value).__name__} of the notebook"
        remedy = f"make {name} a field, or move the class to a file and import it"
        raise SpecError(f"{why}, which cannot be saved with the run; {remedy}")
    parts[name] = ""  # in case it refers to itself
    module = vars(sys.modules[value.__module__])
    names = _globals_of(symtable.symtable(cell, FILE, "exec"))
    for needed in sorted({*names} - {name}):
        if needed in module and not (hasattr(builtins, needed) and module[needed] is getattr(builtins, needed)):
            _add(needed, module[needed], imports, parts, user)
    del parts[name]  # it follows what it needs
    parts[name] = cell


def _import_of(name: str, value: Any) -> str | None:
    """The statement that imports a value under a name; None for a value that the notebook defines."""
    if isinstance(value, types.ModuleType):
        return f"import {name}" if value.__name__ == name else f"import {value.__name__} as {name}"
    home, own = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not (isinstance(home, str) and isinstance(own, str)) or home == "__main__":
        return None
    if getattr(sys.modules.get(home), own, None) is not value:
        return None
    return f"from {home} import {own}" if own == name else f"from {home} import {own} as {name}"


def _is_literal(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_literal, value))
    return abs(value) < 1e308 if isinstance(value, float) else isinstance(value, bool | int | str | bytes | None)
