"""How gradients become updates: Adam with warm-up, decay and clipping."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import optax

from ddpm_jax.errors import check_fields, require, require_int

__all__ = ["Adam", "Optimizer"]


@runtime_checkable
class Optimizer(Protocol):
    """The specification of an optimizer: a frozen dataclass that builds an optax transformation."""

    @property
    def depends_on_length(self) -> bool:
        """Whether the updates depend on num_steps, so that a run cannot be made longer later."""
        ...

    def build(self, num_steps: int) -> optax.GradientTransformation:
        """The transformation for a training of `num_steps` steps."""
        ...


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015), with the global norm of the gradient clipped before it."""

    learning_rate: float = 2e-4
    """The learning rate after warm-up."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from 0. Ho et al. 2020 take 5,000, too many for a training of
    a few thousand steps."""
    decay: Literal["constant", "cosine"] = "constant"
    """Constant after warm-up, or falling along a cosine to 0 at the end of training."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); 0 for none."""
    clip_norm: float | None = 1.0
    """The gradient over the whole batch is scaled down to this norm at most; None for no clipping."""

    def __post_init__(self) -> None:
        check_fields(self)
        require("learning_rate", self.learning_rate, 0 < self.learning_rate < float("inf"), "more than 0, and finite")
        require_int("warmup_steps", self.warmup_steps, 0, "0 or more")
        require("b1", self.b1, 0 <= self.b1 < 1, "0 or more, less than 1")
        require("b2", self.b2, 0 <= self.b2 < 1, "0 or more, less than 1")
        require("eps", self.eps, self.eps > 0, "more than 0")
        require("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        require("clip_norm", self.clip_norm, self.clip_norm is None or self.clip_norm > 0, "None or more than 0")

    @property
    def depends_on_length(self) -> bool:
        """Whether the learning rate ends at the last step."""
        return self.decay != "constant"

    def schedule(self, num_steps: int) -> optax.Schedule:
        """The learning rate as a function of the step, for a training of `num_steps` steps."""
        warmup = optax.linear_schedule(0.0, self.learning_rate, max(self.warmup_steps, 1))
        if self.decay == "cosine":
            rest = optax.cosine_decay_schedule(self.learning_rate, max(num_steps - self.warmup_steps, 1))
        else:
            rest = optax.constant_schedule(self.learning_rate)
        return optax.join_schedules([warmup, rest], [self.warmup_steps])

    def build(self, num_steps: int) -> optax.GradientTransformation:
        """The optimizer for a training of `num_steps` steps."""
        clip = optax.identity() if self.clip_norm is None else optax.clip_by_global_norm(self.clip_norm)
        rate = self.schedule(num_steps)
        return optax.chain(clip, optax.adamw(rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay))
