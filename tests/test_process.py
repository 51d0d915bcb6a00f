"""To import ddpm_jax and to load a run does not change the process: its log levels, filters, hooks and signals."""

import json
import os
import shutil
import subprocess
import sys

import pytest

CODE = """
import asyncio, gc, importlib, json, logging, pkgutil, signal, sys, warnings
# What these do when they are imported is their own affair.
import absl.logging, diffrax, flax.linen, jax, optax, orbax.checkpoint, PIL.Image, rich.progress, safetensors
import tensorboardX, tensorflow_datasets, tyro

def state():
    loggers = [logging.getLogger(), *(l for l in logging.root.manager.loggerDict.values() if hasattr(l, "level"))]
    signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return {
        "loggers": {log.name: (log.level, log.filters[:], log.handlers[:], log.disabled) for log in loggers},
        "disabled": logging.root.manager.disable,
        "warnings": warnings.filters[:], "showwarning": warnings.showwarning,
        "unraisable": sys.unraisablehook, "excepthook": sys.excepthook, "signals": signals,
    }

def changed(before, after):
    names = [name for name in before if name != "loggers" and before[name] != after[name]]
    new = (logging.NOTSET, [], [], False)  # a new logger without settings changes nothing
    return names + [name for name, now in after["loggers"].items() if now != before["loggers"].get(name, new)]

jax.devices()
before = state()
import ddpm_jax
for module in pkgutil.walk_packages(ddpm_jax.__path__, "ddpm_jax."):
    if module.name != "ddpm_jax.__main__":
        importlib.import_module(module.name)
imported = changed(before, state())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    inside = state()
    step = ddpm_jax.load_run(sys.argv[1]).step
    loaded = changed(inside, state())
gc.collect()
print(json.dumps([imported, loaded, changed(before, state()), step, [str(warning.message) for warning in caught]]))
"""


@pytest.mark.slow
def test_the_process_is_left_as_it_was(finished, tmp_path):
    """Also if a checkpoint is damaged; then stderr has no words of Orbax, whose errors take up to sixty lines."""
    damaged = tmp_path / "run"
    shutil.copytree(finished, damaged)
    (damaged / "checkpoints" / "6" / "ema" / "manifest.ocdbt").unlink()
    for folder, step in ((finished, 6), (damaged, 3)):
        command = [sys.executable, "-c", CODE, str(folder)]
        result = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        )
        assert result.returncode == 0, result.stderr
        imported, loaded, afterwards, found, said = json.loads(result.stdout)
        assert (imported, loaded, afterwards) == ([], [], [])
        assert found == step
        assert any("checkpoint 6 cannot be read" in text for text in said) == (step == 3)
        assert "orbax" not in result.stderr.lower()
        assert len(result.stderr.splitlines()) < 5, result.stderr
