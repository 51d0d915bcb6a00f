"""Imports point down: no module imports one of its own layer or above it, apart from its own package."""

import ast
from pathlib import Path

import pytest

import ddpm_jax

ROOT = Path(ddpm_jax.__file__).parent

# The layers of the library, bottom to top; a name stands for the module or for all of a package.
LAYERS = [
    ["functions", "check", "compiler"],
    ["axes"],
    ["arrays"],
    ["gaussian", "clipping", "paths"],
    ["schedule", "nets.embed", "nets.init", "nets.convolution", "nets.blocks", "data.images"],
    ["forward", "grids"],
    ["targets", "variance", "mixture"],
    ["weighting", "decoder"],
    ["bound", "timesteps", "guidance"],
    ["objective", "likelihood", "sampling", "nets.unet", "nets.mlp", "nets.classifier", "data"],
    ["training.reasons"],
    ["metrics", "training.state", "training.optimizer", "training.average", "training.mesh", "training.journal"],
    ["training.log", "training.lock", "training.watch", "training.preemption", "training.nans"],
    ["training.step", "training.fit", "training.checkpoint", "training.posthoc", "evaluation.examples"],
    ["training.snapshots"],
    ["specs"],
    ["features"],
    ["experiment"],
    ["run", "dryrun"],
    ["training.start", "evaluation"],
    ["training.loop", "interop"],
    ["commands"],
    ["launch"],
    ["__main__"],
]
# The mathematics: from the bottom up to the objective, the likelihood and the samplers.
MATHS = {name for names in LAYERS[:10] for name in names if name.split(".")[0] not in ("nets", "data", "paths")}


def layer_of(module: str) -> int | None:
    for index, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return index
    return None


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


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    own = layer_of(module)
    assert own is not None, f"{module} has no layer"
    for imported in filter(None, map(inside, imports_of(MODULES[module]))):
        layer = layer_of(imported)
        assert layer is not None, f"{module} imports {imported}, which has no layer"
        siblings = module.split(".")[0] == imported.split(".")[0] and "." in module
        assert layer < own or (layer == own and siblings), f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] in MATHS])
def test_mathematics_stands_alone(module):
    """Formulas and samplers import JAX, NumPy and annotations, and never a network or a data set."""
    allowed = {"jax", "numpy", "jaxtyping", "flax", "ddpm_jax", "math", "zlib"}
    allowed |= {"dataclasses", "typing", "collections", "functools", "contextlib", "types", "operator"}
    allowed |= {"likelihood": {"diffrax"}, "compiler": {"os"}}.get(module, set())
    assert {name.split(".")[0] for name in imports_of(MODULES[module])} <= allowed
    assert {inside(name) for name in imports_of(MODULES[module])} & {"nets", "data", "training"} == set()


def test_only_the_networks_know_linen():
    users = {
        module for module, path in MODULES.items() if any(name.startswith("flax.linen") for name in imports_of(path))
    }
    assert users <= {name for name in MODULES if name.startswith("nets.")}
