"""Imports point down: no module imports one of its own layer or above it, apart from its own package."""

import ast
import graphlib
from pathlib import Path

import pytest

import ddpm_jax

ROOT = Path(ddpm_jax.__file__).parent

# The folders and files of the library, bottom to top: a module imports from those below its own.
FLOORS = [
    ["errors"],
    ["storage"],
    ["devices"],
    ["diffusion"],
    ["sampling", "nets", "data", "metrics"],
    ["training"],
    ["features", "run"],
    ["evaluation"],
    ["interop"],
    ["cli"],
    ["__main__"],
]
# What the mathematics may import.
MATHS = {"jax", "numpy", "jaxtyping", "flax", "ddpm_jax", "math", "zlib", "dataclasses", "typing", "collections"}
MATHS |= {"functools", "contextlib", "operator", "types", "warnings"}


def floor_of(module: str) -> int:
    return next(index for index, names in enumerate(FLOORS) if module.split(".")[0] in names)


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.name != "__init__.py"
}


def inside(imported: str) -> str | None:
    """The module of this package that an imported name is, or lies in."""
    parts = imported.split(".")[1:] if imported.startswith("ddpm_jax.") else []
    for count in range(len(parts), 0, -1):
        name = ".".join(parts[:count])
        if name in MODULES or (ROOT / Path(*parts[:count]) / "__init__.py").exists():
            return name
    return None


# The modules that each imports; the package itself, whose names are lazy, is below all.
ARROWS = {
    module: {found for found in map(inside, imports_of(path)) if found is not None} for module, path in MODULES.items()
}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    for imported in ARROWS[module]:
        siblings = module.split(".")[0] == imported.split(".")[0]
        assert siblings or floor_of(imported) < floor_of(module), f"{module} imports {imported}"


def test_no_imports_go_in_a_circle():
    graphlib.TopologicalSorter(ARROWS).prepare()


def test_the_package_has_few_entries():
    entries = {path.name for path in ROOT.iterdir()} - {"__pycache__"}
    assert len(entries) <= 18, sorted(entries)


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] in ("diffusion", "sampling")])
def test_mathematics_stands_alone(module):
    """Formulas and samplers import JAX, NumPy and annotations, and never a network or a data set."""
    allowed = MATHS | ({"diffrax"} if module == "diffusion.likelihood" else set())
    assert {name.split(".")[0] for name in imports_of(MODULES[module])} <= allowed
    assert {name.split(".")[0] for name in ARROWS[module]} <= {"errors", "devices", "diffusion", "sampling"}


def test_only_the_networks_know_linen():
    users = {
        module for module, path in MODULES.items() if any(name.startswith("flax.linen") for name in imports_of(path))
    }
    assert {name.split(".")[0] for name in users} <= {"nets", "features"}


def test_private_names_of_jax_are_used_in_one_folder():
    users = {module for module, path in MODULES.items() if any("jax._src" in name for name in imports_of(path))}
    assert {name.split(".")[0] for name in users} <= {"devices"}
