"""What a training tells of itself while it runs."""

import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax.errors import RunError
from ddpm_jax.storage.log import Log
from ddpm_jax.training import metering
from ddpm_jax.training.metering import Meter, Profile, peak_flops
from ddpm_jax.training.nans import explain


def test_rates_are_those_of_the_time_since_the_last_reading(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter = Meter(step=10, batch_size=32, devices=4, step_flops=None)
    assert meter.read(10).keys() == {"memory_peak"}
    with meter.waiting():
        now[0] += 2.0
    now[0] += 6.0
    told = meter.read(20)
    assert told["steps_per_second"] == pytest.approx(10 / 8)
    assert told["images_per_second"] == pytest.approx(320 / 8)
    assert told["images_per_second_per_device"] == pytest.approx(80 / 8)
    assert told["data_wait"] == pytest.approx(0.25)
    assert told["memory_peak"] > 1e6
    assert "mfu" not in told
    now[0] += 1.0
    meter.restart(25)
    now[0] += 1.0
    assert meter.read(27)["steps_per_second"] == pytest.approx(2)


def test_utilisation_is_the_share_of_all_devices_peak(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(metering, "peak_flops", lambda device: 1e12)
    meter = Meter(step=0, batch_size=8, devices=2, step_flops=10**12)
    now[0] = 4.0
    assert meter.read(2)["mfu"] == pytest.approx(1e12 * (2 / 4) / (2 * 1e12))


PEAKS = {
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA L40S": 362,
    "NVIDIA L40": 181,
    "NVIDIA L4": 121,
    "TPU v5 lite": 197,
    "TPU v5": 459,
    "TPU v6 lite": 918,
    "cpu": None,
}


@pytest.mark.parametrize(("kind", "tera"), PEAKS.items())
def test_a_device_has_the_peak_of_its_kind(kind, tera):
    assert peak_flops(SimpleNamespace(device_kind=kind)) == (None if tera is None else 1e12 * tera)


def test_a_trace_that_is_cut_short_is_written(tmp_path):
    said, profile = [], Profile(tmp_path, (2, 9))
    for step in (1, 2, 3):
        with profile.step(step):
            jnp.ones(3) + step
        profile.stop(step, None, said.append)
    profile.close(said.append)
    assert said == [f"the profiler's trace is in {tmp_path}"]
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_trace_of_steps_not_taken_is_told(tmp_path):
    said = []
    Profile(tmp_path, (5, 6)).close(said.append)
    assert said == ["steps 5 to 6, which were to be profiled, were not among those taken"]
    with pytest.raises(ValueError, match=r"profile is \(0, 6\); expected the first and the last step"):
        Profile(tmp_path, (0, 6))


def made_here(x):
    return jnp.log(x - 2.0)


def test_the_line_that_made_a_number_not_finite_is_named():
    with pytest.raises(
        RunError, match=r"at step 7, invalid value \(nan\) encountered in log, in made_here \(test_metering"
    ):
        explain(7, made_here, (jnp.float32(1.0),), {"loss": jnp.float32(jnp.nan)})
    explain(7, made_here, (jnp.float32(1.0),), {"loss": jnp.ones(()), "quarters": jnp.ones(4)})


def test_silence_is_broken_where_lines_are_all_there_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ddpm_jax.storage.log.HEARTBEAT", 0.05)
    log = Log(tmp_path, 3, 10)
    time.sleep(0.4)
    log.close()
    assert "step 3/10  compiling ..." in capsys.readouterr().err


def test_the_memory_of_devices_is_told_where_they_tell_it(monkeypatch):
    devices = [SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak}) for peak in (3, 7)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert metering.memory_peak() == 7
