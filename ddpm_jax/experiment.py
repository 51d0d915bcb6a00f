"""An experiment: everything that determines a run, as one value.

    experiment = Experiment(name="digits", data=Digits(), net=UNetSpec(...), schedule=Cosine(), ...)

Two runs of equal experiments on equal hardware give equal parameters.  `data` takes any object with the right methods,
`net` any frozen dataclass with them, the other parts one derived from the class named here; it may be defined in the
experiment's own file.
"""

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import jax

from ddpm_jax import concerns, specs
from ddpm_jax.check import plain, require, whole
from ddpm_jax.clipping import Clip, Clipping, as_clipping
from ddpm_jax.data.accept import as_label
from ddpm_jax.data.given import Given
from ddpm_jax.data.sources import image_shape
from ddpm_jax.objective import Hybrid, Objective, SquaredError
from ddpm_jax.sampling import Ancestral, Sampler
from ddpm_jax.schedule import Linear, ScheduleSpec
from ddpm_jax.targets import Eps, Target
from ddpm_jax.timesteps import TimestepRule, UniformTimesteps
from ddpm_jax.training.average import Averaging, Ema
from ddpm_jax.training.mesh import MeshSpec
from ddpm_jax.training.optimizer import Adam
from ddpm_jax.training.step import Recipe
from ddpm_jax.variance import FixedSmall, Variance
from ddpm_jax.weighting import Vlb

SEEDS = "0 or more, less than 2^32"

PARTS = {
    "schedule": ScheduleSpec,
    "target": Target,
    "variance": Variance,
    "objective": Objective,
    "timesteps": TimestepRule,
    "optimizer": Adam,
    "ema": Averaging,
    "sampler": Sampler,
    "clip": Clipping,
    "mesh": MeshSpec,
}


@dataclass(frozen=True)
class Experiment:
    """What is learned, from what, and how."""

    name: str
    """Names the run's folder, runs/NAME, unless --workdir does."""
    data: Any
    """The images to learn from: a Source.  One of a class that is no dataclass is kept as `Given`."""
    net: Any
    """The network: a spec with init(key, image_shape) and bind(params)."""
    schedule: ScheduleSpec = Linear()
    """How much noise each step of the forward process adds."""
    target: Target = Eps()
    """What the network predicts."""
    variance: Variance = FixedSmall()
    """The decoder's variance, in training, sampling and the bound."""
    objective: Objective = SquaredError()
    """The loss."""
    timesteps: TimestepRule = UniformTimesteps()
    """How the timesteps of a batch are drawn."""
    optimizer: Adam = Adam()
    """How gradients become updates."""
    ema: Averaging = Ema()
    """The averages of the parameters, the first of which sampling uses."""
    sampler: Sampler = Ancestral()
    """How images are drawn, unless asked otherwise."""
    clip: Clipping = Clip()
    """What becomes of a predicted x beyond [-1, 1] in sampling."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    batch_size: int = 128
    """Images in a step, over all devices."""
    accumulate: int = 1
    """Parts of the batch that go through the network one after another, to save memory; their gradients are added."""
    mesh: MeshSpec = MeshSpec()
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
        plain(self)
        object.__setattr__(self, "clip", as_clipping(self.clip))
        for name, base in PARTS.items():
            part = getattr(self, name)
            require(name, part, isinstance(part, base), f"a {base.__name__}, or of a class derived from it")
        for name, methods in {"data": ("__len__", "__getitem__"), "net": ("init", "bind")}.items():
            part = getattr(self, name)
            holds = not isinstance(part, type) and all(callable(getattr(part, method, None)) for method in methods)
            require(name, part, holds, f"an object with the methods {' and '.join(methods)}")
        if not dataclasses.is_dataclass(self.data):
            object.__setattr__(self, "data", Given.of(self.data))
        if not dataclasses.is_dataclass(self.net):
            raise ValueError(
                f"net is a {type(self.net).__name__}; expected a frozen dataclass, whose fields experiment.json can "
                "hold: put @dataclass(frozen=True) above its class and declare what it is made of as fields"
            )
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
            whole(name, getattr(self, name), 1, "at least 1")
        if self.keep_every is not None:
            whole("keep_every", self.keep_every, 1, "None or at least 1")
        require("seed", self.seed, whole("seed", self.seed, 0, SEEDS) < 2**32, SEEDS)
        named = isinstance(self.name, str) and bool(self.name)
        safe = named and not set(self.name) & set('/\\:*?"<>|') and not self.name.startswith(".")
        require("name", self.name, safe, "a name that a folder can have")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the data; reads its first example."""
        return image_shape(self.data)

    def recipe(self) -> Recipe:
        """What a training step is made of."""
        update = self.optimizer.build(self.num_steps)
        parts = (self.target, self.variance, self.objective, self.timesteps, update, self.ema, self.flip)
        return Recipe(self.net, self.schedule.build(), *parts, self.accumulate)

    def check(self) -> None:
        """Raise ValueError where the parts do not fit together, and warn of what is probably not meant.

        Reads one example, compiles nothing.
        """
        self.check_without_data(self.image_shape)
        num_classes, first = getattr(self.net, "num_classes", None), self.data[0]
        if num_classes is not None and "label" not in first:
            raise ValueError(f"net.num_classes is {num_classes}, but {type(self.data).__name__} has no labels")
        label = as_label(first["label"], 0) if "label" in first else None
        if num_classes is not None and label is not None and not 0 <= label < num_classes:
            raise ValueError(f"net.num_classes is {num_classes}, but the first example has label {label}")

    def check_without_data(self, image_shape: tuple[int, ...]) -> None:
        """Raise ValueError where the parts do not fit images of this shape, or one another; warn as `check` does."""
        if hasattr(self.net, "check_image_shape"):
            self.net.check_image_shape(image_shape)
        self.sampler.times(self.schedule.build())
        self._check_variance()
        at_the_end = concerns.of_average_at_the_end(self.ema, self.num_steps)
        for concern in filter(None, (concerns.of_schedule(self.schedule), at_the_end)):
            warnings.warn(concern, stacklevel=2)

    def _check_variance(self) -> None:
        """Raise ValueError where the loss does not teach a learned variance, or takes another one than the decoder."""
        name, learned = type(self.objective).__name__, self.variance.learned
        if learned and isinstance(self.objective, SquaredError):
            raise ValueError(f"variance is {self.variance}, which {name} does not teach; use Hybrid() or FullBound()")
        if isinstance(self.objective, Hybrid) and not learned:
            raise ValueError(f"objective is {name}, which teaches a variance; variance is {self.variance}, fixed")
        weighting = getattr(self.objective, "weighting", None)
        if isinstance(weighting, Vlb) and not learned and weighting.variance != self.variance:
            raise ValueError(f"objective.weighting.variance is {weighting.variance}; variance is {self.variance}")

    def parameter_shapes(self, image_shape: tuple[int, ...]) -> Any:
        """The parameters' shapes and dtypes, at no cost."""
        return jax.eval_shape(lambda key: self.net.init(key, image_shape), jax.random.key(0))


# What may change when a run is resumed: how long it is, and what it writes.
FREE_TO_CHANGE = frozenset(
    {
        "name",
        "num_steps",
        "accumulate",
        "mesh",
        "sampler",
        "clip",
        "log_every",
        "checkpoint_every",
        "keep_last",
        "keep_every",
    }
    | {"sample_every", "num_samples"}
)


# What weights that were imported know; the rest may change until the first step is taken, and these fields of net.
KNOWN_BY_WEIGHTS = ("net", "schedule", "target")
UNKNOWN_TO_WEIGHTS = ("net.dropout:", "net.dtype:", "net.remat:")


def conflicts(old: Experiment, new: Experiment, begun: bool = True) -> list[str]:
    """Why a run of `old` cannot be resumed as `new`: the fields that differ, none where it can.

    The length may change only if the learning rate does not depend on it.  begun: False where no step is taken yet.
    """
    free = FREE_TO_CHANGE - ({"num_steps"} if old.optimizer.decay != "constant" else set())
    fixed = [field.name for field in dataclasses.fields(old) if field.name not in free]
    fixed = [name for name in fixed if begun or name in KNOWN_BY_WEIGHTS]
    encoded_old, encoded_new = specs.encode(old), specs.encode(new)
    lines = [line for name in fixed for line in specs.differences(encoded_old[name], encoded_new[name], name)]
    lines = [line for line in lines if begun or not line.startswith(UNKNOWN_TO_WEIGHTS)]
    if isinstance(old.data, Given) and isinstance(new.data, Given):  # what they hold is compared by itself
        lines = [line for line in lines if not line.startswith("data.digest:")]
    changed = [(name, cls) for name in fixed for cls in specs.changed_code(getattr(old, name), getattr(new, name))]
    return lines + [f"{name}: the code of {cls} has changed" for name, cls in changed]
