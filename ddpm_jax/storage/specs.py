"""Specs to JSON and back: frozen dataclasses of numbers, strings, tuples and other specs.

A spec becomes {"class": "module:Name", field: value, ...}.  A class that is defined in an experiment
file rather than in an installed package is named by the file, "digits.py:Name", and the file is looked
for beside the JSON: `save` puts a copy there, so a run folder is complete in itself.  Classes of a notebook, which lie
in no file, are written into one, "notebook_cells.py:Name".

Reading is strict: an unknown field, a missing one without default and a value of the wrong type are
errors that name the field.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
import types
import typing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.storage import notebook
from ddpm_jax.storage.paths import RunPath, local_copy, write_bytes


class SpecError(ValueError):
    """A spec cannot be written or read; the message names the field and what would be accepted."""


def encode(value: Any, where: str = "") -> Any:
    """The JSON value of a spec or of one of its fields; `where` names it in errors."""
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
    """The spec that `encode` wrote; `folder` is where experiment files named in it lie."""
    if isinstance(value, list):
        return tuple(decode(item, folder, f"{where}[{index}]") for index, item in enumerate(value))
    if not isinstance(value, dict):
        return value
    if "class" not in value:
        raise SpecError(f"{where or 'the experiment'} has no field 'class'")
    cls = find_class(str(value["class"]), folder, where)
    given = {name: item for name, item in value.items() if name != "class"}
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls)}
    for name in given:
        if name not in known:
            accepted = ", ".join(known) or "none"
            raise SpecError(f"{f'{where}.{name}'.lstrip('.')}: {cls.__name__} has no such field; it has {accepted}")
    arguments = {}
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
    """`value`, with whole numbers made floats where the field is a float; SpecError where it does not fit."""
    if hint is float and type(value) is int:
        return float(value)
    if not _fits(value, hint):
        shown = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise SpecError(f"{where} is {value!r}; expected {shown}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value decoded from JSON has the type that a field's annotation asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _fits(value, arguments[0])
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
    if hint is None or hint is type(None):
        return value is None
    return isinstance(value, hint) if isinstance(hint, type) else True


def class_name(cls: type) -> str:
    """ "module:Name", or "file.py:Name" for a class of an experiment file."""
    module = sys.modules[cls.__module__]
    is_file = cls.__module__ == "__main__" or cls.__module__.startswith(_PREFIX)
    if "<locals>" in cls.__qualname__:
        raise SpecError(f"class {cls.__qualname__} is defined inside a function; move it to the top of its file")
    if is_file and not getattr(module, "__file__", None):
        if notebook.cell_of(cls) is None:
            raise SpecError(
                f"class {cls.__qualname__} is defined in no file, and its code is not known; put it into an experiment "
                "file or a module"
            )
        return f"{notebook.FILE}:{cls.__qualname__}"
    return f"{Path(str(module.__file__)).name if is_file else cls.__module__}:{cls.__qualname__}"


# Where a class has gone that files written before name by its old place.
MOVED = {"ddpm_jax.training.optimizer:Ema": "ddpm_jax.training.average:Ema"}


def find_class(name: str, folder: RunPath, where: str = "") -> type:
    """The dataclass called `name`, as `class_name` gives it, or gave it before it moved."""
    place, _, qualified = MOVED.get(name, name).partition(":")
    try:
        found: Any = load_file(local_copy(folder / place)) if place.endswith(".py") else importlib.import_module(place)
        for part in qualified.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the code of the file raises
        reason = f"{type(error).__name__}: {error}"
        raise SpecError(f"{where or 'the experiment'}: class {name!r} cannot be loaded ({reason})") from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise SpecError(f"{where or 'the experiment'}: {name!r} is not a dataclass")
    return found


_PREFIX = "ddpm_jax_experiment_"


def load_file(path: Path) -> types.ModuleType:
    """The module in a Python file; files of equal content are one module, so their classes are equal.

    Raises FileNotFoundError where there is none.
    """
    content = path.read_bytes()
    main = sys.modules.get("__main__")
    main_file = getattr(main, "__file__", None)
    if main is not None and main_file and Path(main_file).suffix == ".py" and Path(main_file).read_bytes() == content:
        return main
    name = _PREFIX + hashlib.sha256(content).hexdigest()[:16]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path.resolve())
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    sys.modules[name].__file__ = str(path.resolve())  # where it was found last: an earlier copy may be gone
    return sys.modules[name]


def run_file(path: Path) -> types.ModuleType:
    """The module in a Python file of the user's, which finds its neighbours as with `python FILE.py`.

    Raises ValueError that names the line where its code fails.
    """
    sys.path.insert(0, str(path.resolve().parent))
    try:
        return load_file(path)
    except Exception as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path.resolve())
        ]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {error}") from error


def described(spec: Any) -> Any:
    """A spec as JSON; its representation, without addresses in memory, where it cannot be written so."""
    try:
        return encode(spec)
    except SpecError:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(spec))


def save(spec: Any, path: RunPath) -> None:
    """Write a spec as JSON, and copies of the experiment files that define its classes beside it."""
    text = json.dumps(encode(spec), indent=2) + "\n"
    for name, content in sources(spec).items():
        target = path.parent / name
        if not target.exists() or target.read_bytes() != content:
            write_bytes(target, content)
    if not path.exists() or path.read_bytes() != text.encode():
        write_bytes(path, text.encode())


def sources(spec: Any) -> dict[str, bytes]:
    """The experiment files that define classes of a spec, by their names; those of notebook cells are one file.

    Raises SpecError where the code of a notebook's class needs something that cannot be written into that file.
    """
    found, in_cells = {}, []
    for cls in file_classes(spec).values():
        path = getattr(sys.modules[cls.__module__], "__file__", None)
        if path:
            found[Path(path).name] = Path(path).read_bytes()
        else:
            in_cells.append(cls)
    if in_cells:
        try:
            found[notebook.FILE] = notebook.source_of(in_cells).encode()
        except ValueError as error:
            raise SpecError(str(error)) from None
    return found


def code_of(cls: type) -> str:
    """The source of a class of an experiment file or of a notebook."""
    cell = None if getattr(sys.modules[cls.__module__], "__file__", None) else notebook.cell_of(cls)
    return inspect.getsource(cls) if cell is None else cell.source


def load(path: RunPath) -> Any:
    """The spec in a JSON file that `save` wrote, or that a person did.

    Raises SpecError, which names the file and the field, where it is not JSON or not a spec.
    """
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path} is not JSON: {error}") from None
    try:
        return decode(value, path.parent)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error.__cause__


def file_classes(spec: Any) -> dict[str, type]:
    """The classes in a spec that experiment files define, by their names in JSON."""
    if isinstance(spec, tuple):
        return {name: cls for item in spec for name, cls in file_classes(item).items()}
    if not dataclasses.is_dataclass(spec) or isinstance(spec, type):
        return {}
    found = {class_name(type(spec)): type(spec)}
    for field in dataclasses.fields(spec):
        found |= file_classes(getattr(spec, field.name))
    return {name: cls for name, cls in found.items() if name.split(":")[0].endswith(".py")}


def changed_code(a: Any, b: Any) -> list[str]:
    """The classes of experiment files that two specs both use, but with different code (of the class itself)."""
    there, here = file_classes(a), file_classes(b)
    both = there.keys() & here.keys()
    return sorted(
        name
        for name in both
        if there[name] is not here[name] and code_of(there[name]).strip() != code_of(here[name]).strip()
    )


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """The fields in which two encoded specs differ, each as "net.channels: 64 there, 128 here"."""
    if isinstance(a, dict) and isinstance(b, dict) and a.get("class") == b.get("class"):
        names = dict.fromkeys([*a, *b])
        return [line for name in names for line in differences(a.get(name), b.get(name), f"{where}.{name}".lstrip("."))]
    if a == b:
        return []
    if _short(a) == _short(b):  # classes of one name in two modules
        a, b = a["class"], b["class"]
    return [f"{where}: {_short(a)} there, {_short(b)} here"]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("class", "")).split(":")[-1]
    return json.dumps(value)
