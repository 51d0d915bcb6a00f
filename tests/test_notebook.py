"""Classes that a notebook's cells define are kept with a run, as a file that stands by itself."""

import linecache
import sys
import types

import numpy as np
import pytest

from ddpm_jax.storage import notebook, specs
from ddpm_jax.storage.comparison import changed_code

FIRST = """
import math as m
import numpy as np
from dataclasses import dataclass
from ddpm_jax.diffusion.schedule import Schedule as Base
TOP = (1, 2.0)
big = np.zeros(3)
def half(x):
    return x / TOP[1] + m.pi * 0
"""
SECOND = '''
%matplotlib inline
@dataclass(frozen=True)
class Mine(Base):
    """Half of 0.2 in each step."""
    num_steps: int = 12
    def betas(self):
        return np.full(self.num_steps, half(0.2))

@dataclass(frozen=True)
class Local:
    def __len__(self):
        big = 3
        return big

@dataclass(frozen=True)
class NeedsArray:
    @property
    def size(self):
        return len(big)
'''


@pytest.fixture
def session(monkeypatch):
    """The module of a notebook that has run two cells."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    for name, code in (("<cell 1>", FIRST), ("<cell 2>", SECOND)):
        monkeypatch.setitem(linecache.cache, name, (len(code), None, code.splitlines(True), name))
        exec(compile(code.replace("%matplotlib inline", ""), name, "exec"), main.__dict__)
    return main


def test_a_class_of_a_cell_is_read_in_another_process(session, tmp_path, monkeypatch):
    specs.save(session.Mine(7), tmp_path / "spec.json")
    code = (tmp_path / notebook.FILE).read_text()
    assert "big" not in code
    assert "class Local" not in code
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    again = specs.load(tmp_path / "spec.json")
    assert type(again) is not session.Mine
    np.testing.assert_array_equal(again.build().beta, session.Mine(7).build().beta)


def test_the_code_of_a_cell_that_has_changed_is_noticed(session, tmp_path, monkeypatch):
    specs.save(session.Mine(7), tmp_path / "spec.json")
    there = specs.load(tmp_path / "spec.json")
    assert changed_code(there, session.Mine(7)) == []
    changed = SECOND.replace("0.2))", "0.3))")
    monkeypatch.setitem(linecache.cache, "<cell 3>", (len(changed), None, changed.splitlines(True), "<cell 3>"))
    exec(compile(changed.replace("%matplotlib inline", ""), "<cell 3>", "exec"), session.__dict__)
    assert changed_code(there, session.Mine(7)) == ["notebook_cells.py:Mine"]


def test_local_names_are_not_those_of_the_notebook(session):
    assert "big = np" not in notebook.source_of([session.Local])


def test_a_class_that_needs_an_array_of_the_notebook_is_refused(session, tmp_path):
    with pytest.raises(specs.SpecError, match=r"NeedsArray is a class of a notebook .* refers to big, a ndarray"):
        specs.save(session.NeedsArray(), tmp_path / "spec.json")
    assert not list(tmp_path.iterdir())


def test_a_class_whose_code_is_not_known_is_refused(monkeypatch):
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec("from dataclasses import dataclass\n@dataclass\nclass Typed:\n    n: int = 3", main.__dict__)
    with pytest.raises(specs.SpecError, match="Typed is defined in no file, and its code is not known"):
        specs.encode(main.Typed())
