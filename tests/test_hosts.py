"""Many processes are one run: they join, give the numbers of one process, and stop or die without harm.

The slow tests start real processes.  A SIGTERM does not end a process that has joined others, so all time limits
end in SIGKILL.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import EXPERIMENT, QUICK, logged, wait_until

import ddpm_jax
from ddpm_jax.data.images import to_pixels
from ddpm_jax.devices import shutdown
from ddpm_jax.devices.cluster import ClusterOptions, Seat, find_seat
from ddpm_jax.devices.preemption import Preempted, PreemptionListener, pack, unpack
from ddpm_jax.storage.lock import FileLock
from ddpm_jax.training import loop
from ddpm_jax.training.loop import train

SCRIPTS = Path(__file__).parents[1] / "scripts"
LIMIT = 240


# Who joins what.


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # a job script, not a task of srun
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, Seat(None, 4, 3)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, Seat(None, 2, 0)),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        (
            {
                "OMPI_COMM_WORLD_SIZE": "8",
                "OMPI_COMM_WORLD_RANK": "5",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_PROCID": "1",
            },
            Seat(None, 8, 5),
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            Seat("a:1", 2, 1, found_by_jax=False),
        ),
        ({"JAX_NUM_PROCESSES": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, None),  # kept apart
    ],
)
def test_the_environment_says_whether_there_are_others(environ, expected):
    assert find_seat(ClusterOptions(), environ) == expected


def test_flags_say_it_too():
    by_hand = ClusterOptions(coordinator="[::1]:80", num_processes=3, process_index=2)
    assert find_seat(by_hand, {"JAX_NUM_PROCESSES": "9"}) == Seat("[::1]:80", 3, 2, found_by_jax=False)
    assert find_seat(ClusterOptions(distributed=True), {}) == Seat()


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        ({"num_processes": 2}, {}, "--num-processes is 2, which needs --coordinator and --process-index too"),
        ({"coordinator": "here"}, {}, "--coordinator is 'here', which needs --num-processes and --process-index"),
        ({"coordinator": "here", "num_processes": 2, "process_index": 0}, {}, "'here'; expected HOST:PORT"),
        ({"coordinator": "a:99999", "num_processes": 2, "process_index": 0}, {}, "'a:99999'; expected HOST:PORT"),
        ({"coordinator": "a:1", "num_processes": 0, "process_index": 0}, {}, "--num-processes is 0; expected at least"),
        ({"coordinator": "a:1", "num_processes": 2, "process_index": 2}, {}, "--process-index is 2; expected 0 to 1"),
        ({"join_timeout": 0}, {}, "--join-timeout is 0; expected at least 1 second"),
        ({}, {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; expected a whole number"),
        ({}, {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID is '-1'; expected a whole number"),
        ({}, {"JAX_NUM_PROCESSES": "2"}, "which needs JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID too"),
        ({}, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "x"}, "SLURM_PROCID is 'x'; expected a whole number"),
    ],
)
def test_a_contradiction_is_named(flags, environ, message):
    with pytest.raises(ValueError, match=r"expected|needs") as error:
        find_seat(ClusterOptions(**flags), environ)
    assert message in str(error.value)


def test_which_errors_mean_a_lost_process():
    assert shutdown.lost_contact(ValueError("UNKNOWN: Gloo AllGather failed:\nConnection closed by peer"))
    chained = RuntimeError("cannot be read")
    chained.__cause__ = RuntimeError("DEADLINE_EXCEEDED: Barrier timed out")
    assert shutdown.lost_contact(chained) == "DEADLINE_EXCEEDED: Barrier timed out"
    assert not shutdown.lost_contact(ValueError("batch_size is 0; expected at least 1"))
    assert not shutdown.lost_contact(FileNotFoundError("there is no folder barrier"))
    shutdown.leave(1, "alone, so this returns")


# SIGTERM, in one process.


def metrics_of(folder: Path) -> list[tuple[int, float, float]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["loss"], entry["gradient_norm"]) for entry in entries]


@pytest.mark.slow
def test_sigterm_saves_the_step_and_the_run_goes_on_as_if_it_had_not_been(tiny, one, finished, tmp_path, monkeypatch):
    """The same parameters, bitwise, and the same lines of metrics; that of step 6 has the means of steps 5 and 6."""
    step, before, taken = 5, signal.getsignal(signal.SIGTERM), []

    def checked(batch, num_classes):
        taken.append(None)
        if len(taken) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(batch, num_classes)

    original = loop.check_labels
    monkeypatch.setattr(loop, "check_labels", checked)
    with pytest.raises(Preempted, match=f"stopped by SIGTERM after step {step}, which is saved") as stop:
        train(tiny, tmp_path / "run", one)
    assert stop.value.step == step
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    monkeypatch.setattr(loop, "check_labels", original)
    train(tiny, tmp_path / "run", one)
    whole, parts = (ddpm_jax.load_run(folder, one) for folder in (finished, tmp_path / "run"))
    assert (whole.step, parts.step) == (6, 6)
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)
    assert metrics_of(finished) == metrics_of(tmp_path / "run")


def test_only_the_main_thread_listens_and_only_for_a_while():
    def handler(*_):
        pass

    before = signal.signal(signal.SIGTERM, handler)
    try:
        notice = PreemptionListener()
        assert signal.getsignal(signal.SIGTERM) not in (handler, before)
        assert not notice.stops_after(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.stops_after(2)
        notice.close()
        assert signal.getsignal(signal.SIGTERM) is handler
        heard = []
        thread = threading.Thread(target=lambda: heard.append((PreemptionListener(), signal.getsignal(signal.SIGTERM))))
        thread.start()
        thread.join()
        assert heard[0][1] is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_metrics_come_back_exactly():
    metrics = [{"loss": np.float32(0.1), "count": np.int32(7), "each": np.array([1e-7, 3], np.float32)}] * 2
    for ours, theirs in zip(unpack(json.loads(json.dumps(pack(metrics)))), metrics, strict=True):
        for name, value in theirs.items():
            assert ours[name].dtype == value.dtype
            np.testing.assert_array_equal(ours[name], value)


# Real processes.


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": QUICK, "PYTHONUNBUFFERED": "1", **more}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "killed.py"
    path.write_text(EXPERIMENT)
    return path


def together(*command: object, processes: int = 2, devices: int = 1) -> subprocess.Popen:
    """The command in several processes, on one or more virtual devices each."""
    launcher = [SCRIPTS / "launch_local.py", processes, "--devices-per-process", devices, "--"]
    arguments = [str(word) for word in (sys.executable, *launcher, sys.executable, *command)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(arguments, env=environment(), text=True, start_new_session=True, **pipes)


def members(launcher: subprocess.Popen) -> list[int]:
    """The process ids of those that a launcher started, in order."""
    return sorted(map(int, Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()))


def catches_sigterm(process: int) -> bool:
    """Whether SIGTERM would be heard by a process, rather than end it."""
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{process}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) & 1 << signal.SIGTERM - 1)


def outcome(process: subprocess.Popen, limit: int = LIMIT) -> tuple[int, str]:
    """The exit status and what was printed."""
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        for child in members(process):
            os.kill(child, signal.SIGKILL)
        process.kill()
        pytest.fail(f"still running after {limit} s: {process.communicate()[0]}")
    return process.returncode, output


def final(workdir: Path, one):
    run = ddpm_jax.load_run(workdir, one)
    return run.step, jax.tree.leaves(run.params)


# A parameter whose gradient is 0 but for rounding, as that of the keys' bias, is moved by an Adam of the usual eps.
TWENTY = ("--num-steps", 20, "--optimizer.decay", "constant", "--optimizer.eps", 1e-6)


@pytest.fixture(scope="module")
def shared(file, tmp_path_factory) -> Path:
    """The run of two processes of four devices each, across which the state is cut."""
    folder = tmp_path_factory.mktemp("shared") / "run"
    cut = ("--mesh.fsdp", 8, "--mesh.min-shard-size", 64)
    status, output = outcome(together(file, *TWENTY, *cut, "--workdir", folder, devices=4))
    assert status == 0, output
    assert output.count("draw more with: ") == 1
    return folder


@pytest.mark.slow
def test_two_processes_with_a_part_each_give_what_one_does(file, shared, tmp_path, one):
    """And one process, this, reads what they wrote."""
    single = [sys.executable, *map(str, (file, *TWENTY, "--workdir", tmp_path / "run"))]
    subprocess.run(single, env=environment(), check=True, capture_output=True, timeout=LIMIT)
    np.testing.assert_allclose(metrics_of(shared), metrics_of(tmp_path / "run"), atol=1e-5)
    (step, ours), (_, theirs) = final(shared, one), final(tmp_path / "run", one)
    assert step == len(metrics_of(shared)) == 20
    for leaf, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(leaf, other, atol=1e-5)
    assert (shared / "samples" / "00000020.png").exists()


@pytest.mark.slow
def test_two_processes_sample_once_what_one_does(shared, tmp_path, one):
    draw = ("-m", "ddpm_jax", "sample", shared, "--num-images", 6, "--output", tmp_path / "images.npz")
    status, output = outcome(together(*draw))
    assert status == 0, output
    assert output.count("6 images from step 20") == 1
    alone = ddpm_jax.load_run(shared, one).sample(jax.random.key(0), 6)
    with np.load(tmp_path / "images.npz") as stored:
        np.testing.assert_allclose(stored["images"].astype(int), np.asarray(to_pixels(alone)).astype(int), atol=1)


@pytest.mark.slow
def test_sigterm_to_one_of_two_stops_both_after_the_same_step(file, tmp_path):
    """In the midst of training, and before the first step of a run that goes on; no checkpoint but the extra ones.

    And the run that goes on has the lines of one that was never stopped.
    """
    command = (file, "--num-steps", 300, "--optimizer.decay", "constant", "--checkpoint-every", 1000, "--log-every", 10)
    saved = tmp_path / "run" / "checkpoints"

    def stopped(process: subprocess.Popen) -> int:
        os.kill(members(process)[1], signal.SIGTERM)
        status, output = outcome(process, 60)
        assert status == 0, output
        [step] = map(int, re.findall(r"stopped by SIGTERM after step (\d+), which is saved", output))
        assert max(int(path.name) for path in saved.iterdir()) == step
        return step

    process = together(*command, "--workdir", tmp_path / "run")
    wait_until(lambda: len(logged(tmp_path / "run")) >= 2, process)
    first = stopped(process)
    process = together(*command, "--workdir", tmp_path / "run")
    wait_until(lambda: len(members(process)) == 2 and catches_sigterm(members(process)[1]), process)
    assert logged(tmp_path / "run")[-1] <= first  # it has not begun
    second = stopped(process)
    assert first < second < 300
    for name in ("run", "whole"):
        status, output = outcome(together(*command, "--workdir", tmp_path / name, "--num-steps", second + 5))
        assert status == 0, output
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


@pytest.mark.slow
def test_sigterm_before_there_is_anything_to_save_ends_at_once(file, shared, tmp_path):
    """While a run that goes on reads its checkpoint; if it was quick, it has saved the step that it stopped after."""
    run = shutil.copytree(shared, tmp_path / "run")
    process = together(file, *TWENTY, "--num-steps", 300, "--workdir", run)
    wait_until(lambda: (run / "lock").stat().st_size > 0, process)
    process.send_signal(signal.SIGTERM)  # passed on to both
    status, output = outcome(process, 60)
    assert status == 128 + signal.SIGTERM or (status == 0 and "which is saved" in output), output
    steps = sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    assert steps[-1] == 20 if status else steps[-1] > 20


@pytest.mark.slow
def test_when_one_dies_the_other_says_so_and_both_go_on(file, tmp_path, one):
    command = (file, "--num-steps", 300, "--optimizer.decay", "constant", "--workdir", tmp_path / "run")
    for victim in (0, 1):
        before = len(logged(tmp_path / "run"))
        process = together(*command)
        wait_until(lambda before=before: len(logged(tmp_path / "run")) >= before + 6, process)
        os.kill(members(process)[victim], signal.SIGKILL)
        status, output = outcome(process, 60)
        assert status == 128 + signal.SIGKILL  # the first to fail
        assert f"[{1 - victim}] ddpm-jax: process {1 - victim} of 2 lost contact with another one" in output
        assert "Traceback" not in output
    reached = len(logged(tmp_path / "run"))
    status, output = outcome(together(*command, "--num-steps", reached + 4))
    assert status == 0, output
    assert final(tmp_path / "run", one)[0] == reached + 4


@pytest.mark.slow
def test_what_all_do_wrong_is_said_once_with_one_status(file, shared):
    status, output = outcome(together(file, *TWENTY, "--seed", 5, "--workdir", shared), 60)
    assert status == 2
    assert output.count("holds a run of a different experiment") == 1
    assert output.count("ddpm-jax: ") - output.count("ddpm-jax: warning: ") == 1
    assert output.count("ddpm-jax: warning: ") <= 1


@pytest.mark.slow
def test_a_lock_that_another_job_holds_refuses_all_with_one_message(file, tmp_path):
    (tmp_path / "run").mkdir()
    held = FileLock(tmp_path / "run", report=pytest.fail)
    try:
        status, output = outcome(together(file, *TWENTY, "--workdir", tmp_path / "run"), 60)
    finally:
        held.release()
    assert status == 2
    assert output.count(f"ddpm-jax: {tmp_path / 'run'} is in use by another job: process {os.getpid()} on ") == 1
    assert output.count("ddpm-jax: ") - output.count("ddpm-jax: warning: ") == 1
    assert output.count("ddpm-jax: warning: ") <= 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


@pytest.mark.slow
def test_what_keeps_a_process_from_joining_is_said_in_one_line(file, tmp_path):
    """Others that do not come within --join-timeout, and a device that is not there."""
    cases = [
        ("2", "0", "cpu", 1, "process 0 of 2 did not find the others at ADDRESS within 3 s"),
        ("2", "1", "cpu", 1, "process 1 of 2 did not find the others at ADDRESS within 3 s"),
        ("1", "0", "cuda", 2, "JAX_PLATFORMS is 'cuda', but JAX finds no such device"),
    ]
    started = []
    for place, (count, index, platform, *_) in enumerate(cases):
        address = f"127.0.0.1:{29713 + place}"
        flags = ["--coordinator", address, "--num-processes", count, "--process-index", index, "--join-timeout", "3"]
        command, pipe = [sys.executable, str(file), "--workdir", str(tmp_path / "run"), *flags], subprocess.PIPE
        process = subprocess.Popen(command, env=environment(JAX_PLATFORMS=platform), stderr=pipe, text=True)
        started.append((process, address))
    for (process, address), (*_, status, message) in zip(started, cases, strict=True):
        _, errors = process.communicate(timeout=60)
        assert process.returncode == status, errors
        assert errors.startswith(f"ddpm-jax: {message.replace('ADDRESS', address)}")
        assert len(errors.splitlines()) == 1


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_no_traceback(file, tmp_path):
    command = [sys.executable, str(file), "--num-steps", "300", "--optimizer.decay", "constant"]
    command += ["--workdir", str(tmp_path / "run")]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(logged(tmp_path / "run")) >= 5, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("ddpm-jax: interrupted; the same command resumes a training")
