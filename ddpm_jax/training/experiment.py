"""An experiment: everything that determines a run, as one value.

    experiment = Experiment(name="digits", data=Digits(), net=UNet(...), schedule=Cosine(), ...)

Two runs of equal experiments on equal hardware give equal parameters.  `data` takes any object with the right methods,
`net` any frozen dataclass with them, the other parts one derived from the class named here; it may be defined in the
experiment's own file.
"""

import dataclasses
import math
import warnings
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from ddpm_jax.data.accept import as_label
from ddpm_jax.data.given import Given
from ddpm_jax.data.source import Source
from ddpm_jax.data.sources import image_shape
from ddpm_jax.devices.axes import automatic
from ddpm_jax.devices.mesh import MeshShape
from ddpm_jax.diffusion.clipping import Clipping, NoClipping
from ddpm_jax.diffusion.denoiser import Denoiser
from ddpm_jax.diffusion.guidance import guided
from ddpm_jax.diffusion.objective import Hybrid, Objective, SquaredError
from ddpm_jax.diffusion.process import Continuous
from ddpm_jax.diffusion.schedule import Linear, Schedule
from ddpm_jax.diffusion.targets import Eps, Target, check_target
from ddpm_jax.diffusion.timesteps import TimestepRule, UniformTimesteps
from ddpm_jax.diffusion.variance import FixedSmall, Variance
from ddpm_jax.diffusion.weighting import Vlb
from ddpm_jax.errors import check_fields, require, require_int, require_number, require_part
from ddpm_jax.nets.network import Network
from ddpm_jax.sampling import Ancestral, Sampler
from ddpm_jax.training import advice
from ddpm_jax.training.average import Averaging, Ema
from ddpm_jax.training.optimizer import Adam, Optimizer
from ddpm_jax.training.plan import Plan
from ddpm_jax.training.step import Recipe

SEEDS = "0 or more, less than 2^32"

PARTS = {
    "target": Target,
    "variance": Variance,
    "objective": Objective,
    "timesteps": TimestepRule,
    "optimizer": Optimizer,
    "ema": Averaging,
    "sampler": Sampler,
    "clip": Clipping,
    "mesh": MeshShape,
}


@dataclass(frozen=True)
class Experiment:
    """What is learned, from what, and how."""

    name: str
    """Names the run's folder, runs/NAME, unless --workdir does."""
    data: Any
    """The images to learn from: a Source."""
    net: Any
    """The network: a Network."""
    schedule: Any = Linear()
    """The forward process, a Schedule or a Continuous: how much noise there is at each time."""
    target: Target = Eps()
    """What the network predicts."""
    variance: Variance = FixedSmall()
    """The variance of p(z_s | z_t), in training, sampling and the bound."""
    objective: Objective = SquaredError()
    """The loss."""
    timesteps: TimestepRule = UniformTimesteps()
    """How the timesteps of a batch are drawn."""
    optimizer: Any = Adam()
    """How gradients become updates: an Optimizer."""
    ema: Averaging = Ema()
    """The averages of the parameters, the first of which sampling uses."""
    sampler: Sampler = Ancestral()
    """How images are drawn, unless asked otherwise."""
    clip: Clipping = NoClipping()
    """How a predicted x is clipped, in sampling and in the bound; Clip() for images."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    batch_size: int = 128
    """Images in a step, over all devices."""
    accumulate: int = 1
    """Parts of the batch that go through the network one after another, to save memory; their gradients are added."""
    mesh: MeshShape = MeshShape()
    """How the devices share the work."""
    num_steps: int = 800_000
    """Steps of training."""
    seed: int = 0
    """All random numbers of the run follow from it."""
    log_every: int = 100
    """Steps between lines of metrics."""
    checkpoint_every: int = 5000
    """Steps between checkpoints; the last step always has one."""
    keep_last: int = 3
    """How many of the newest checkpoints stay on disk."""
    keep_every: int | None = None
    """Checkpoints of steps divisible by this stay for good; None for none."""
    sample_every: int = 5000
    """Steps between pictures of samples; the last step always has one."""
    num_samples: int = 64
    """Images in such a picture."""

    def __post_init__(self) -> None:
        check_fields(self)
        expected = "a Schedule, such as Linear(), or a Continuous process, such as RectifiedFlow()"
        require_part("schedule", self.schedule, Schedule | Continuous, expected)
        for name, base in PARTS.items():
            part = getattr(self, name)
            kind, like = base.__name__, type(getattr(Experiment, name)).__name__
            methods = " (a frozen dataclass with depends_on_length and build)" if base is Optimizer else ""
            article = "an" if kind[0] in "AEIOU" else "a"
            require_part(name, part, base, f"{article} {kind}, such as {like}(){methods}")
        is_source = isinstance(self.data, Source) and not isinstance(self.data, type)
        require("data", self.data, is_source, "a Source, an object with the methods __len__ and __getitem__")
        if not dataclasses.is_dataclass(self.data):
            object.__setattr__(self, "data", Given.of(self.data))
        is_spec = dataclasses.is_dataclass(self.net) and not isinstance(self.net, type)
        expected = "a Network: a frozen dataclass with init and bind, derived from ddpm_jax.nets.Network"
        require("net", self.net, is_spec and isinstance(self.net, Network), expected)
        for name in (
            "batch_size",
            "accumulate",
            "num_steps",
            "log_every",
            "checkpoint_every",
            "keep_last",
            "sample_every",
            "num_samples",
        ):
            require_int(name, getattr(self, name), 1, "at least 1")
        if self.keep_every is not None:
            require_int("keep_every", self.keep_every, 1, "None or at least 1")
        require("seed", self.seed, require_int("seed", self.seed, 0, SEEDS) < 2**32, SEEDS)
        named = isinstance(self.name, str) and bool(self.name)
        safe = named and not set(self.name) & set('/\\:*?"<>|') and not self.name.startswith(".")
        require("name", self.name, safe, "a name that a folder can have")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the data; reads its first example."""
        return image_shape(self.data)

    def model(self, params: Any, labels: Any = None, guidance: float | None = None) -> Denoiser:
        """The denoiser of the network with these parameters.

        Args:
            params: the network's parameters.
            labels: int32 [batch] for a class-conditional network; None for an unconditional one.
            guidance: the scale of classifier-free guidance; None for none.

        Raises:
            ValueError: the labels do not fit the network, or guidance is given to a network without a null label.
        """
        takes = self.net.num_classes is not None
        require("labels", labels, takes or labels is None, "None, as the network is not class-conditional")
        with jax.ensure_compile_time_eval():  # arrays rather than tracers, also inside a jitted function
            process = self.schedule.build()
        net, parts = self.net, (process, self.target, self.variance, self.clip)
        options = {"process": process} if net.takes_process else {}
        given = {} if labels is None else {"labels": labels}
        model = Denoiser(net.bind(params, **given, **options), *parts)
        if guidance is None:
            return model
        require_number("guidance", guidance, "a finite number; 1 for none")
        require("guidance", guidance, math.isfinite(guidance), "a finite number; 1 for none")
        trained = net.null_label is not None and labels is not None
        require(
            "guidance", guidance, trained, "none, as the network has no null label: train one with label_dropout > 0"
        )
        null = net.bind(params, labels=np.full_like(labels, net.null_label), **options)
        return guided(model, Denoiser(null, *parts), guidance)

    def recipe(self) -> Recipe:
        """The parts of a training step, built."""
        update = self.optimizer.build(self.num_steps)
        built = isinstance(update, optax.GradientTransformation)
        require("optimizer.build()", update, built, "an optax.GradientTransformation")
        parts = (self.target, self.variance, self.objective, self.timesteps, update, self.ema, self.flip)
        return Recipe(self.net, self.schedule.build(), *parts, self.accumulate)

    def plan(self, mesh: Mesh | None = None) -> Plan:
        """All that training needs to know of the data, the devices and the network; nothing is compiled.

        Args:
            mesh: the devices; None for those of the experiment.

        Raises:
            ValueError: the parts of the experiment do not fit together, or do not fit the data or the devices.
        """
        require("mesh", mesh, mesh is None or isinstance(mesh, Mesh), "None or a jax.sharding.Mesh")
        self.check()
        return Plan.of(self, automatic(mesh or self.mesh.build()), self.image_shape)

    def check(self) -> None:
        """Raise ValueError if the parts do not fit together or the data; warn of what is probably a mistake.

        Reads one example, compiles nothing.
        """
        self.check_without_data(self.image_shape)
        num_classes, first = self.net.num_classes, self.data[0]
        if num_classes is not None and "label" not in first:
            raise ValueError(f"net.num_classes is {num_classes}, but {type(self.data).__name__} has no labels")
        label = as_label(first["label"], 0) if "label" in first else None
        if num_classes is not None and label is not None and not 0 <= label < num_classes:
            raise ValueError(f"net.num_classes is {num_classes}, but the first example has label {label}")

    def check_without_data(self, image_shape: tuple[int, ...]) -> None:
        """`check`, for data that are not there yet but have this shape."""
        self.net.check_shape(image_shape)
        process = self.schedule.build()
        self.sampler.times(process)
        self.timesteps.check(process)
        check_target(self.target, process)
        self._check_variance()
        at_the_end = advice.of_average_at_the_end(self.ema, self.num_steps)
        for told in filter(None, (advice.of_schedule(self.schedule), at_the_end)):
            warnings.warn(told, stacklevel=2)

    def _check_variance(self) -> None:
        """Raise ValueError if the loss and the variance do not fit together."""
        name, learned = type(self.objective).__name__, self.variance.learned
        fixed = not (learned and isinstance(self.schedule, Continuous))
        require(
            "variance", self.variance, fixed, "FixedSmall() or FixedLarge(): only the bound of a chain trains another"
        )
        if learned and isinstance(self.objective, SquaredError):
            raise ValueError(f"variance is {self.variance}, which {name} does not train; use Hybrid() or FullBound()")
        if isinstance(self.objective, Hybrid) and not learned:
            raise ValueError(f"objective is {name}, which trains a variance; variance is {self.variance}, fixed")
        weighting = self.objective.weighting if isinstance(self.objective, SquaredError | Hybrid) else None
        if isinstance(weighting, Vlb) and not learned and weighting.variance != self.variance:
            raise ValueError(f"objective.weighting.variance is {weighting.variance}; variance is {self.variance}")
