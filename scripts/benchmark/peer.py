"""What the benchmark times of PyTorch: diffusers' `UNet2DModel` of the same architecture, and the same work around it.

Written as one would for speed: images already on the device, fused Adam, averages in one call for all parameters, no
wait for the device inside a step.  `how` says the rest: "compile" (with "graphs": CUDA graphs too), "channels_last".
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel  # pyright: ignore[reportMissingImports]
from workers import Case, Job

# A shuffled TensorDataset by the DataLoader, in several ways.
DATA_WORKERS = {"DataLoader, 0 workers": 0, "DataLoader, 2 workers": 2, "DataLoader, BatchSampler": None}


def modes(mode: str, platform: str) -> dict[str, dict[str, Any]]:
    """The ways in which PyTorch runs a case, by their names."""
    if mode == "data":
        return {name: {"workers": count} for name, count in DATA_WORKERS.items()}
    if mode == "restore":
        return {"torch.load": {}, "torch.load, mmap": {"mmap": True}}
    if mode == "save":
        return {"torch.save": {}}
    if mode == "matmul":
        return {"torch": {}}
    eager = {"eager": {}} if platform == "cpu" else {}
    compiled = {"compile": True, "channels_last": True}
    if platform == "cpu":
        eager["torch.compile"] = {"compile": True}
    graphs = {} if platform == "cpu" else {"torch.compile, channels_last, CUDA graphs": {**compiled, "graphs": True}}
    eager |= {"eager, channels_last": {"channels_last": True}}
    return {**eager, "torch.compile, channels_last": compiled, **graphs}


def prepare(case: Case, how: dict[str, Any]) -> Job:
    """The case as a job."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    job = JOBS[case.mode](case, how)
    job.facts["threads"] = torch.get_num_threads()
    if device_of(case) == "cuda":
        job.device_peak = torch.cuda.max_memory_allocated
    return job


def device_of(case: Case) -> str:
    """The device that JAX has found, too.  Raises RuntimeError where this PyTorch has none such."""
    if case.plan["platform"] == "cpu":
        return "cpu"
    if case.plan["platform"] != "gpu" or not torch.cuda.is_available():
        raise RuntimeError(f"this PyTorch has no {case.plan['platform']}")
    return "cuda"


def wait(device: str) -> None:
    """Until the device has done all."""
    if device == "cuda":
        torch.cuda.synchronize()


def network(case: Case, how: dict[str, Any]) -> Any:
    """diffusers' network on the device."""
    net = UNet2DModel.from_config(case.plan["net"]).to(device_of(case))
    return net.to(memory_format=torch.channels_last) if how.get("channels_last") else net


def compiled(net: Any, case: Case, how: dict[str, Any]) -> Callable[..., Any]:
    """predict(z, t, labels), in the precision of the case."""
    call = net
    if how.get("compile"):
        call = torch.compile(net, mode="reduce-overhead" if how.get("graphs") else "default")
    half, device = case.dtype == "bfloat16", device_of(case)

    def predict(z: Any, t: Any, labels: Any) -> Any:
        if how.get("graphs"):
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device, torch.bfloat16) if half else nullcontext():
            return call(z, t, labels, return_dict=False)[0].float()

    return predict


def placed(tensor: Any, case: Case, how: dict[str, Any]) -> Any:
    """Images on the device, in the order that the network likes."""
    tensor = tensor.to(device_of(case))
    return tensor.contiguous(memory_format=torch.channels_last) if how.get("channels_last") else tensor


def latents_shape(case: Case) -> tuple[int, ...]:
    height, width, channels = case.plan["shape"]
    return case.batch, channels, height, width


def labels_of(case: Case) -> Any:
    """Classes in turn; None for a network without."""
    count = case.plan["num_classes"]
    return None if count is None else (torch.arange(case.batch) % count).to(device_of(case))


def adam(parameters: list[Any], plan: dict[str, Any]) -> Any:
    """Adam, fused where this PyTorch can."""
    options = {"lr": plan["learning_rate"], "betas": tuple(plan["betas"]), "eps": plan["eps"]}
    try:
        return torch.optim.Adam(parameters, **options, fused=True)
    except RuntimeError:
        return torch.optim.Adam(parameters, **options, foreach=True)


def train(case: Case, how: dict[str, Any]) -> Job:
    """A step: draws, noise, loss, gradient, clipping, Adam, average; the images are on the device."""
    plan, device = case.plan, device_of(case)
    net = network(case, how).train()
    predict, parameters = compiled(net, case, how), list(net.parameters())
    averages, optimizer = [value.detach().clone() for value in parameters], adam(parameters, plan)
    scheduler, labels = DDPMScheduler.from_config(plan["scheduler"]), labels_of(case)
    images = placed(torch.randint(0, 256, latents_shape(case), dtype=torch.uint8), case, how)
    of_v, last = plan["scheduler"]["prediction_type"] == "v_prediction", scheduler.config.num_train_timesteps

    def seen_labels() -> Any:
        if labels is None or plan["null_label"] is None:
            return labels
        dropped = torch.rand(case.batch, device=device) < plan["label_dropout"]
        return torch.where(dropped, plan["null_label"], labels)

    def step() -> None:
        x = images.float().div_(127.5).sub_(1)
        if plan["flip"]:
            x = torch.where(torch.rand(case.batch, 1, 1, 1, device=device) < 0.5, x.flip(3), x)
        noise, t = torch.randn_like(x), torch.randint(0, last, (case.batch,), device=device)
        target = scheduler.get_velocity(x, noise, t) if of_v else noise
        loss = torch.nn.functional.mse_loss(predict(scheduler.add_noise(x, noise, t), t, seen_labels()), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if plan["clip_norm"] is not None:
            torch.nn.utils.clip_grad_norm_(parameters, plan["clip_norm"], foreach=True)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - plan["ema"])

    return repeated(step, device)


def forward(case: Case, how: dict[str, Any]) -> Job:
    """One evaluation of the network, without dropout."""
    device, labels = device_of(case), labels_of(case)
    predict = compiled(network(case, how).eval(), case, how)
    z = placed(torch.randn(latents_shape(case)), case, how)
    t = torch.full((case.batch,), 499, device=device)

    def once() -> None:
        with torch.inference_mode():
            predict(z, t, labels)
        wait(device)

    return repeated(once, device)


def sample(case: Case, how: dict[str, Any]) -> Job:
    """The loop of diffusers' pipelines: a batch of images, as NumPy."""
    device, labels = device_of(case), labels_of(case)
    predict = compiled(network(case, how).eval(), case, how)
    scheduler = {"ddim": DDIMScheduler, "ancestral": DDPMScheduler}[case.sampler].from_config(case.plan["scheduler"])
    # The scheduler counts on the host: on the device it would wait for each of its numbers.
    scheduler.set_timesteps(case.steps)
    times = list(zip(scheduler.timesteps, scheduler.timesteps.to(device), strict=True))

    def once() -> None:
        with torch.inference_mode():
            z = placed(torch.randn(latents_shape(case), device=device), case, how)
            for on_host, t in times:
                z = scheduler.step(predict(z, t, labels), on_host, z, return_dict=False)[0]
            z.clamp(-1, 1).permute(0, 2, 3, 1).cpu().numpy()

    return repeated(once, device)


def data(case: Case, how: dict[str, Any]) -> Job:
    """Shuffled batches of images in memory."""
    from torch.utils.data import (  # pyright: ignore[reportMissingImports]
        BatchSampler,
        DataLoader,
        RandomSampler,
        TensorDataset,
    )

    _, *shape = latents_shape(case)
    dataset = TensorDataset(torch.randint(0, 256, (500 if case.quick else 50_000, *shape), dtype=torch.uint8))
    if how["workers"] is None:  # the images of a batch are indexed at once
        sampler = BatchSampler(RandomSampler(dataset), case.batch, drop_last=True)
        loader = DataLoader(dataset, sampler=sampler, batch_size=None)
    else:
        kept: dict[str, Any] = {"num_workers": how["workers"], "persistent_workers": how["workers"] > 0}
        loader = DataLoader(dataset, case.batch, shuffle=True, drop_last=True, **kept)

    def without_end() -> Any:
        while True:
            yield from loader

    found = without_end()
    return Job(lambda count: [next(found) for _ in range(count)] and None)


def checkpoint(case: Case, how: dict[str, Any]) -> Job:
    """Saving or restoring all of a training state: network, average, optimizer."""
    device, net, average = device_of(case), network(case, how), network(case, how)
    optimizer = adam(list(net.parameters()), case.plan)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # now it has its moments
    parts = {"net": net, "average": average, "optimizer": optimizer}
    path = Path(tempfile.mkdtemp(dir=case.folder)) / "state.pt"

    def save() -> None:
        with path.with_suffix(".part").open("wb") as file:
            torch.save({name: part.state_dict() for name, part in parts.items()}, file)
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".part").replace(path)

    def restore() -> None:
        found = torch.load(path, map_location=device, weights_only=True, mmap=how.get("mmap", False))
        for name, part in parts.items():
            part.load_state_dict(found[name])

    if case.mode == "save":
        return repeated(save, device)
    save()
    return repeated(restore, device)


def matmul(case: Case, how: dict[str, Any]) -> Job:
    """A product of two large square matrices."""
    assert case.size is not None
    a = torch.randn(case.size, case.size, device=device_of(case)).to(getattr(torch, case.dtype))
    return repeated(lambda: torch.matmul(a, a), device_of(case))


def repeated(once: Callable[[], Any], device: str) -> Job:
    """A job of one function."""

    def run(count: int) -> None:
        for _ in range(count):
            once()
        wait(device)

    return Job(run)


JOBS: dict[str, Callable[[Case, dict[str, Any]], Job]] = {
    "train": train,
    "forward": forward,
    "sample": sample,
    "data": data,
    "save": checkpoint,
    "restore": checkpoint,
    "matmul": matmul,
}
