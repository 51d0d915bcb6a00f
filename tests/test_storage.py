"""A run folder survives: damage is named, a full disk costs no more than a checkpoint, one job trains at a time."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.cli import main
from ddpm_jax.errors import RunError
from ddpm_jax.nets import Network
from ddpm_jax.storage import checkpoint, lock, paths, specs
from ddpm_jax.storage.append_file import AppendFile, WriteFailures
from ddpm_jax.storage.checkpoint import Checkpoints
from ddpm_jax.storage.errors import CheckpointError
from ddpm_jax.storage.lock import FileLock, Lease, locked
from ddpm_jax.storage.log import Log, entries_until
from ddpm_jax.training import loop
from ddpm_jax.training.loop import train
from ddpm_jax.training.optimizer import Adam
from ddpm_jax.training.resume import as_trees, check_resumable, start_state


@dataclass(frozen=True)
class Scale(Network):
    """The smallest network, with as many bytes beside its one number as a test wants on disk."""

    ballast: int = 1

    def init(self, key, image_shape):
        return {"factor": jnp.zeros(()), "ballast": jax.random.normal(key, (self.ballast,))}

    def bind(self, params):
        return lambda z_t, t: params["factor"] * z_t


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """To compile the sampler takes longer than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "draw_picture", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def small(tiny):
    return dataclasses.replace(
        tiny,
        net=Scale(),
        optimizer=Adam(learning_rate=0.1, warmup_steps=0),
        num_steps=2,
        log_every=1,
        checkpoint_every=1,
        sample_every=100,
        num_samples=2,
    )


@pytest.fixture(scope="module")
def trained(small, one, tmp_path_factory):
    """A run with the checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("storage") / "run"
    train(small, folder, one)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, to break."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps_in(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


# Damage.


def flipped(place):
    """One bit, at a place from 0 (the first byte) to 1 (the last)."""

    def damage(path, content):
        at = round(place * (len(content) - 1))
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])

    return damage


DAMAGES = {
    "halved": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "emptied": lambda path, content: path.write_bytes(b""),
    "removed": lambda path, content: path.unlink(),
    **{f"a bit flipped at {place}": flipped(place) for place in (0.0, 0.3, 0.5, 0.8, 1.0)},
}


def restored_or_reported(folder, like, written):
    """The step that is restored; what it holds is what was written, and all it takes is one line for a broken one."""
    checkpoints, reports = Checkpoints(folder / "checkpoints"), []
    step, found = checkpoints.restore_newest(lambda about: like, report=reports.append)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, {name: found[name] for name in like}, written[step])
    assert found["about"]["image_shape"] == [8, 8, 1]
    assert (step, len(reports)) in ((2, 0), (1, 1))
    assert all("\n" not in text and len(text) < 250 for text in reports)
    return step


@pytest.fixture(scope="module")
def like(small, one):
    return as_trees(small.plan(one).state)


@pytest.fixture(scope="module")
def written(trained, like):
    """What the two checkpoints hold."""
    checkpoints = Checkpoints(trained / "checkpoints")
    found = {step: checkpoints.restore(step, lambda about: like) for step in (1, 2)}
    checkpoints.close()
    return {step: {name: trees[name] for name in like} for step, trees in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_each_file_in_turn(run, like, written, damage, capfd):
    """Restored as it was written, or reported in a line and the one before it taken; nothing else on stderr."""
    outcomes = set()
    for path in sorted(path for path in (run / "checkpoints" / "2").rglob("*") if path.is_file()):
        content = path.read_bytes()
        DAMAGES[damage](path, content)
        start = time.monotonic()
        outcomes.add(restored_or_reported(run, like, written))
        assert time.monotonic() - start < 20
        path.write_bytes(content)
    assert outcomes == {1, 2}
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_typical_damage(run, like, written):
    checkpoint = run / "checkpoints" / "2"
    (biggest,) = sorted((checkpoint / "training" / "d").iterdir())
    for path in (biggest, checkpoint / "about" / "metadata"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert restored_or_reported(run, like, written) == 1
        path.write_bytes(content)
    assert restored_or_reported(run, like, written) == 2


def test_a_digit_of_the_description_is_noticed(run, one):
    path = run / "checkpoints" / "2" / "about" / "metadata"
    path.write_text(path.read_text().replace("[8, 8, 1]", "[8, 9, 1]"))
    with pytest.warns(UserWarning, match="checkpoint 2 is damaged: its description is not what was written"):
        assert ddpm_jax.load_run(run, one).step == 1


def test_a_folder_without_its_content_is_named(run, like, written):
    shutil.rmtree(run / "checkpoints" / "2")
    (run / "checkpoints" / "2").mkdir()
    assert restored_or_reported(run, like, written) == 1


def test_training_goes_on_from_the_one_before_a_broken_one(small, one, run, trained, capsys):
    (run / "checkpoints" / "2" / "ema" / "manifest.ocdbt").unlink()
    train(small, run, one)
    assert "checkpoint 2 cannot be read (" in capsys.readouterr().out
    assert ddpm_jax.load_run(run, one).params == ddpm_jax.load_run(trained, one).params
    assert [path.name.split("-")[0] for path in (run / "broken").iterdir()] == ["2"]


def test_where_all_are_broken_each_is_named(run, monkeypatch, capsys):
    """One message, exit status 2."""
    for step in (1, 2):
        (run / "checkpoints" / str(step) / "about" / "metadata").write_text("{")
    monkeypatch.delenv("DDPM_JAX_DEBUG", raising=False)
    with pytest.raises(SystemExit) as ended, pytest.warns(UserWarning, match="checkpoint 2"):
        main.main(["sample", str(run)])
    assert ended.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("ddpm-jax: no checkpoint in ")
    assert "checkpoint 2 cannot be read (a description in it is damaged); checkpoint 1 cannot be read (" in message


@pytest.mark.parametrize("content", [b"", b'{"class": "ddpm_jax.exp', b"[1, 2]", b"\xff\xfe", b'{"class": 3}'])
def test_a_damaged_experiment_is_an_error_in_a_line(small, one, run, content):
    (run / "experiment.json").write_bytes(content)
    with pytest.raises(RunError, match=r"experiment.json cannot be read \(.*Restore it from a copy"):
        check_resumable(small, run)
    with pytest.raises(ValueError, match=r".") as error:
        ddpm_jax.load_run(run, one)
    assert "\n" not in str(error.value)


def test_damaged_metrics_are_no_reason_to_stop(tmp_path):
    path, said = tmp_path / "metrics.jsonl", []
    path.write_bytes(b'{"step": 1}\n\xff\x00\n[]\n{"step": "2"}\n{}\n{"step": 2}\n{"step": 3}\n{"step": 2, "lo')
    failures = WriteFailures(said.append)
    assert entries_until(path, 2, failures) == b'{"step": 1}\n{"step": 2}\n'
    assert entries_until(tmp_path / "none", 2, failures) == b""
    assert entries_until(tmp_path, 2, failures) == b""  # a folder in its place
    assert len(said) == 1


# A full disk: here, a limit on the size of any file that this process writes.


@contextlib.contextmanager
def full_disk(limit=3000):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    cached = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)  # half an entry would be there for other tests
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", cached)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full_between(monkeypatch, first, last, also=lambda: None):
    """The disk is full from the metrics of step `first`, once the step before is saved, to before those of `last`."""
    stack, metrics, init, known = contextlib.ExitStack(), Log.metrics, Checkpoints.__init__, []

    def remembered(checkpoints, *options, **named):
        known.append(checkpoints)
        init(checkpoints, *options, **named)

    def watched(log, step, *rest):
        if step == first:
            known[0].wait()
            stack.enter_context(full_disk())
        if step == last:
            known[0].wait()
            also()
            stack.close()
        metrics(log, step, *rest)

    monkeypatch.setattr(Checkpoints, "__init__", remembered)
    monkeypatch.setattr(Log, "metrics", watched)
    return stack


@pytest.fixture(scope="module")
def heavy(small):
    """Each of its checkpoints is more than the full disk takes."""
    return dataclasses.replace(small, net=Scale(ballast=2000), num_steps=6, keep_last=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax
def test_a_full_disk_costs_no_more_than_its_checkpoints(heavy, one, tmp_path, monkeypatch, capsys):
    """The checkpoint before stays, the parts of the failed ones go, and no line of metrics is lost."""
    seen = set()
    with full_between(monkeypatch, 3, 5, lambda: seen.update(os.listdir(tmp_path / "run" / "checkpoints"))):
        train(heavy, tmp_path / "run", one)
    said = capsys.readouterr().err
    for step in (3, 4):
        assert f"the checkpoint of step {step} cannot be written to {tmp_path}/run/checkpoints (File too large)" in said
        assert f"training continues and tries again at step {step + 1}; free some space" in said
    assert said.count("The checkpoint of step 2 is intact") == said.count("checkpoints (File too large)") == 2
    assert "Traceback" not in said
    assert seen == {"2"}
    assert steps_in(tmp_path / "run") == [6]
    assert not list((tmp_path / "run" / "checkpoints").glob("*tmp*"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert ddpm_jax.load_run(tmp_path / "run", one).step == 6


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax
def test_a_last_checkpoint_that_cannot_be_written_is_an_error(heavy, one, tmp_path, monkeypatch):
    """It is tried twice; then the one before it is there to go on from."""
    with full_between(monkeypatch, 3, None), pytest.raises(RunError) as error:
        train(dataclasses.replace(heavy, num_steps=3), tmp_path / "run", one)
    assert "the checkpoint of step 3 cannot be written to" in str(error.value)
    assert "(File too large). The checkpoint of step 2 is intact." in str(error.value)
    assert steps_in(tmp_path / "run") == [2]
    assert not list((tmp_path / "run" / "checkpoints").glob("*tmp*"))


def test_a_vanished_folder_is_no_new_folder(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    checkpoints, said = Checkpoints(tmp_path / "run" / "checkpoints"), []
    checkpoints.report = said.append
    shutil.rmtree(tmp_path / "run")
    checkpoints.save(1, {"a": {"w": jnp.zeros(3)}}, {}, next_step=2)
    assert not (tmp_path / "run").exists()
    assert "(No such file or directory" in said[0]
    assert "There is no checkpoint yet; training continues and tries again at step 2" in said[0]
    (tmp_path / "run").mkdir()
    checkpoints.save(2, {"a": {"w": jnp.zeros(3)}}, {})
    checkpoints.wait()
    assert checkpoints.steps() == [2], said
    checkpoints.close()


def test_too_little_space_is_told_at_the_start(tmp_path, monkeypatch):
    """Before the folder is made, too."""
    checkpoints, said = Checkpoints(tmp_path / "checkpoints", keep_last=3), []
    checkpoints.report = said.append
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(folder)._replace(free=2_000_000_000))
    state = {"a": jax.ShapeDtypeStruct((100, 1_000_000), jnp.float32)}
    checkpoints.check_space(state)
    assert not said
    checkpoints.check_space({"a": state["a"], "b": state["a"]})
    assert len(said) == 1
    assert "2 GB" in said[0]
    assert "the 4 checkpoints to come" in said[0]
    assert "take 3.2 GB" in said[0]
    checkpoints.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax
@pytest.mark.parametrize("tried", [0, 1])
def test_the_last_is_tried_twice_in_all(tmp_path, tried):
    """Also where it comes early, so that nothing of it was tried before."""
    (tmp_path / "checkpoints").write_text("a file in the place of the folder")
    checkpoints, said, trees = Checkpoints(tmp_path / "checkpoints"), [], {"a": {"w": jnp.zeros(3)}}
    checkpoints.report = said.append
    saves, save = [], checkpoints.save
    checkpoints.save = lambda step, *rest: (saves.append(step), save(step, *rest))
    for _ in range(tried):
        checkpoints.save(3, trees, {})
    with pytest.raises(RunError, match="the checkpoint of step 3 cannot be written to"):
        checkpoints.finish(3, trees, {})
    assert saves == [3, 3]
    assert len(said) == 1
    assert said[0].endswith("; it will be tried once more")


def test_of_many_processes_a_failure_is_the_disks_own_reason(tmp_path, monkeypatch):
    """To open Orbax's manager anew would wait for the others."""
    checkpoints = Checkpoints(tmp_path / "none" / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        patch.setattr(checkpoints, "reopen", lambda: pytest.fail("a barrier"))
        with pytest.raises(RunError, match=r"step 1 cannot be written to .* \(No such file or directory"):
            checkpoints.save(1, {"a": {"w": jnp.zeros(3)}}, {}, next_step=2)
    checkpoints.close()


@pytest.mark.parametrize("everywhere", [True, False])
def test_of_many_processes_all_pass_over_a_damaged_checkpoint_or_none(run, like, monkeypatch, everywhere):
    shutil.rmtree(run / "checkpoints" / "2" / "ema")
    checkpoints = Checkpoints(run / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_meet", lambda name: everywhere)
        patch.setattr(jax, "process_count", lambda: 2)
        patch.setattr(checkpoints, "_restore", lambda *_, **__: {}["about"])
        expected = (
            (CheckpointError, "^checkpoint 2 cannot") if everywhere else (RunError, "but not to the others. Move .*/2 ")
        )
        with pytest.raises(expected[0], match=expected[1]):
            checkpoints.restore(2, lambda about: like)
    checkpoints.close()


def test_a_journal_loses_no_line_and_writes_none_twice(tmp_path):
    """The disk takes a part of a line, then nothing, then all."""
    path, said = tmp_path / "lines", []
    path.write_bytes(b"0123456789\nof a later step\n")
    journal = AppendFile(path, b"0123456789\n", WriteFailures(said.append), "its lines are kept")
    journal.append(b"first\n")
    journal.write()
    with full_disk(20):
        for line in (b"second\n", b"third\n"):
            journal.append(line)
            journal.write()
    assert len(said) == 1
    assert f"{path} cannot be written (" in said[0]
    journal.append(b"fourth\n")
    journal.write()
    assert path.read_bytes() == b"0123456789\nfirst\nsecond\nthird\nfourth\n"
    assert said[1:] == [f"{path} can be written again"]


def test_a_picture_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    log = Log(tmp_path, 0, 4)
    (tmp_path / "samples").write_text("a file in the place of the folder")
    for step in (1, 2):
        log.images(step, np.zeros((2, 8, 8, 1), np.uint8))
    log.metrics(2, {"loss": 1.0})
    log.close()
    assert "the picture" in capsys.readouterr().err
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 2


# The lock.


def test_a_lock_that_cannot_be_written_is_an_error_in_a_line(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(RunError, match=r"lock cannot be written \(Is a directory\)"), locked(tmp_path, print):
        pass


def test_all_processes_refuse_with_the_words_of_the_first(tmp_path, monkeypatch):
    said = []

    def broadcast(content):
        said[:] = said or [content]
        return said[0]

    monkeypatch.setattr(lock.multihost_utils, "broadcast_one_to_all", broadcast)
    with locked(tmp_path, report=pytest.fail):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        texts = []
        for index in (0, 1):
            monkeypatch.setattr(jax, "process_index", lambda index=index: index)
            with pytest.raises(RunError) as error, locked(tmp_path, report=pytest.fail):
                pass
            texts.append(str(error.value))
    assert texts[0] == texts[1]
    assert f"process {os.getpid()} on " in texts[1]


def test_a_second_job_is_refused_and_nothing_changes(small, one, run):
    more = dataclasses.replace(small, num_steps=3)
    with locked(run, report=pytest.fail):
        before = contents(run)
        with pytest.raises(RunError) as error:
            train(more, run, one)
        assert before == contents(run)
    host = os.uname().nodename
    assert f"{run} is in use by another job: process {os.getpid()} on {host}, since 20" in str(error.value)
    train(more, run, one)
    assert 3 in steps_in(run)


def test_a_lock_ends_with_its_process(tmp_path):
    """kill -9 leaves a file that names the dead, and no lock."""
    code = (
        "import sys, time; from pathlib import Path; from ddpm_jax.storage.lock import FileLock\n"
        "held = FileLock(Path(sys.argv[1]), print); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"process {process.pid} on "):
        FileLock(tmp_path, pytest.fail)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    FileLock(tmp_path, pytest.fail).release()


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    said = []
    with locked(tmp_path, report=said.append):
        assert said == [f"{tmp_path} cannot be locked (No locks available): make sure that no other job trains in it"]


def test_a_lease_holds_while_it_is_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SETTLE", 0)
    said = []
    lease = Lease(tmp_path, pytest.fail)
    with pytest.raises(RunError, match=f"process {os.getpid()} on "):
        Lease(tmp_path, pytest.fail)
    old = {**json.loads((tmp_path / "lock").read_text()), "refreshed": time.time() - lock.EXPIRY - 1}
    lease.release()
    assert not (tmp_path / "lock").exists()
    (tmp_path / "lock").write_text(json.dumps(old))
    Lease(tmp_path, said.append).release()
    assert said == [f"{tmp_path} has a stale lock, left by a job that ended; taking it over"]


@pytest.mark.parametrize("refresh", [0.01, 100])
def test_a_lease_that_is_lost_ends_the_run_at_what_it_writes_next(tmp_path, monkeypatch, refresh):
    """Noticed when it is refreshed; or, where this process has slept past its end, before it writes."""
    monkeypatch.setattr(lock, "SETTLE", 0)
    monkeypatch.setattr(lock, "REFRESH", refresh)
    lease = Lease(tmp_path, pytest.fail)
    lease.check()
    (tmp_path / "lock").write_text(json.dumps({"token": "of another", "refreshed": time.time()}))
    if refresh < 1:
        lease._thread.join(20)
    else:
        lease.check()  # nobody takes a lease that is fresh: no need to read it
        lease._refreshed -= lock.EXPIRY + 1
    with pytest.raises(RunError, match="was taken over by another job"):
        lease.check()
    lease.release()
    assert json.loads((tmp_path / "lock").read_text())["token"] == "of another"


def test_training_writes_nothing_once_its_lock_is_lost(small, one, run, monkeypatch):
    @contextlib.contextmanager
    def lost(folder, report):
        def check():
            raise RunError("lost")

        yield check

    monkeypatch.setattr(loop, "locked", lost)
    with pytest.raises(RunError, match="lost"):
        train(dataclasses.replace(small, num_steps=3), run, one)
    assert steps_in(run) == [1, 2]


# Remote folders.


@pytest.fixture
def bucket(monkeypatch):
    """gs:// addresses lie in memory."""
    import fsspec
    from etils.epath import backend

    files = fsspec.filesystem("memory")
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: files)
    monkeypatch.setitem(paths.SCHEMES, "gs", "fsspec")
    monkeypatch.setenv("EPATH_USE_TF", "false")
    return paths.run_path(f"gs://bucket-{time.time_ns()}/run")


def test_what_a_remote_run_writes_is_read_back(bucket, tiny, capsys):
    for start in (0, 2):
        log = Log(bucket, start, 4)
        for step in range(start + 1, start + 4):
            log.metrics(step, {"loss": 1.0})
        log.images(start + 3, np.zeros((2, 8, 8, 1), np.uint8))
        log.close()
    lines = (bucket / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in (bucket / "samples").iterdir()) == ["00000003.png", "00000005.png"]
    assert len(list((bucket / "tensorboard").iterdir())) == 2
    specs.save(tiny, bucket / "experiment.json")
    assert specs.load(bucket / "experiment.json") == tiny


def test_a_remote_folder_is_moved_whole(bucket):
    for name in ("a", "b/c"):
        (bucket / "old" / name).write_text(name)
    paths.move_tree(bucket / "old", bucket / "new" / "place")
    assert not (bucket / "old").exists()
    assert [(bucket / "new" / "place" / name).read_text() for name in ("a", "b/c")] == ["a", "b/c"]


def test_an_address_that_cannot_be_reached_is_told_with_the_remedy(monkeypatch):
    with pytest.raises(RunError, match="expected a local path or gs://, s3:// or az://"):
        paths.run_path("ftp://host/run")
    monkeypatch.setitem(paths.SCHEMES, "gs", "no_such_package")
    with pytest.raises(RunError, match=r"needs the package no_such_package: pip install 'ddpm-jax\[gcs\]'"):
        paths.run_path("gs://bucket/run")
    assert paths.run_path("a/b") == paths.Path("a/b")


def test_a_checkpoint_that_is_not_finished_is_named(run, monkeypatch):
    """As in an object store, where a folder is there before it is complete."""
    checkpoints = Checkpoints(run / "checkpoints")
    monkeypatch.setattr(checkpoints, "steps", lambda: [])
    with pytest.raises(CheckpointError, match=r"checkpoint 2 is not finished, .*; checkpoint 1 is not finished"):
        checkpoints.restore_newest(lambda about: {}, report=lambda text: None)
    checkpoints.close()


def test_a_run_killed_in_its_first_save_starts_again(small, one, run, like, monkeypatch):
    """As in an object store, where that leaves a folder that is not finished, and no other."""
    shutil.rmtree(run / "checkpoints" / "2")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "steps", lambda self: [])
        with (
            pytest.warns(UserWarning, match="checkpoint 1 is not finished, and there is none before it"),
            pytest.raises(FileNotFoundError, match="has no checkpoint yet"),
        ):
            ddpm_jax.load_run(run, one)
        checkpoints, said = Checkpoints(run / "checkpoints"), []
        state, _ = start_state(small.plan(one), checkpoints, said.append)
    assert int(state.step) == 0
    assert len(said) == 1
    assert steps_in(run) == []
    assert [path.name.split("-")[0] for path in (run / "broken").iterdir()] == ["1"]
    checkpoints.close()


def test_an_error_of_an_object_store_is_no_reason_to_stop(bucket, monkeypatch):
    """gcsfs has errors that are no OSError."""

    class HttpError(Exception):
        pass

    def failing(*_):
        raise HttpError("503, try again")

    said = []
    log = Log(bucket, 0, 4)
    log._failures._report = said.append
    log.metrics(1, {"loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(type(bucket), "write_bytes", failing)
        log.flush()
    log.close()
    assert "metrics.jsonl cannot be written (HttpError: 503, try again); training continues" in said[0]
    assert (bucket / "metrics.jsonl").read_text().startswith('{"step": 1')
