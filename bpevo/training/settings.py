"""What a training is: everything but the equation, the seed and the learning rate."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

OPTIMIZERS = ("sgd", "momentum")
SCHEDULES = ("paper", "constant", "cosine", "warmup_cosine")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """Settings shared by every candidate of a run; two runs that differ in one are not comparable."""

    model: str = "wrn-16-2"
    optimizer: str = "sgd"  # "momentum": 0.9
    weight_decay: float = 1e-3  # L2 gradient on kernels; the paper's 5e-4·Σw² without the ½
    batch_size: int = 128
    epochs: int = 20
    schedule: str = "paper"  # constant up to 50 epochs, above 10 % linear warm-up and cosine decay
    compute_dtype: str = "float32"

    def __post_init__(self):
        for name, valid in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("compute_dtype", tuple(DTYPES))):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name} must be one of {', '.join(valid)}, not {getattr(self, name)!r}")
        if self.batch_size < 1 or self.epochs < 1:
            raise ValueError("batch_size and epochs must be at least 1")
        if not 0 <= self.weight_decay < 1:
            raise ValueError(f"weight_decay must lie in [0, 1), not {self.weight_decay}")

    @property
    def resolved_schedule(self) -> str:
        if self.schedule != "paper":
            return self.schedule
        return "warmup_cosine" if self.epochs > 50 else "constant"

    def learning_rate_factor(self, steps: int) -> optax.Schedule:
        """step -> factor of the peak learning rate over `steps` in all."""
        match self.resolved_schedule:
            case "constant":
                return optax.constant_schedule(1.0)
            case "cosine":
                return optax.cosine_decay_schedule(1.0, steps)
        return optax.warmup_cosine_decay_schedule(0.0, 1.0, max(1, steps // 10), max(2, steps))

    def optimizer_transform(self) -> optax.GradientTransformation:
        """Gradients and parameters to a direction; the learning rate comes after."""
        decay = optax.add_decayed_weights(self.weight_decay, mask=is_kernel)
        return optax.chain(decay, optax.trace(0.9)) if self.optimizer == "momentum" else decay


def is_kernel(params):
    """True where weight decay applies: kernels, not biases nor batch norm's scale and offset."""
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) == "kernel", params)
