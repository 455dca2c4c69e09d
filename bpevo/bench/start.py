"""Cold and warm start: what a search compiles before its first result, in a process of its own."""

import collections
import concurrent.futures
import multiprocessing
import time

import jax

from bpevo.bench import engines
from bpevo.command.jax_setup import configure_jax
from bpevo.evolution import SameFunction
from bpevo.training import Trainer, Training

STAGES = {
    "trace": "/jax/core/compile/jaxpr_trace_duration",
    "lower": "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "compile": "/jax/core/compile/backend_compile_duration",  # or load from the cache
}


class Compilations:
    """Counts what jax compiles from now on, by name of the compiled function."""

    def __init__(self) -> None:
        self.names: collections.Counter[str] = collections.Counter()
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **facts: str | int) -> None:
        if event == STAGES["compile"]:
            self.names[str(facts.get("fun_name", ""))] += 1

    @property
    def count(self) -> int:
        return sum(self.names.values())


def _first_results(name: str, cache: str) -> dict[str, float]:
    """Seconds from the settings to a first epoch of 8 slots and a first key; import not counted, the epoch is."""
    configure_jax()
    jax.config.update("jax_compilation_cache_dir", cache)
    stages: dict[str, float] = collections.defaultdict(float)

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        for stage, known in STAGES.items():
            stages[stage] += duration_secs * (event == known)

    jax.monitoring.register_event_duration_secs_listener(listen)
    start = time.perf_counter()
    task, examples = engines.workload(engines.SETTINGS[name], 2)
    trainer, rules = Trainer(task, examples, capacity=8), engines.equations(8)
    duplicates = SameFunction()
    for slot, equation in enumerate(rules[: trainer.capacity]):
        duplicates.key(equation)
        trainer.start(slot, Training(equation, 1e-6))
    trainer.advance()
    seconds = time.perf_counter() - start
    again = time.perf_counter()
    trainer.advance()
    return dict(stages) | {"epoch": time.perf_counter() - again, "total": seconds}


def measure(name: str, cache: str) -> dict[str, dict[str, float]]:
    """Figures of a start with an empty `cache` and of the next one."""
    spawn = multiprocessing.get_context("spawn")
    figures = {}
    for start in ("cold", "warm"):
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            figures[start] = pool.submit(_first_results, name, cache).result()
    return figures
