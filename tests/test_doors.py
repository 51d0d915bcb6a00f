"""The public names of the package: lazy, complete, and the same for people, type checkers and experiment.json."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ddpm_jax

SOURCE = Path(ddpm_jax.__file__).read_text()


def test_dir_shows_the_public_names_and_nothing_else():
    assert dir(ddpm_jax) == sorted(ddpm_jax.__all__)
    assert set(ddpm_jax.__all__) == {*ddpm_jax.MODULES, *ddpm_jax.OBJECTS, "__version__"}
    with pytest.raises(AttributeError, match="has no attribute 'nosuch'"):
        ddpm_jax.nosuch  # noqa: B018


def test_type_checkers_see_every_name():
    block = next(node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    seen = {name.name for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert seen == set(ddpm_jax.__all__) - {"__version__"}
    assert (Path(ddpm_jax.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("name", sorted(ddpm_jax.__all__))
def test_each_name_is_there(name):
    assert getattr(ddpm_jax, name) is not None
    for public in getattr(getattr(ddpm_jax, name), "__all__", ()):
        assert hasattr(getattr(ddpm_jax, name), public), (name, public)


@pytest.mark.parametrize("name", sorted(ddpm_jax.MODULES))
def test_each_public_module_lists_its_names(name):
    assert getattr(ddpm_jax, name).__all__


@pytest.mark.parametrize(
    "line", ["import ddpm_jax", "import ddpm_jax; dir(ddpm_jax)", "from ddpm_jax import __version__"]
)
def test_the_package_is_imported_without_jax(line):
    code = f"import sys; {line}; sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'flax')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_modules_are_attributes_and_can_be_imported():
    code = "import ddpm_jax; assert ddpm_jax.schedule.Cosine; from ddpm_jax import targets, sampling; sampling.Ddim"
    code += "; assert ddpm_jax.metrics.frechet.moments and ddpm_jax.interop.diffusers.read"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_experiment_file_needs_few_import_lines():
    for path in (Path(__file__).parents[1] / "experiments").glob("*.py"):
        imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert sum(node.end_lineno - node.lineno + 1 for node in imports) <= 4, path.name
