"""What runs on Ray, over a stand-in for its module and in virtual time: the fleet, its actors, and the cluster under them."""

import dataclasses
import importlib
import os
import socket
import sys
import types

import pytest
from test_runs import job

import bpevo.workers
from bpevo.command import clusters, pools
from bpevo.runs import RunError
from bpevo.workers import PoolLost
from bpevo.workers.fleet import Cause, Epoch, Lost, Place, Prepare


class RayError(Exception):
    pass


class ActorUnavailableError(RayError):
    pass


class ActorDiedError(RayError):
    actor_init_failed = False


class GetTimeoutError(RayError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception):
        super().__init__("pages\nof frames")
        self.cause = cause


class AuthenticationError(RayError):
    pass


class Reference:
    """What a call gives: nothing yet, a value or an error."""

    def __init__(self, asked: tuple):
        self.asked, self.given = asked, []


class Actor:
    def __init__(self, ray, options: dict, arguments: tuple):
        self._ray, self.options, self.arguments = ray, options, arguments

    def __getattr__(self, name):
        return types.SimpleNamespace(remote=lambda *arguments: self._ray.call(self, name, arguments))


class Thread:
    """Runs when it is started."""

    alive, joined = False, 0.0

    def __init__(self, target=None, daemon=None):
        assert target is None or daemon is True  # Ray may never answer it
        self._target = target

    def start(self):
        self._target()

    def is_alive(self):
        return Thread.alive

    def join(self, seconds):
        Thread.joined = seconds


def node(name: str, alive: bool = True, **resources: float) -> dict:
    there = {"NodeManagerHostname": f"host-{name}", "NodeManagerAddress": f"10.0.0.{ord(name) - ord('a')}"}
    return {"NodeID": name, "Alive": alive, "Resources": resources, **there}


class Ray:
    """The module's functions, and what was asked of them."""

    def __init__(self):
        self.time = 100.0
        self.known: list | Exception = [node("a", CPU=8.0), node("b", CPU=4.0), node("c", alive=False, CPU=64.0)]
        self.actors, self.calls, self.killed, self.stored, self.fetched = [], [], [], [], []
        self.tasks: dict = {}  # by node: what a function gives there
        self.options: dict = {}  # of the last one
        self.begun: list[dict] = []
        self.ended = 0
        self.failure: Exception | None = None
        self.settings = types.SimpleNamespace(
            ENABLE_RAY_CLUSTERS_ENV_VAR="RAY_ENABLE_CLUSTERS", ENABLE_RAY_CLUSTER=True
        )
        self.worker = types.SimpleNamespace(print_to_stdstream=print)
        self.read: list = []  # settings, whenever they are read

    def modules(self) -> dict[str, types.ModuleType]:
        errors = (RayError, ActorUnavailableError, ActorDiedError, GetTimeoutError, RayTaskError)
        exceptions = {error.__name__: error for error in errors}
        loader = types.SimpleNamespace(reset_cache=lambda: self.read.append("token"))
        contents = {
            "ray.exceptions": exceptions,
            "ray._private": {
                "ray_constants": self.settings,
                "services": types.SimpleNamespace(get_ray_address_from_environment=lambda *_: "10.0.0.9:6379"),
                "worker": self.worker,
            },
            "ray._raylet": {
                "Config": types.SimpleNamespace(initialize=self.read.append),
                "AuthenticationTokenLoader": types.SimpleNamespace(instance=lambda: loader),
            },
            "ray.util.scheduling_strategies": {"NodeAffinitySchedulingStrategy": lambda node, soft: (node, soft)},
            "ray": {"ObjectRef": Reference, "exceptions": types.SimpleNamespace(**exceptions)}
            | {name: getattr(self, name) for name in ("nodes", "remote", "wait", "get", "put", "kill", "init")}
            | {name: getattr(self, name) for name in ("shutdown", "get_runtime_context")},
        }
        made = {}
        for name, content in contents.items():
            made[name] = types.ModuleType(name)
            vars(made[name]).update(content)
        return made

    def nodes(self):
        if isinstance(self.known, Exception):
            raise self.known
        return self.known

    def remote(self, what):
        return types.SimpleNamespace(
            options=lambda **options: types.SimpleNamespace(
                remote=lambda *arguments: self._make(what, options, arguments)
            )
        )

    def _make(self, what, options, arguments):
        self.options = options
        if isinstance(what, type):
            self.actors.append(Actor(self, options, arguments))
            return self.actors[-1]
        made = Reference((what, arguments))
        found = self.tasks[options["scheduling_strategy"][0]]
        made.given += [what(*arguments) if found == "begun" else found] if found else []
        return made

    def call(self, actor, name, arguments):
        self.calls.append(Reference((actor, name, arguments)))
        return self.calls[-1]

    def wait(self, references, num_returns, timeout):
        ready = [r for r in references if r.given][:num_returns]
        if len(ready) < num_returns:
            self.time += timeout
        return ready, [r for r in references if r not in ready]

    def get(self, reference, timeout=None):
        self.fetched.append(reference)
        if not reference.given:
            assert timeout == 0
            raise GetTimeoutError
        if isinstance(reference.given[0], Exception):
            raise reference.given[0]
        return reference.given[0]

    def put(self, value):
        self.stored.append(value)
        made = Reference(("put",))
        made.given.append(value)
        return made

    def kill(self, actor):
        self.killed.append(actor)

    def init(self, **options):
        self.begun.append(options)
        if self.failure:
            raise self.failure

    def shutdown(self):
        self.ended += 1
        raise RuntimeError("nothing is running")

    def get_runtime_context(self):
        return types.SimpleNamespace(gcs_address="127.0.0.1:6379", get_node_id=lambda: "n1")

    def sleep(self, seconds):
        self.time += seconds


@pytest.fixture
def ray():
    made = Ray()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_CLUSTERS", "RAY_worker_niceness", *pools.PASSED_ON):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for name, module in made.modules().items():
            patch.setitem(sys.modules, name, module)
        for name in ("ray_cluster", "ray_fleet"):  # anew, also where the real ones are there
            patch.setattr(bpevo.workers, name, None, raising=False)
            patch.setitem(sys.modules, f"bpevo.workers.{name}", None)
            del sys.modules[f"bpevo.workers.{name}"]
            setattr(made, name, importlib.import_module(f"bpevo.workers.{name}"))
        patch.setattr(made.ray_fleet, "time", types.SimpleNamespace(monotonic=lambda: made.time, sleep=made.sleep))
        patch.setattr(made.ray_fleet, "threading", types.SimpleNamespace(Thread=Thread))
        patch.setattr(Thread, "alive", False)
        patch.setattr(made.ray_cluster, "usable_cpus", lambda: 3)
        yield made


def begin() -> dict[str, str]:
    return {"jax": "1"}


@pytest.fixture
def fleet(ray):
    return ray.ray_fleet.RayFleet(begin, {"CPU": 2}, {"X": "1"})


# Rooms and needs.


def test_a_node_has_room_for_as_many_workers_as_its_scarcest_resource_allows(ray):
    rooms = ray.ray_fleet.rooms
    assert rooms({"CPU": 2}) == {"a": 4, "b": 2} and rooms({"CPU": 3}) == {"a": 2, "b": 1}
    assert rooms({"CPU": 8}) == {"a": 1} and rooms({"CPU": 1, "GPU": 1}) == {}
    ray.known = [node("a", CPU=8.0, GPU=3.0), node("b", CPU=1.0, GPU=3.0)]
    assert rooms({"CPU": 1, "GPU": 1}) == {"a": 3, "b": 1}
    assert ray.ray_cluster.living() == {"a": {"CPU": 8.0, "GPU": 3.0}, "b": {"CPU": 1.0, "GPU": 3.0}}
    assert ray.ray_cluster.host("b") == "host-b at 10.0.0.1"


@pytest.mark.parametrize(
    ("resources", "workers", "each", "needs"),
    [
        ([{"CPU": 8}, {"CPU": 4.0}, {}], None, None, {"CPU": 4}),
        ([{"CPU": 8}, {"CPU": 4}], 3, None, {"CPU": 4}),
        ([{"CPU": 8}, {"CPU": 4}], 5, None, {"CPU": 2}),
        ([{"CPU": 6}], 2, None, {"CPU": 3}),
        ([{"CPU": 6}], 4, None, {"CPU": 1}),
        ([{"CPU": 8}, {"CPU": 4}], 99, None, {"CPU": 1}),
        ([{"CPU": 8}, {"CPU": 4}], 99, 8, {"CPU": 8}),
        ([{"CPU": 8}, {"CPU": 64, "GPU": 8}], 3, None, {"CPU": 1, "GPU": 1}),
        ([{"CPU": 8}, {"CPU": 64, "TPU": 4}, {"TPU": 1}], 3, None, {"CPU": 1, "TPU": 4}),
    ],
)
def test_a_worker_has_an_accelerator_or_a_share_of_the_cpus(ray, resources, workers, each, needs):
    ray.known = [*(node("a", **r) for r in resources), node("z", alive=False, GPU=1)]
    assert ray.ray_cluster.needs(workers, each) == needs


@pytest.mark.parametrize(
    "resources, each, match",
    [
        ([{"CPU": 8}, {"CPU": 4}], 9, "no node of the Ray cluster has 9 CPUs for a worker, the largest has 8"),
        ([{}], None, "the Ray cluster has neither GPUs, TPUs nor CPUs to give"),
        ([], None, "the Ray cluster has neither GPUs, TPUs nor CPUs to give"),
    ],
)
def test_a_cluster_without_room_for_a_worker_is_refused(ray, resources, each, match):
    ray.known = [node("a", **r) for r in resources]
    with pytest.raises(ConnectionError, match=f"^{match}$"):
        ray.ray_cluster.needs(1, each)


def test_only_a_worker_without_an_accelerator_is_told_its_cpus(ray):
    environment, quiet = ray.ray_cluster.environment, {"TF_CPP_MIN_LOG_LEVEL": "3"}
    assert environment({"CPU": 3.0}) == quiet | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "3"}
    assert environment({"CPU": 1, "GPU": 1}) == quiet


# The fleet.


def test_a_worker_is_an_actor_that_ray_never_restarts_with_what_it_needs(ray):
    fleet = ray.ray_fleet.RayFleet(begin, {"CPU": 1, "TPU": 4}, {"X": "1"})
    assert [fleet.start(alone=False, without=()), fleet.start(alone=True, without={"b", "a"})] == [0, 1]
    options = {
        "num_cpus": 1, "num_gpus": 0, "resources": {"TPU": 4}, "max_restarts": 0, "max_task_retries": 0,
        "runtime_env": {"env_vars": {"X": "1"}},
    }  # fmt: skip
    first, second = ray.actors
    assert (first.options, first.arguments) == (options, (begin, False))
    assert second.options == options | {"label_selector": {"ray.io/node-id": "!in(a,b)"}}
    assert second.arguments == (begin, True)
    for needs, cpus, gpus in (({"CPU": 1, "GPU": 1}, 1, 1), ({"GPU": 2}, 0, 2)):
        ray.ray_fleet.RayFleet(begin, needs, {}).start(alone=False, without=())
        assert (ray.options["num_cpus"], ray.options["num_gpus"], ray.options["resources"]) == (cpus, gpus, None)


def test_a_wait_is_over_with_the_first_answers_or_the_time(ray, fleet):
    assert fleet.wait(0.25) == [] and ray.time == 100.25  # nothing is under way
    places = [Place(node="a", name=str(n)) for n in range(3)]
    assert [fleet.start(alone=False, without=()) for _ in places] == [0, 1, 2]
    assert fleet.wait(0.5) == [] and ray.time == 100.75
    for place, reference in zip(places[:2], ray.calls, strict=False):
        assert reference.asked[1:] == ("place", ())
        reference.given.append(place)
    assert fleet.wait(0.5) == [(0, 0, places[0]), (1, 0, places[1])] and ray.time == 100.75
    assert fleet.wait(0.25) == [] and ray.time == 101.0
    fleet.kill(2)
    ray.calls[2].given.append(places[2])
    assert ray.killed == ray.actors[2:] and fleet.wait(1.0) == []  # of a killed one nothing is heard
    fleet.close()
    assert ray.killed == [ray.actors[n] for n in (2, 0, 1)]


@dataclasses.dataclass(frozen=True)
class Recipe:
    examples: object
    seed: int = 7


def test_examples_are_stored_once_and_jobs_go_as_they_are(ray, fleet):
    large, others = [1, 2], [1, 2]
    worker = fleet.start(alone=False, without=())
    for examples in (large, large, others, large):
        fleet.call(worker, 1, Prepare(recipe=Recipe(examples)))
    assert [stored is examples for stored, examples in zip(ray.stored, (large, others), strict=True)] == [True, True]
    sent = [reference.asked[2] for reference in ray.calls[1:]]
    assert all(recipe == Recipe(None) for recipe, _ in sent)
    assert [reference.given[0] is large for _, (reference,) in sent] == [True, True, False, True]
    fleet.call(worker, 9, Epoch(jobs=(job("g"),)))
    assert ray.calls[-1].asked[1:] == ("epoch", ([job("g")],))
    ray.calls[-1].given.append("a report")
    assert fleet.wait(1.0) == [(worker, 9, "a report")]


def test_an_actor_out_of_reach_is_asked_twice_a_second_and_given_up_after_half_a_minute(ray, fleet):
    worker = fleet.start(alone=False, without=())
    fleet.call(worker, 5, Epoch(jobs=()))
    ray.calls[1].given.append(ActorUnavailableError())
    begin = ray.time
    assert fleet.wait(0.0) == [] and len(ray.calls) == 2
    ray.time = begin + 0.25
    assert fleet.wait(0.0) == [] and len(ray.calls) == 2
    ray.time = begin + 0.5
    assert fleet.wait(0.0) == [] and len(ray.calls) == 3 and ray.calls[2].asked[1] == "place"
    ray.calls[2].given.append(ActorUnavailableError())
    ray.time = begin + 29.5
    assert fleet.wait(0.0) == []
    ray.time = begin + 30.0
    fleet.wait(0.0)
    ray.calls[3].given.append(ActorUnavailableError())
    assert fleet.wait(0.0) == [(worker, 5, Lost(reason="it is out of reach"))]


def test_an_actor_that_is_asked_late_is_given_up_at_once(ray, fleet):
    worker = fleet.start(alone=False, without=())
    ray.calls[0].given.append(ActorUnavailableError())
    begin = ray.time
    assert fleet.wait(0.0) == []
    ray.time = begin + 31.0  # the driver was busy
    fleet.wait(0.0)
    ray.calls[1].given.append(ActorUnavailableError())
    assert fleet.wait(0.0) == [(worker, 0, Lost(reason="it is out of reach"))]


def test_an_actor_that_is_back_has_lost_its_answer_and_is_not_to_blame(ray, fleet):
    worker = fleet.start(alone=False, without=())
    ray.calls[0].given.append(ActorUnavailableError())
    fleet.wait(0.0)
    ray.time += 0.5
    fleet.wait(0.0)
    ray.calls[1].given.append(Place(node="a", name="a"))
    assert fleet.wait(0.0) == [(worker, 0, Lost(reason="it was out of reach", cause=Cause.OUTSIDE))]
    fleet.call(worker, 0, Epoch(jobs=()))  # nothing of it is left
    ray.calls[2].given.append("a report")
    assert fleet.wait(0.0) == [(worker, 0, "a report")]
    fleet.call(worker, 1, Epoch(jobs=()))
    ray.calls[3].given.append(ActorUnavailableError())
    fleet.wait(0.0)
    fleet.kill(worker)
    ray.time += 0.5
    assert fleet.wait(0.0) == [] and len(ray.calls) == 4  # nobody is asked for it


def died(text: str, at_start: bool = False) -> ActorDiedError:
    error = ActorDiedError(text)
    error.actor_init_failed = at_start
    return error


@pytest.mark.parametrize(
    "error, reason, cause",
    [
        (died("pages\nits node has died"), "its node is gone", Cause.OUTSIDE),
        (died("the node was terminated."), "its node is gone", Cause.OUTSIDE),
        (died("worker died"), "its process died", Cause.UNKNOWN),
        (died("node has died\n  ValueError: no \n", at_start=True), "ValueError: no", Cause.UNKNOWN),
        (RayError("x" * 300), "x" * 200, Cause.UNKNOWN),
        (RayError(" \n"), "RayError", Cause.UNKNOWN),
    ],
)
def test_what_ray_says_of_a_death_is_told_in_a_line(ray, fleet, error, reason, cause):
    fleet.start(alone=False, without=())
    ray.calls[0].given.append(error)
    assert fleet.wait(1.0) == [(0, 0, Lost(reason=reason, cause=cause))]


def test_nodes_are_looked_at_every_two_seconds(ray, fleet):
    assert fleet.nodes() == {"a": 4, "b": 2}
    fleet.wait(1.5)
    ray.known = [node("d", CPU=2.0)]
    for seconds, nodes in ((0.5, {"a": 4, "b": 2}), (0.0, {"d": 1})):
        fleet.wait(seconds)
        assert fleet.nodes() == nodes
    ray.known, ray.time = [], ray.time + 60.0
    Thread.alive = True  # the last look is not over
    fleet.wait(0.0)
    assert fleet.nodes() == {"d": 1}


def test_a_control_service_that_tells_nothing_for_fifteen_seconds_ends_the_run(ray, fleet):
    ray.known = ConnectionError("gone")
    begin = ray.time
    for _ in range(15):
        fleet.wait(1.0)
    fleet.wait(0.0)
    assert ray.time == begin + 15.0
    ray.time += 0.25
    with pytest.raises(
        PoolLost, match="^Ray's control service is gone: every finished training is kept, the same command"
    ):
        fleet.wait(0.0)
    assert Thread.joined == 2.0
    ray.known = []
    ray.time += 2.0
    fleet.wait(0.0)  # it was there again
    assert fleet.nodes() == {}


# In an actor.


class Worker:
    def __init__(self, begin):
        self.begin, self.recipes = begin, []

    def prepare(self, recipe):
        self.recipes.append(recipe)
        return "ready"

    def epoch(self, jobs):
        return jobs


def test_an_actor_fetches_its_examples_when_they_are_others_and_says_where_it_is(ray, monkeypatch):
    for name in ("WorkerProcess", "LoneProcess"):
        monkeypatch.setattr(ray.ray_fleet, name, type(name, (Worker,), {}))
    assert type(ray.ray_fleet._Actor(begin, True)._worker).__name__ == "LoneProcess"
    actor = ray.ray_fleet._Actor(begin, False)
    assert type(actor._worker).__name__ == "WorkerProcess" and actor._worker.begin is begin
    assert actor.place() == Place(node="n1", name=f"{socket.gethostname()}:{os.getpid()}")
    first, second = ray.put("images"), ray.put("others")
    for reference in (first, first, second):
        assert actor.prepare(Recipe(None), [reference]) == "ready"
    assert actor._worker.recipes == [Recipe("images"), Recipe("images"), Recipe("others")]
    assert ray.fetched == [first, second] and actor.epoch([1]) == [1]


# The cluster.

QUIET = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}


def test_a_cluster_of_ones_own_is_on_loopback_behind_a_token_and_leaves_nothing(ray):
    before = dict(os.environ)
    cluster = ray.ray_cluster.Cluster(None)
    own = {"address": "local", "num_cpus": 3, "include_dashboard": False, "object_store_memory": 268_435_456}
    assert ray.begun == [QUIET | own | {"_node_ip_address": "127.0.0.1"}] and cluster.address == "127.0.0.1:6379"
    set_now = {name: value for name, value in os.environ.items() if before.get(name) != value}
    assert len(set_now.pop("RAY_AUTH_TOKEN")) == 64
    assert set_now == {"RAY_ENABLE_CLUSTERS": "0", "RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}
    assert ray.settings.ENABLE_RAY_CLUSTER is False and ray.worker.print_to_stdstream("pages", False) is None
    cluster.close()
    assert dict(os.environ) == before and ray.settings.ENABLE_RAY_CLUSTER is True
    assert ray.ended == 1 and ray.worker.print_to_stdstream is print and ray.read == ["", "token"] * 2


@pytest.mark.parametrize(
    "address, reached, options, enabled",
    [
        ("head:6379", ("head", 6379), {"address": "head:6379"}, True),
        ("auto", ("10.0.0.9", 6379), {"address": "10.0.0.9:6379"}, True),
        ("[::1]:80", ("::1", 80), {"address": "[::1]:80"}, True),
        ("127.0.0.7:9", ("127.0.0.7", 9), {"address": "127.0.0.7:9", "_node_ip_address": "127.0.0.7"}, False),
    ],
)
def test_a_running_cluster_is_reached_by_its_address(ray, monkeypatch, address, reached, options, enabled):
    asked = []

    def connection(where, timeout):
        asked.append((where, timeout))
        return types.SimpleNamespace(close=lambda: asked.append("closed"))

    monkeypatch.setattr(ray.ray_cluster, "socket", types.SimpleNamespace(create_connection=connection))
    cluster = ray.ray_cluster.Cluster(address)
    assert asked == [(reached, 20.0), "closed"] and ray.begun == [QUIET | options]
    assert ray.settings.ENABLE_RAY_CLUSTER is enabled and "RAY_AUTH_TOKEN" not in os.environ
    cluster.close()
    assert ray.settings.ENABLE_RAY_CLUSTER is True


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:x", "http://head:6379", "head:63 79"])
def test_what_is_no_address_is_told_what_one_is(ray, address):
    with pytest.raises(ConnectionError) as caught:
        ray.ray_cluster.Cluster(address)
    said = "it must be HOST:PORT of its head node, where ray start says 6379, or auto"
    assert str(caught.value) == f"cannot reach a Ray cluster at {address}: {said}" and not ray.begun and ray.ended == 1


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


TOKEN = "its token is missing here, or another one: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's"


@pytest.mark.parametrize(
    "error, reason",
    [
        (RuntimeError(" no room\nfor it"), "no room"),
        (OSError(), "OSError"),
        (RayError("why"), "why"),
        (AuthenticationError("pages"), TOKEN),
        (caused(RuntimeError("pages"), AuthenticationError("pages")), TOKEN),
    ],
)
def test_a_cluster_that_does_not_begin_says_why_and_leaves_nothing(ray, error, reason):
    before, ray.failure = dict(os.environ), error
    with pytest.raises(ConnectionError) as caught:
        ray.ray_cluster.Cluster(None)
    assert str(caught.value) == f"cannot start a Ray cluster on this machine: {reason}"
    assert dict(os.environ) == before and ray.ended == 1 and ray.worker.print_to_stdstream is print


def test_every_node_with_what_a_worker_needs_is_asked_and_silence_is_an_answer(ray):
    ray.known = [node(name, CPU=4.0, GPU=1.0) for name in "abcde"] + [node("f", CPU=4.0), node("g", CPU=4.0, GPU=0.5)]
    ray.tasks = {
        "a": "begun",
        "b": None,
        "c": RayTaskError(ValueError("no GPU")),
        "d": RayError("two\n  lines" + "x" * 300),
    }
    ray.tasks["e"] = {"jax": "2"}
    begin_time = ray.time
    said = ray.ray_cluster.asked(begin, {"CPU": 1, "GPU": 1}, {"X": "1"}, 300.0)
    assert said == {
        "a": {"jax": "1"},
        "b": "no answer in 300 s: its accelerators are taken by others, or it hangs",
        "c": "ValueError: no GPU",
        "d": "two lines" + "x" * 291,
        "e": {"jax": "2"},
    }
    assert ray.time == begin_time + 300.0
    assert ray.options == {
        "num_cpus": 0, "num_gpus": 1, "resources": None, "max_retries": 0, "runtime_env": {"env_vars": {"X": "1"}},
        "scheduling_strategy": ("e", False),
    }  # fmt: skip
    ray.known = [node("a", CPU=4.0, TPU=4.0)]
    ray.ray_cluster.asked(begin, {"CPU": 4, "TPU": 4}, {}, 300.0)
    assert (ray.options["num_gpus"], ray.options["resources"]) == (0, {"TPU": 4}) and ray.time == begin_time + 300.0


# What commands make of it.


class Interruption:
    restored = 0

    def restore(self):
        self.restored += 1


def test_a_shared_cluster_has_room_for_so_many_runs_at_once(ray, monkeypatch):
    monkeypatch.setattr(ray.ray_cluster.socket, "create_connection", lambda *_, **__: types.SimpleNamespace(close=int))
    interruption = Interruption()
    for address, workers, runs, expected, cpus in (
        ("head:6379", 2, 3, 3, 2),  # 6 workers of 2 CPUs have room on 8 and 4
        ("head:6379", 2, 99, 6, 1),  # 12 of one
        (None, 5, 1, 1, 2),
        (None, 13, 2, 1, 1),  # not even one run's
    ):
        ended = ray.ended
        plan = pools.PoolPlan(address=address, workers=workers)
        with pools.shared(plan, runs, interruption) as (at_once, own):
            assert (at_once, own.cpus, own.workers) == (expected, cpus, workers)
            assert own.address == (address or "127.0.0.1:6379") and ray.ended == ended + (address is not None)
        assert ray.ended == ended + 1
    assert interruption.restored == 4
    ray.known = [node("a", CPU=8.0, GPU=4.0)]
    with pools.shared(pools.PoolPlan(address=None, workers=2), 9, interruption) as (at_once, own):
        assert (at_once, own.cpus) == (2, None)


def test_without_ray_or_without_a_cluster_one_line_says_what_to_do(ray, monkeypatch):
    ray.failure = RuntimeError("no")
    with pytest.raises(RunError, match="^cannot start a Ray cluster on this machine: no$"), pools.connected(None, None):
        pass
    ray.known = []
    with pytest.raises(RunError, match="^the Ray cluster has neither"):
        pools._needs(None, None)
    for name in ("bpevo.workers.ray_cluster", "ray"):
        monkeypatch.setitem(sys.modules, name, None)
    del sys.modules["bpevo.workers.ray_cluster"]
    monkeypatch.delattr(bpevo.workers, "ray_cluster")
    needed = r"^--pool=ray needs Ray, and ray is not installed: pip install '\.\[cluster\]' in a clone of bpevo, on every machine"
    with pytest.raises(RunError, match=needed), pools.connected(None, None):
        pass


def test_workers_get_the_settings_that_decide_numbers_and_a_run_those_of_its_workers(ray, monkeypatch):
    pool = types.SimpleNamespace(versions={"device": "H100", "rules": "tiles", "jax": "other"})
    own = pools.versions(None)
    assert pools.versions(pool) == own | {"device": "pool x H100", "rules": "tiles"}
    assert not {"device", "rules"} & pools.expected().keys() and pools.expected()["jax"] == own["jax"]
    monkeypatch.setenv("XLA_FLAGS", "--a")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    assert pools.environment({"CPU": 1, "GPU": 1}) == quiet | {"XLA_FLAGS": "--a"}
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    assert pools.environment({"CPU": 1, "TPU": 1})["JAX_DEFAULT_MATMUL_PRECISION"] == "highest"


def test_the_doctor_tells_each_nodes_room_and_what_is_missing(ray, monkeypatch):
    monkeypatch.setattr(ray.ray_cluster.socket, "create_connection", lambda *_, **__: types.SimpleNamespace(close=int))
    monkeypatch.setattr(pools, "begin", lambda check: pools.expected() | {"checked": str(check)})
    ray.known = [node("a", CPU=8.0), node("b", CPU=4.0, GPU=0.0), node("e")]
    ray.tasks = {"a": "begun", "b": RayError("ModuleNotFoundError: bpevo")}
    found = list(clusters.cluster("head:6379", Interruption()))
    guarded = "guarded not: whoever reaches its ports runs code there, see README.md"
    assert found[:5] == [
        ("cluster", f"head:6379: 3 nodes, {guarded}", ""),
        ("room", "3 workers of 4 CPU, were nothing else on it", ""),
        ("node a", "host-a at 10.0.0.0, 8 CPU, room for 2", ""),
        ("node b", "host-b at 10.0.0.1, 4 CPU, room for 1", ""),
        ("node e", "host-e at 10.0.0.4, nothing to give, room for 0", ""),
    ]
    assert found[5][::2] == ("worker a", "") and found[5][1].startswith("computes right numbers: bpevo ")
    assert found[6] == ("worker b", "of no use", f"ModuleNotFoundError: bpevo{clusters._REMEDY}")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    ray.known = [node("a", GPU=1.0, CPU=0.5)]
    found = list(clusters.cluster("head:6379", Interruption()))
    assert found[0] == ("cluster", "head:6379: 1 nodes, guarded by a token", "")
    assert found[1] == ("room", "0 workers of 1 CPU, 1 GPU, were nothing else on it", "no node has room for a worker")
    ray.known = []
    none = "the Ray cluster has neither GPUs, TPUs nor CPUs to give"
    assert list(clusters.cluster("head:6379", Interruption())) == [("cluster", "head:6379", none)]
    (what, address, fault) = next(clusters.cluster("head", Interruption()))
    assert (what, address) == ("cluster", "head") and fault.startswith("cannot reach a Ray cluster at head: it must be")
