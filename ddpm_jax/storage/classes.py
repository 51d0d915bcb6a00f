"""The names that classes have in experiment.json, and the code that defines them.

    "schedule:Cosine", "Experiment"    a class of ddpm_jax, by its public name
    "digits.py:Constant"               a class of an experiment file, which lies beside experiment.json
    "notebook_cells.py:Constant"       a class of a notebook; `sources` writes this file from its cells
    "package.module:Name"              a class of another package

Public names do not contain the place of a class in ddpm_jax, so a class can move without breaking a run.
"""

import dataclasses
import hashlib
import importlib
import inspect
import sys
import traceback
import types
from pathlib import Path
from typing import Any

import ddpm_jax
from ddpm_jax.storage import notebook
from ddpm_jax.storage.errors import SpecError
from ddpm_jax.storage.paths import RunPath, local_copy

_PREFIX = "ddpm_jax_experiment_"
# Marks another package's module whose name is that of a public module of ddpm_jax.
_MODULE = "module "


def class_name(cls: type) -> str:
    """The name of a class in JSON; raises SpecError if no other process could find the class by it."""
    name, home = cls.__qualname__, cls.__module__
    if "<locals>" in name:
        raise SpecError(f"class {name} is defined inside a function; move it to the top level of its file")
    if home == "__main__" or home.startswith(_PREFIX):
        file = getattr(sys.modules[home], "__file__", None)
        if file is None and notebook.cell_of(cls) is None:
            why = "is defined in no file, and its code is not known; move it to an experiment file or a module"
            raise SpecError(f"class {name} {why}")
        return f"{Path(file).name if file else notebook.FILE}:{name}"
    if home.startswith("ddpm_jax."):
        return _public_name(cls)
    return f"{_MODULE if home in ddpm_jax.MODULES else ''}{home}:{name}"


def _public_name(cls: type) -> str:
    name, home = cls.__qualname__, cls.__module__.removeprefix("ddpm_jax.")
    if ddpm_jax.OBJECTS.get(name) == home:
        return name
    for public, place in ddpm_jax.MODULES.items():
        if f"{home}.".startswith(f"{place}.") and getattr(getattr(ddpm_jax, public), name, None) is cls:
            return f"{public}:{name}"
    raise SpecError(f"class {name} is private to {cls.__module__}, so experiment.json cannot name it")


def find_class(name: str, folder: RunPath, where: str) -> type:
    """The dataclass with this name in JSON.

    Args:
        name: a name that `class_name` returned.
        folder: the folder of the experiment files.
        where: the field that contains the name, for errors.

    Raises:
        SpecError: there is no such class, its code fails, or it is not a dataclass.
    """
    try:
        found = _find(name, folder)
    except Exception as error:  # an experiment file may raise anything
        raise SpecError(f"{where}: class {name!r} cannot be loaded ({type(error).__name__}: {error})") from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise SpecError(f"{where}: {name!r} is not a dataclass")
    return found


def _find(name: str, folder: RunPath) -> Any:
    place, separator, qualified = name.rpartition(":")
    if not separator:
        found: Any = ddpm_jax
    elif place.endswith(".py"):
        found = load_file(local_copy(folder / place))
    elif place in ddpm_jax.MODULES:
        found = getattr(ddpm_jax, place)
    else:
        found = importlib.import_module(place.removeprefix(_MODULE))
    for part in qualified.split("."):
        found = getattr(found, part)
    return found


def load_file(path: Path) -> types.ModuleType:
    """The module in a Python file; files of equal content are one module, so their classes are equal.

    Raises FileNotFoundError if there is no such file.
    """
    content = path.read_bytes()
    main = sys.modules.get("__main__")
    main_file = getattr(main, "__file__", None)
    if main is not None and main_file and Path(main_file).suffix == ".py" and Path(main_file).read_bytes() == content:
        return main
    name = _PREFIX + hashlib.sha256(content).hexdigest()[:16]
    if name not in sys.modules:
        module = sys.modules[name] = types.ModuleType(name)
        module.__file__ = str(path.resolve())
        try:
            exec(compile(content, module.__file__, "exec"), vars(module))
        except BaseException:
            del sys.modules[name]
            raise
    sys.modules[name].__file__ = str(path.resolve())  # the newest copy: an earlier one may have been deleted
    return sys.modules[name]


def run_file(path: Path) -> types.ModuleType:
    """The module in a user's Python file, which can import its neighbours as with `python FILE.py`.

    Raises ValueError with the number of the line if its code fails.
    """
    sys.path.insert(0, str(path.resolve().parent))
    try:
        return load_file(path)
    except Exception as error:
        frames, own = traceback.extract_tb(error.__traceback__), str(path.resolve())
        lines = [frame.lineno for frame in frames if frame.filename == own]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {error}") from error


def file_classes(spec: Any) -> dict[str, type]:
    """The classes in a spec that experiment files or notebooks define, by their names in JSON."""
    if isinstance(spec, tuple):
        return {name: cls for item in spec for name, cls in file_classes(item).items()}
    if not dataclasses.is_dataclass(spec) or isinstance(spec, type):
        return {}
    found = {class_name(type(spec)): type(spec)}
    for field in dataclasses.fields(spec):
        found |= file_classes(getattr(spec, field.name))
    return {name: cls for name, cls in found.items() if name.split(":")[0].endswith(".py")}


def sources(spec: Any) -> dict[str, bytes]:
    """The content of the experiment files that define classes of a spec, by their names.

    Raises SpecError if a class of a notebook needs a value that cannot be written to a file.
    """
    found, in_cells = {}, []
    for cls in file_classes(spec).values():
        if path := getattr(sys.modules[cls.__module__], "__file__", None):
            found[Path(path).name] = Path(path).read_bytes()
        else:
            in_cells.append(cls)
    return found | ({notebook.FILE: notebook.source_of(in_cells).encode()} if in_cells else {})


def code_of(cls: type) -> str:
    """The source code of a class of an experiment file or of a notebook."""
    in_file = getattr(sys.modules[cls.__module__], "__file__", None)
    return (None if in_file else notebook.cell_of(cls)) or inspect.getsource(cls)
