"""Ways to train candidates, timed on the same network, data and equations."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bpevo import data
from bpevo.evolution.space import SearchSpace, feasible
from bpevo.rules import CompiledRule, Equation, compile
from bpevo.training import DTYPES, Examples, Task, Trainer, Training, TrainingSettings, to_examples
from bpevo.training.slots import slots
from bpevo.training.task import Order


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained: `model` on images [B, size, size, channels]."""

    name: str
    model: str
    size: int
    channels: int
    batch: int
    steps: int  # of a timed call
    compute_dtype: str = "float32"


SETTINGS = {
    s.name: s
    for s in (
        Setting("digits", "wrn-10-1", 8, 1, 64, 20),
        Setting("wrn-10-1", "wrn-10-1", 32, 3, 128, 2),
        Setting("wrn-16-2", "wrn-16-2", 32, 3, 128, 1),
        Setting("tiny", "mlp-8", 8, 1, 16, 2),  # to try a measurement
    )
}


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to train, compiled and run once."""

    name: str
    call: Callable[[], object]
    steps: int  # of candidates, in a call
    compile: float  # seconds to trace, lower and compile all its programs
    programs: int
    bytes_per_slot: Callable[[], float | None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one way took. Times in seconds."""

    name: str
    steps: Sequence[float]  # per candidate and step, of each round
    compile: float  # trace, lower and compile all its programs
    programs: int
    bytes_per_slot: float | None = None

    @property
    def step(self) -> float:
        return statistics.median(self.steps)

    @property
    def spread(self) -> float:
        return (max(self.steps) - min(self.steps)) / self.step

    def ratio(self, other: "Timing") -> float:
        """The median of the rounds' ratios: what slows a whole round down is in both."""
        return statistics.median(a / b for a, b in zip(self.steps, other.steps, strict=True))


def measured(ways: Sequence[Way], repeats: int) -> list[Timing]:
    """All ways in turn, `repeats` rounds of them."""
    rounds = [[timed(way.call, 1)[0] / way.steps for way in ways] for _ in range(repeats)]
    return [
        Timing(way.name, steps, way.compile, way.programs, way.bytes_per_slot())
        for way, steps in zip(ways, zip(*rounds, strict=True), strict=True)
    ]


COLUMNS = (
    "engine", "ms/step", "vs plain", "vs specialised", "spread", "images/s", "A1 sizes/h", "of peak", "compile s", "programs",
    "peak MiB/slot",
)  # fmt: skip


def cells(timing: Timing, plain: Timing, specialised: Timing | None, setting: Setting, seconds: float) -> list[str]:
    """The texts of COLUMNS; `seconds` is what a step's FLOPs take at the device's peak."""
    return [
        timing.name,
        f"{1e3 * timing.step:.2f}",
        f"{timing.ratio(plain):.2f}x",
        f"{timing.ratio(specialised):.2f}x" if specialised else "",
        f"{timing.spread:.0%}",
        f"{setting.batch / timing.step:,.0f}",
        f"{3600 / (timing.step * 351 * 20):,.1f}",  # 20 epochs of 45,000 examples in batches of 128
        f"{seconds / timing.step:.0%}",
        f"{timing.compile:.1f}",
        str(timing.programs),
        "" if timing.bytes_per_slot is None else f"{timing.bytes_per_slot / 2**20:.0f}",
    ]


def equations(count: int, seed: int = 0) -> list[Equation]:
    """Random feasible equations of the whole space."""
    rng, space = np.random.default_rng(seed), SearchSpace()
    found: list[Equation] = []
    while len(found) < count:
        equation = space.random(rng)
        if feasible(equation):
            found.append(equation)
    return found


def workload(setting: Setting, epochs: int = 1) -> tuple[Task, Examples]:
    """Random images: the time of a step does not depend on them. One epoch is `setting.steps` steps."""
    rng = np.random.default_rng(0)
    shape = (setting.steps * setting.batch, setting.size, setting.size, setting.channels)
    images = rng.integers(0, 256, shape, np.uint8)
    labels = rng.integers(0, 10, len(images)).astype(np.int32)
    split = data.Split(
        train_images=images,
        train_labels=labels,
        eval_images=images[: setting.batch],
        eval_labels=labels[: setting.batch],
    )
    settings = TrainingSettings(
        model=setting.model, batch_size=setting.batch, epochs=epochs, compute_dtype=setting.compute_dtype
    )
    crop = setting.size == 32
    return Task(settings=settings, classes=10, examples=len(images), flip=crop, pad=4 if crop else 0), to_examples(
        split, setting.batch
    )


def timed(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of `call` and the spread over `repeats`."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    return median, (max(times) - min(times)) / median


def interpreted(setting: Setting, capacity: int, rules: Sequence[Equation]) -> Way:
    """Equations as data in `capacity` slots over all devices."""
    task, examples = workload(setting, 10_000)
    start = time.perf_counter()
    trainer = Trainer(task, examples, capacity=capacity)
    for k in range(trainer.capacity):
        trainer.start(k, Training(rules[k % len(rules)], 1e-6))
    trainer.advance()
    compiling = time.perf_counter() - start - timed(trainer.advance, 1)[0]
    steps = trainer.capacity * setting.steps
    return Way(f"slots, K = {trainer.capacity}", trainer.advance, steps, compiling, 1, lambda: trainer.bytes_per_slot)


def order_of(rule) -> Order:
    return Order(
        rule=rule,
        seed=np.uint32(0),
        replicate=np.int32(0),
        learning_rate=np.float32(1e-6),
        epoch=np.int32(0),
        active=np.bool_(True),
        held_out=np.bool_(False),
    )


def _specialised_call(task: Task, examples: Examples, rule: CompiledRule, device: jax.Device):
    """A program of one equation's own, and its arguments, on one device."""
    order = jax.tree.map(lambda x: np.asarray(x)[None], order_of(rule))
    blank = task.blank(rule, examples.mean.shape)
    state = jax.tree.map(lambda s: jnp.zeros((1, *s.shape), s.dtype), blank)
    epoch = functools.partial(task.epoch, loops=device.platform == "cpu")
    program = slots(epoch, [device], donate=False)
    arguments = jax.device_put((order, state, examples), device)
    return program, arguments


def specialised(setting: Setting, rules: Sequence[Equation]) -> Way:
    """A program per equation, dispatched over all devices at once."""
    task, examples = workload(setting)
    devices = jax.local_devices()
    start = time.perf_counter()
    calls = []
    for i, equation in enumerate(rules):
        program, arguments = _specialised_call(task, examples, compile(equation), devices[i % len(devices)])
        calls.append((program.lower(*arguments).compile(), arguments))
    compiling = time.perf_counter() - start

    def run():
        return [program(*arguments) for program, arguments in calls]

    jax.block_until_ready(run())
    return Way("specialised", run, len(rules) * setting.steps, compiling, len(rules))


def naive(setting: Setting, rules: Sequence[Equation]) -> tuple[float, float]:
    """Seconds per equation of the naive search: a fresh jit for each, one after the other; and their deviation."""
    task, examples = workload(setting)
    times = []
    for equation in rules:
        start = time.perf_counter()
        jax.clear_caches()
        program, arguments = _specialised_call(task, examples, compile(equation), jax.local_devices()[0])
        jax.device_get(program(*arguments)[1])
        times.append(time.perf_counter() - start)
    return statistics.mean(times), statistics.stdev(times)


class PlainWideResNet(nn.Module):
    """The same network from plain Flax layers."""

    depth: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        def conv(features, kernel, stride=1):
            return nn.Conv(features, (kernel, kernel), stride, use_bias=False, dtype=self.dtype)

        def norm(x):
            return nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=self.dtype)(x)

        x = conv(16, 3)(x)
        for group, channels in enumerate((16, 32, 64)):
            for block in range((self.depth - 4) // 6):
                stride = 2 if group and not block else 1
                features = channels * self.width
                h = nn.relu(norm(x))
                y = conv(features, 3)(nn.relu(norm(conv(features, 3, stride)(h))))
                x = (x if x.shape[-1] == features else conv(features, 1, stride)(h)) + y
        return nn.Dense(10)(jnp.mean(nn.relu(norm(x)), (1, 2)))


class PlainMLP(nn.Module):
    hidden: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for features in self.hidden:
            x = nn.relu(nn.Dense(features, dtype=self.dtype)(x))
        return nn.Dense(10, dtype=self.dtype)(x)


def plain_network(setting: Setting) -> nn.Module:
    """The network of plain Flax layers that bpevo's of the setting is measured against."""
    family, *numbers = setting.model.split("-")
    sizes, dtype = [int(n) for n in numbers], DTYPES[setting.compute_dtype]
    return PlainWideResNet(sizes[0], sizes[1], dtype) if family == "wrn" else PlainMLP(tuple(sizes), dtype)


def plain(setting: Setting) -> tuple[Way, float]:
    """Plain Flax layers, jax.grad and optax, backprop only, a jitted step at a time; and its FLOPs a step by XLA."""
    model = plain_network(setting)
    _, examples = workload(setting)
    optimizer = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(1e-6))

    @jax.jit
    def step(variables, state, images, labels, key):
        x = data.augment(key, data.normalise(images, examples.mean), setting.size == 32, 4 if setting.size == 32 else 0)

        def loss(params):
            logits, new = model.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean(), new

        (_, new), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradient, state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **new}, state

    images, labels = examples.train_images[: setting.batch], examples.train_labels[: setting.batch]
    variables = model.init(jax.random.key(0), jnp.zeros((1, *images.shape[1:])))
    arguments = jax.device_put((variables, optimizer.init(variables["params"]), images, labels, jax.random.key(0)))
    start = time.perf_counter()
    compiled = step.lower(*arguments).compile()
    compiling = time.perf_counter() - start

    def run():
        current = arguments
        for _ in range(setting.steps):
            current = (*compiled(*current), *arguments[2:])
        return current[0]

    jax.block_until_ready(run())
    cost = compiled.cost_analysis() or {}
    return Way("plain Flax, backprop", run, setting.steps, compiling, 1), float(cost.get("flops", 0.0))


def peak_flops(repeats: int = 5) -> float:
    """FLOP/s of a large float32 matrix product, the device's practical peak."""
    n = 2048
    x = jnp.ones((n, n))
    multiply = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(multiply(x, x))
    return 2 * n**3 / timed(lambda: multiply(x, x), repeats)[0]
