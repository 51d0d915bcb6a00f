"""What training costs while it runs: images a second, waiting for data, memory, and a profiler's trace on demand."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from ddpm_jax.errors import require
from ddpm_jax.storage.paths import RunPath

# Dense bf16 TFLOP/s of one JAX device, from the makers' data sheets (of TPU v2 and v3 a device is half a chip).
# The first name that occurs in `device_kind` counts.
PEAK_TFLOPS = {
    "TPU v2": 23,
    "TPU v3": 61.5,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5": 459,
    "TPU v6": 918,
    "A100": 312,
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
}


def peak_flops(device: Any) -> float | None:
    """The bf16 FLOP/s that a device can do at most; None where that is not known."""
    found = (tera for name, tera in PEAK_TFLOPS.items() if name in device.device_kind)
    return next((1e12 * tera for tera in found), None)


def memory_peak() -> int | None:
    """The most bytes that were in use on a device of this process; on CPUs, by the process; None where unknown."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    known = [stat["peak_bytes_in_use"] for stat in stats if stat and "peak_bytes_in_use" in stat]
    if known:
        return max(known)
    try:
        import resource
    except ImportError:  # Windows
        return None
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else 1024 * usage


class Meter:
    """Throughput since the last reading.

    batch_size: images in a step.  devices: how many take part.  step_flops: floating-point operations of a step;
    they add the model FLOP utilisation, the share of the devices' bf16 peak.
    """

    def __init__(self, step: int, batch_size: int, devices: int, step_flops: int | None = None) -> None:
        self._batch_size, self._devices, self._step_flops = batch_size, devices, step_flops
        self.restart(step)

    def restart(self, step: int) -> None:
        """Leave the time until now (for compiling, a checkpoint, a picture) out of the next reading."""
        self._step, self._since, self._waited = step, time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def read(self, step: int) -> dict[str, float]:
        """Steps, images, images on each device a second; data_wait (share), memory_peak (bytes), mfu (share).

        Right after a restart only the memory is known.
        """
        memory = memory_peak()
        known = {} if memory is None else {"memory_peak": float(memory)}
        if step == self._step:
            return known
        seconds = max(time.monotonic() - self._since, 1e-9)
        steps_per_second = (step - self._step) / seconds
        rate = self._batch_size * steps_per_second
        values = {
            "steps_per_second": steps_per_second,
            "images_per_second": rate,
            "images_per_second_per_device": rate / self._devices,
            "data_wait": self._waited / seconds,
            **known,
        }
        peak = peak_flops(jax.devices()[0])
        if peak and self._step_flops:
            values["mfu"] = self._step_flops * steps_per_second / (peak * self._devices)
        self.restart(step)
        return values


class Profile:
    """A profiler's trace of steps first..last, written to `folder`: for TensorBoard's profiler, XProf or Perfetto."""

    def __init__(self, folder: RunPath, steps: tuple[int, int] | None) -> None:
        if steps is not None:
            require("profile", steps, 1 <= steps[0] <= steps[1], "the first and the last step, from 1")
        self._folder, self._steps, self._running = folder, steps, False

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around one step."""
        if self._steps and not self._running and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def stop(self, step: int, result: Any, report: Callable[[str], None]) -> None:
        """End the trace if `step` is its last, once `result` is computed."""
        if self._running and self._steps and step >= self._steps[1]:
            jax.block_until_ready(result)
            self.close(report)

    def close(self, report: Callable[[str], None]) -> None:
        """End the trace, and report its path, or that there is none."""
        if self._running:
            jax.profiler.stop_trace()
            report(f"the profiler's trace is in {self._folder}")
            self._running, self._steps = False, None
        elif self._steps:
            report(f"steps {self._steps[0]} to {self._steps[1]}, which were to be profiled, were not among those taken")


def summary(metrics: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """The metrics of several steps as one number each: means; the loss in a quarter of t over all its examples."""
    whole = {name: np.mean([one[name] for one in metrics]) for name in metrics[0] if np.ndim(metrics[0][name]) == 0}
    total, count = (np.sum([one[name] for one in metrics], 0) for name in ("quarter_sum", "quarter_count"))
    quarters = {f"loss_quarter_{i + 1}": total[i] / count[i] for i in range(4) if count[i]}
    return {name: float(value) for name, value in {"loss": whole["loss"], **whole, **quarters}.items()}
