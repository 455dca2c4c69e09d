"""A Fleet on a Ray cluster: a worker is an actor. Imported only where a pool on Ray is asked for."""

import contextlib
import dataclasses
import itertools
import math
import os
import socket
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from bpevo.workers.fleet import Answer, Cause, Epoch, Lost, Place, Prepare
from bpevo.workers.pool import PoolLost
from bpevo.workers.process import Begin, LoneProcess, WorkerProcess
from bpevo.workers.recipe import Recipe

LOOK = 2.0  # seconds between looks at the nodes
GRACE = 15.0  # seconds that Ray's control service may take to tell of them
PAUSE = 0.2  # seconds before an actor that is out of reach is asked again
DOUBT = 30.0  # seconds that an actor may be out of reach: by then Ray knows of a node that died


class _Actor:
    """In a process of its own on some machine."""

    def __init__(self, begin: Begin, alone: bool):
        self._worker = LoneProcess(begin) if alone else WorkerProcess(begin)
        self._examples: tuple[Any, Any] = (None, None)  # (reference, what it refers to): the last ones

    def place(self) -> Place:
        node = ray.get_runtime_context().get_node_id()
        return Place(node=node, name=f"{socket.gethostname()}:{os.getpid()}")

    def prepare(self, recipe: Recipe, references: list[ray.ObjectRef]) -> Answer:
        (reference,) = references  # in a list: Ray would fetch a bare one at every call
        if self._examples[0] != reference:
            self._examples = (None, None)
            self._examples = reference, ray.get(reference)
        return self._worker.prepare(dataclasses.replace(recipe, examples=self._examples[1]))

    def epoch(self, jobs: list) -> Answer:
        return self._worker.epoch(jobs)


class RayFleet:
    """Actors that Ray neither restarts nor calls again: a pool must know what was lost."""

    def __init__(self, begin: Begin, needs: Mapping[str, float], environment: Mapping[str, str]):
        """
        Args:
          begin: sets a worker's process up, see WorkerProcess.
          needs: Ray's resources of a worker, such as {"CPU": 2} or {"CPU": 1, "GPU": 1}.
          environment: variables of the workers' processes.
        """
        self._begin, self._needs = begin, dict(needs)
        own = {name: amount for name, amount in needs.items() if name not in ("CPU", "GPU")}
        self._class, self._options = (
            ray.remote(_Actor),
            {
                "num_cpus": needs.get("CPU", 0),
                "num_gpus": needs.get("GPU", 0),
                "resources": own or None,
                "max_restarts": 0,
                "max_task_retries": 0,
                "runtime_env": {"env_vars": dict(environment)},
            },
        )
        self._names = itertools.count()
        self._actors: dict[int, Any] = {}
        self._calls: dict[ray.ObjectRef, tuple[int, int]] = {}  # under way -> worker, number
        self._doubts: dict[tuple[int, int], float] = {}  # calls whose actors are out of reach, and since when
        self._examples: list[tuple[Any, ray.ObjectRef]] = []  # what is in Ray's object store
        self._nodes = rooms(self._needs)
        self._looking = threading.Thread()
        self._looked = -math.inf
        self._asked: float | None = None  # since when there has been no answer

    def nodes(self) -> Mapping[str, int]:
        return self._nodes

    def start(self, *, alone: bool, without: Collection[str]) -> int:
        where = {"label_selector": {"ray.io/node-id": f"!in({','.join(sorted(without))})"}} if without else {}
        worker = next(self._names)
        self._actors[worker] = actor = self._class.options(**self._options, **where).remote(self._begin, alone)
        self._calls[actor.place.remote()] = worker, 0
        return worker

    def call(self, worker: int, number: int, request: Prepare | Epoch) -> None:
        actor = self._actors[worker]
        if isinstance(request, Epoch):
            reference = actor.epoch.remote(list(request.jobs))
        else:
            stripped = dataclasses.replace(request.recipe, examples=None)
            reference = actor.prepare.remote(stripped, [self._stored(request.recipe.examples)])
        self._calls[reference] = worker, number

    def wait(self, seconds: float) -> list[tuple[int, int, Answer]]:
        self._look()
        if not self._calls:
            time.sleep(seconds)
            return []
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        if ready:  # and all others that are ready by now
            ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        answers = []
        for reference in ready:
            worker, number = call = self._calls.pop(reference)
            answer = self._answer(call, reference)
            if answer is None:
                self._calls[self._actors[worker].place.remote()] = call
            else:
                self._doubts.pop(call, None)
                answers.append((worker, number, answer))
        return answers

    def kill(self, worker: int) -> None:
        actor = self._actors.pop(worker)
        self._calls = {reference: call for reference, call in self._calls.items() if call[0] != worker}
        self._doubts = {call: since for call, since in self._doubts.items() if call[0] != worker}
        ray.kill(actor)

    def close(self) -> None:
        for worker in list(self._actors):
            self.kill(worker)

    def _answer(self, call: tuple[int, int], reference: ray.ObjectRef) -> Answer | None:
        """None: it must be asked again. An actor that is out of reach may have died with its node, which Ray knows later."""
        now = time.monotonic()
        try:
            answer = ray.get(reference)
        except ActorUnavailableError:
            if now - self._doubts.setdefault(call, now) < DOUBT:
                time.sleep(PAUSE)
                return None
            return Lost(reason="it is out of reach")
        except RayError as error:
            return _lost(error)
        if call in self._doubts:  # an answer to another question: that of its call went astray
            return Lost(reason="it was out of reach", cause=Cause.OUTSIDE)
        return answer

    def _stored(self, examples: Any) -> ray.ObjectRef:
        """Where the workers fetch them, each machine once."""
        for known, reference in self._examples:
            if known is examples:
                return reference
        self._examples.append((examples, ray.put(examples)))
        return self._examples[-1][1]

    def _look(self) -> None:
        """Keeps `nodes` up to date, in a thread: without its control service Ray waits, and then ends this process."""
        now = time.monotonic()
        if now - self._looked >= LOOK and not self._looking.is_alive():
            self._looked, self._asked = now, self._asked or now
            self._looking = threading.Thread(target=self._see, daemon=True)
            self._looking.start()
        if self._asked and now - self._asked > GRACE:
            self._looking.join(LOOK)  # the whole machine may have slept
            if self._asked:
                raise PoolLost(
                    "Ray's control service is gone: every finished training is kept, the same command continues"
                )

    def _see(self) -> None:
        with contextlib.suppress(Exception):  # then there was no answer
            self._nodes = rooms(self._needs)
            self._asked = None


def _lost(error: RayError) -> Lost:
    """What Ray's pages about an actor's death come to."""
    text = str(error).strip()
    if isinstance(error, ActorDiedError) and not error.actor_init_failed:
        if "node has died" in text or "node was terminated" in text:
            return Lost(reason="its node is gone", cause=Cause.OUTSIDE)
        return Lost(reason="its process died")
    return Lost(reason=text.splitlines()[-1].strip()[:200] if text else type(error).__name__)


def rooms(needs: Mapping[str, float]) -> dict[str, int]:
    """The living nodes that have room for workers with these needs, and for how many, were nothing else on them."""
    found = {}
    for node in ray.nodes():
        has = node["Resources"]
        room = int(min(has.get(name, 0) // amount for name, amount in needs.items()))
        if node["Alive"] and room:
            found[node["NodeID"]] = room
    return found
