"""What training and sampling ask of a network."""

from typing import Any, Protocol, runtime_checkable

from ddpm_jax.diffusion.arrays import Key, Predict


@runtime_checkable
class Network(Protocol):
    """The specification of a network: a frozen dataclass of numbers, strings and tuples, which experiment.json holds.

    Any framework may be inside.  A class that derives from this needs only `init` and `bind`:

        @dataclass(frozen=True)
        class Mine(Network):
            width: int = 64
            def init(self, key, shape): ...
            def bind(self, params): ...
    """

    @property
    def num_classes(self) -> int | None:
        """The number of class labels that `bind` is conditioned on; None for an unconditional network."""
        return None

    @property
    def null_label(self) -> int | None:
        """The label that means no label, for guidance; None if there is no such label."""
        return None

    @property
    def is_random(self) -> bool:
        """Whether `bind` takes a dropout key in training."""
        return False

    @property
    def takes_process(self) -> bool:
        """Whether `bind` takes the process, whose `label` and `input_scale` say what the network sees of t and z_t.

        A network without it sees t and z_t as they are.
        """
        return False

    def init(self, key: Key, shape: tuple[int, ...], /) -> Any:
        """Fresh parameters: a pytree of float32 arrays.

        Args:
            key: the key.
            shape: the shape of an example, without the batch.
        """
        ...

    def bind(self, params: Any, /, *args: Any, **kwargs: Any) -> Predict:
        """predict(z_t, t) with these parameters.

        Args:
            params: what `init` returned, or what training made of it.
            labels: int32 [batch], if num_classes is not None.
            dropout_key: a key, if is_random, in training.
            process: the forward process, if takes_process.
        """
        ...

    def check_shape(self, shape: tuple[int, ...], /) -> None:
        """Raise ValueError unless the network takes examples of `shape`."""
