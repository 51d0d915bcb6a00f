"""The code of the README runs as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
WHAT_COMES_OF_IT = """
assert samples.shape == (16, 8, 8, 1)
assert loss.shape == b.bits_per_dim.shape == (16,)
assert edited.shape == x.shape
assert path.frames.shape == (8, *x.shape)
"""


@pytest.mark.slow
def test_the_snippets_run_one_after_the_other(tmp_path):
    """As a reader runs them: in a process of its own, with one device and programs optimised as they are in use."""
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) >= 3
    code = "\n".join([*snippets, WHAT_COMES_OF_IT])
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", code]  # where one of them trains: the working folder
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
