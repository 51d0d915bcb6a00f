"""Start several processes of one run on this machine, as a cluster would on several.

    python scripts/launch_local.py 2 -- ddpm-jax train experiments/digits.py
    python scripts/launch_local.py 2 --devices-per-process 4 -- ddpm-jax train experiments/digits.py

Each line of output begins with the number of its process.  All processes receive SIGINT and SIGTERM.  If one process
fails, the others have --grace seconds to end; the exit status is that of the first process that failed.
--devices-per-process K gives each process K virtual CPU devices, to test a program for accelerators.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import FrameType


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("processes", type=int, help="the number of processes")
    parser.add_argument("--devices-per-process", type=int, help="virtual CPU devices of each process")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds for the others to end after one has failed")
    parser.add_argument("command", nargs="+", help="the command, after --")
    options = parser.parse_args()
    if options.processes < 1:
        parser.error(f"processes is {options.processes}; expected at least 1")

    address = f"127.0.0.1:{free_port()}"
    group = [start(options.command, index, options, address) for index in range(options.processes)]

    def forward(number: int, frame: FrameType | None) -> None:
        for process in group:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    readers = [threading.Thread(target=relay, args=(index, process)) for index, process in enumerate(group)]
    for reader in readers:
        reader.start()
    status = wait(group, options.grace)
    for reader in readers:
        reader.join()
    return status


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(command: list[str], index: int, options: argparse.Namespace, address: str) -> subprocess.Popen:
    """Start process number `index` in its own session, so that a Ctrl-C reaches it once, from here."""
    cluster = (address, options.processes, index)
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    environment = {**os.environ, **{name: str(value) for name, value in zip(names, cluster, strict=True)}}
    environment["PYTHONUNBUFFERED"] = "1"
    if options.devices_per_process:
        flag = f"--xla_force_host_platform_device_count={options.devices_per_process}"
        environment |= {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip(), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def relay(index: int, process: subprocess.Popen) -> None:
    """Print the output of a process, each line with its number."""
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.buffer.write(f"[{index}] ".encode() + line.rstrip(b"\n") + b"\n")
        sys.stdout.buffer.flush()


def wait(group: list[subprocess.Popen], grace: float) -> int:
    """Wait for all processes, or `grace` seconds after one has failed; the status of the first that failed, or 0."""
    status, deadline = 0, None
    while any(process.poll() is None for process in group):
        failed = [process.returncode for process in group if process.returncode]
        if failed and deadline is None:
            # A negative status belongs to a process that was killed, which can be the cause of the other failures.
            status, deadline = min(failed), time.monotonic() + grace
        if deadline is not None and time.monotonic() > deadline:
            for process in group:
                process.kill()  # SIGTERM would only ask a training for a checkpoint
        time.sleep(0.1)
    status = status or min((process.returncode for process in group if process.returncode), default=0)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
