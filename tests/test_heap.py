"""A process that computes on CPUs keeps what it frees, unless the environment says how the C library is to work."""

import os
import subprocess
import sys

import pytest

# 300 MB are used and freed by another thread than the main one, as XLA's are; how much of it the process still has.
PROGRAM = """
import ctypes, threading
from pathlib import Path
from ddpm_jax.commands import heap

heap.one_heap()
heap.keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1000

def use():
    block = libc.malloc(300_000_000)
    ctypes.memset(block, 1, 300_000_000)
    libc.free(block)

before = resident()
thread = threading.Thread(target=use)
thread.start()
thread.join()
print(resident() - before)
"""


def glibc() -> bool:
    return sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names


@pytest.mark.skipif(not glibc(), reason="mallopt is the GNU C library's")
@pytest.mark.parametrize(("given", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_what_is_freed_is_kept_unless_the_environment_says_otherwise(given: dict[str, str], kept: bool) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env={**inherited, **given}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (float(done.stdout) > 250) == kept, done.stdout
