"""The code of the README runs as it stands there."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_snippets_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where one of them trains
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    for snippet in snippets:
        exec(snippet, names)
    assert names["samples"].shape == (16, 8, 8, 1)
    assert names["loss"].shape == names["b"].bits_per_dim.shape == (16,)
    assert names["edited"].shape == names["x"].shape
    assert names["path"].frames.shape == (8, *names["x"].shape)
