"""The code of the README runs as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
# Beside the notebook's example: every sample looks like one of the 8 images.  White noise is at least 0.97 from each
# in root mean square, the samples were at most 0.13 from one.
WHAT_THE_NOTEBOOK_DRAWS = """
import json
patterns = images[:8].reshape(8, 64) / 127.5 - 1
distance = np.sqrt(np.mean((np.asarray(samples).reshape(16, 1, 64) - patterns) ** 2, -1))
assert distance.min(1).max() < 0.4, distance.min(1)
assert len(set(distance.argmin(1).tolist())) >= 3, distance.argmin(1)
assert json.loads(open("runs/lights/metrics.jsonl").readlines()[-1])["loss"] < 0.15
"""
WHAT_COMES_OF_IT = """
assert images.shape == edited.shape == (16, 8, 8, 1)
assert losses.shape == bits.shape == (16,)
assert abs(images).max() <= 1  # as the denoiser clips
assert np.isfinite(bits).all()
"""


@pytest.mark.slow
def test_the_snippets_run_one_after_the_other(tmp_path):
    """As a reader runs them: in a process of its own, with one device and programs optimised as they are in use."""
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) >= 2
    notebook, *others = snippets
    code = "\n".join([notebook, WHAT_THE_NOTEBOOK_DRAWS, *others, WHAT_COMES_OF_IT])
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", code]  # where one of them trains: the working folder
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
