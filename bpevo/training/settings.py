"""What a training is: everything but the equation, the seed and the learning rate."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import optax

from bpevo.training.optimizers import Optimizer, optimizer_named

NUMERICS = 1  # raised whenever the same settings give other numbers; runs of different numerics are not mixed

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def constant(steps: int, epochs: int) -> optax.Schedule:
    del steps, epochs
    return optax.constant_schedule(1.0)


def cosine(steps: int, epochs: int) -> optax.Schedule:
    """From 1 to 0 along half a cosine."""
    del epochs
    return optax.cosine_decay_schedule(1.0, steps)


def warmup_cosine(steps: int, epochs: int) -> optax.Schedule:
    """10 % of the steps rise linearly from 0 to 1, the others fall to 0 along half a cosine."""
    del epochs
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, max(1, steps // 10), max(2, steps))


def paper(steps: int, epochs: int) -> optax.Schedule:
    """`constant` up to 50 epochs, `warmup_cosine` above."""
    return (warmup_cosine if epochs > 50 else constant)(steps, epochs)


# An extension point: name -> function of a training's steps and epochs that gives the factor of the learning rate by step.
#     SCHEDULES["linear"] = lambda steps, epochs: optax.linear_schedule(1.0, 0.0, steps)
#     TrainingSettings(schedule="linear")
SCHEDULES: dict[str, Callable[[int, int], optax.Schedule]] = {
    "paper": paper,
    "constant": constant,
    "cosine": cosine,
    "warmup_cosine": warmup_cosine,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings shared by every candidate of a run; two runs that differ in one are not comparable.

    Args:
      model: name of a network, such as `wrn-16-2` or `mlp-64-64`.
      optimizer: one of `OPTIMIZERS`, or of optax such as `adamw` or `adam:b1=0.9,b2=0.95` (bpevo.training.optimizers).
      weight_decay: on kernels, parameters of two axes or more: where the optimizer has decay of its own, that one; else the L2
        gradient as a multiple of the weight; the paper's 5e-4·Σw² without the ½.
      batch_size: examples per step.
      epochs: of a training.
      schedule: one of `SCHEDULES`: learning rate over time.
      compute_dtype: one of `DTYPES`: of the network; rules compute in float32.

    Raises:
      ValueError: a name is in none of these tables, or a number is out of its range.

    >>> settings = TrainingSettings(model="mlp-64-64", optimizer="momentum", epochs=10)
    >>> settings.batch_size, settings.schedule
    (128, 'paper')
    >>> TrainingSettings(schedule="cosin")
    Traceback (most recent call last):
    ValueError: schedule must be one of paper, constant, cosine, warmup_cosine, not 'cosin'
    """

    model: str = "wrn-16-2"
    optimizer: str = "sgd"
    weight_decay: float = 1e-3
    batch_size: int = 128
    epochs: int = 20
    schedule: str = "paper"
    compute_dtype: str = "float32"

    def __post_init__(self):
        for name, valid in (("schedule", SCHEDULES), ("compute_dtype", DTYPES)):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} must be one of {', '.join(valid)}, not {getattr(self, name)!r}")
        if self.batch_size < 1 or self.epochs < 1:
            raise ValueError("batch_size and epochs must be at least 1")
        if not 0 <= self.weight_decay < 1:
            raise ValueError(f"weight_decay must lie in [0, 1), not {self.weight_decay}")
        self.make_optimizer()

    def learning_rate_factor(self, steps: int) -> optax.Schedule:
        """step -> factor of the peak learning rate over `steps` in all."""
        return SCHEDULES[self.schedule](steps, self.epochs)

    def make_optimizer(self) -> Optimizer:
        return optimizer_named(self.optimizer, self.weight_decay)
