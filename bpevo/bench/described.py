"""The search's programs, compiled for accelerators that are not there, and what they would do in a step."""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from bpevo import rules
from bpevo.bench import engines, sample, targets, thunks
from bpevo.bench.accounting import Account, Counts, Habits
from bpevo.rules import Equation, InterpretedRule, Kernel, Rule, TiledRule, assemble, blank_program, compile, takes
from bpevo.rules.kernels import PLATFORMS
from bpevo.rules.tile_programs import reads_both_products
from bpevo.training import Examples, Task, TrainingSettings
from bpevo.training.graphs import COMMAND_BUFFERS, LEAST
from bpevo.training.slots import shardings, slots

SAMPLE = 64  # random equations, the first feasible ones of seed 0
EXAMPLES, EVALUATED = 45_000, 5_000  # of a data set; a step does not depend on it


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program of K slots, with its costs; times are this machine's."""

    account: Account
    steps: int  # of its loop over an epoch
    slots: int  # of one device
    temporaries: float  # bytes a slot, by XLA's account
    memory: float  # bytes a slot at the peak, states and examples included
    seconds: float  # to trace, lower and compile
    processor_seconds: float

    def counts(self, habits: Habits | None = None) -> Counts:
        """What a slot's step does."""
        return self.account.turn(self.steps, habits).over(self.slots)


@dataclasses.dataclass(frozen=True)
class Row:
    """What a step of a slot does, in the mean over equations and for the worst."""

    name: str
    programs: Sequence[Program]
    mean: Counts
    worst: Counts  # the one that moves most


def task(setting: engines.Setting) -> tuple[Task, Examples]:
    """What a search trains on: shapes alone."""
    settings = TrainingSettings(
        model=setting.model, batch_size=setting.batch, epochs=50, compute_dtype=setting.compute_dtype
    )
    crop = setting.size == 32
    shape = (setting.size, setting.size, setting.channels)
    batches = -(-EVALUATED // setting.batch)

    def array(dims: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype)

    examples = Examples(
        train_images=array((EXAMPLES, *shape), np.uint8),
        train_labels=array((EXAMPLES,), np.int32),
        eval_images=array((batches, setting.batch, *shape), np.uint8),
        eval_labels=array((batches, setting.batch), np.int32),
        held_out=array((batches, setting.batch), np.bool_),
        mean=array(shape, np.float32),
    )
    return Task(settings=settings, classes=10, examples=EXAMPLES, flip=crop, pad=4 if crop else 0), examples


def options(devices: Sequence[jax.Device]) -> dict[str, str]:
    """XLA's, as a search compiles on such devices where they can do all."""
    graphs = devices[0].platform == "gpu" and jax.__version_info__ >= LEAST
    return dict(COMMAND_BUFFERS) if graphs else {}


def program(setting: engines.Setting, rule: Rule, capacity: int, devices: Sequence[jax.Device]) -> Program:
    """An epoch of `capacity` slots over `devices`, compiled and counted."""
    work, examples = task(setting)
    sharded, replicated = shardings(devices)

    def stacked(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((capacity, *np.shape(x)), x.dtype, sharding=sharded), tree)

    shared = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), examples)
    epoch = slots(work.epoch, devices, "vmap", options=options(devices))
    clocks = time.perf_counter(), time.process_time()
    with targets.as_if_on(devices[0]):
        lowered = epoch.lower(stacked(engines.order_of(rule)), stacked(work.blank(rule, examples.mean.shape)), shared)
    with tempfile.TemporaryDirectory() as folder:
        gpu = devices[0].platform == "gpu"
        compiled = lowered.compile({"xla_dump_to": folder} if gpu else None)
        seconds, processor = (
            c() - start for c, start in zip((time.perf_counter, time.process_time), clocks, strict=True)
        )
        host = thunks.read(folder) if gpu else ()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None  # XLA's compilers tell both
    each = capacity // len(devices)
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Program(
        account=Account(text, host),
        steps=work.steps_per_epoch,
        slots=each,
        temporaries=memory.temp_size_in_bytes / each,
        memory=(peak + memory.temp_size_in_bytes) / each,
        seconds=seconds,
        processor_seconds=processor,
    )


def backprop(setting: engines.Setting, capacity: int, devices: Sequence[jax.Device]) -> list[Row]:
    """Slots that all train with backprop."""
    made = program(setting, compile("g"), capacity, devices)
    return [Row(f"backprop, K = {capacity}", [made], made.counts(), made.counts())]


def specialised(
    setting: engines.Setting, capacity: int, equations: Sequence[Equation], devices: Sequence[jax.Device]
) -> list[Row]:
    """A program for each equation, which all its slots train with."""
    made = [program(setting, compile(e), capacity, devices) for e in equations]
    return [_row(f"specialised, K = {capacity}, {len(made)} rules", made, [p.counts() for p in made])] if made else []


def in_slots(
    setting: engines.Setting, capacity: int, equations: Sequence[Equation], first: int, devices: Sequence[jax.Device]
) -> list[Row]:
    """The slots with equations as data, as a search has them on such devices: for groups of `equations`, and for the `first`
    alone, those of `specialised`. Where there is a kernel, for those that it takes."""
    name = f"slots, K = {capacity}"
    if devices[0].platform not in PLATFORMS:
        made_once = program(setting, interpreter(), capacity, devices)
        return _of_data(name, lambda group: made_once, capacity, equations, first)
    kernel = Kernel(devices[0].platform)

    @functools.cache
    def made(both: bool) -> Program:
        return program(setting, TiledRule(blank_program(3), kernel, both), capacity, devices)

    def of_group(group: Sequence[rules.Program]) -> Program:
        return made(any(map(reads_both_products, group)))

    equations, first = [e for e in equations if takes(assemble(e))], sum(takes(assemble(e)) for e in equations[:first])
    return _of_data(f"{name}, {len(equations)} equations in a kernel", of_group, capacity, equations, first)


def beside(setting: engines.Setting, equations: Sequence[Equation], devices: Sequence[jax.Device]) -> list[Row]:
    """The program of a search for what its kernel does not take, a slot: as if it were all equations."""
    made = program(setting, interpreter(), len(devices), devices)
    return _of_data("interpreter, K = 1", lambda group: made, 1, equations, 0)


def interpreter() -> Rule:
    return InterpretedRule(blank_program(3))


def _of_data(
    name: str,
    program_of: Callable[[Sequence[rules.Program]], Program],
    capacity: int,
    equations: Sequence[Equation],
    first: int,
) -> list[Row]:
    groups = sample.groups(equations, capacity)
    made = [program_of(group) for group in groups]
    counts = [program.counts(sample.habits(group)) for program, group in zip(made, groups, strict=True)]
    rows = [_row(f"{name}, {len(groups)} groups", list(dict.fromkeys(made)), counts)]
    if first:
        (group,) = sample.groups(equations[:first], first)
        same = program_of(group).counts(sample.habits(group))
        rows.append(Row(f"  the {first} rules", [program_of(group)], same, same))
    return rows


def _row(name: str, programs: Sequence[Program], each: Sequence[Counts]) -> Row:
    mean = Counts()
    for counts in each:
        mean = mean.plus(counts, 1 / len(each))
    return Row(name, programs, mean, max(each, key=lambda c: c.bytes + c.fast_bytes))


def measure(setting: engines.Setting, target: str, capacities: Sequence[int], first: int) -> Iterator[Row | str]:
    """Compiles everything for a target: rows as they come, and in words what its compiler refused, as where memory ends.

    Raises RunError (see targets).
    """
    devices = targets.described(target)
    equations = engines.equations(SAMPLE)
    capacities = [k for k in capacities if k % len(devices) == 0]
    parts: list[tuple[str, Callable[[], Sequence[Row]]]] = []
    for k in capacities:
        parts += [
            (f"backprop, K = {k}", functools.partial(backprop, setting, k, devices)),
            (f"specialised, K = {k}", functools.partial(specialised, setting, k, equations[:first], devices)),
            (f"slots, K = {k}", functools.partial(in_slots, setting, k, equations, first, devices)),
        ]
    if devices[0].platform in PLATFORMS:
        parts.append(("interpreter, K = 1", functools.partial(beside, setting, equations, devices)))
    for name, compile_part in parts:
        try:
            yield from compile_part()
        except jax.errors.JaxRuntimeError as error:
            yield f"{name}: {(str(error).splitlines() or ['refused'])[0]}"
