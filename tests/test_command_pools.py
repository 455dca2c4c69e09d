"""A pool as a command opens it and the doctor's look at a cluster, where Ray is only made up."""

import functools
import sys
import types

import pytest

import bpevo.workers
from bpevo.command import clusters, pools, process, selfcheck
from bpevo.runs import RunError, provenance


class Ray:
    """bpevo.workers.ray_cluster and ray_fleet of a cluster of three nodes."""

    def __init__(self):
        self.needed = {"CPU": 2.0}  # of a worker
        self.free = {"a" * 9: 3, "b" * 9: 2, "c" * 9: 0}  # workers
        self.error: Exception | None = None
        self.wanted: list[tuple] = []
        self.open = 0

    def Cluster(self, address):  # noqa: N802
        if self.error:
            raise self.error
        self.open += 1
        return types.SimpleNamespace(address=address or "own:1", close=self._close)

    def _close(self):
        self.open -= 1

    def needs(self, workers, cpus=None):
        self.wanted.append((workers, cpus))
        if not self.needed:
            raise ConnectionError("nothing to give")
        return self.needed

    def rooms(self, needs):
        assert needs == self.needed
        return {node: room for node, room in self.free.items() if room}

    def environment(self, needs):
        return {"FOR": str(needs)}

    def living(self):
        return {
            "a" * 9: {"CPU": 6.0, "GPU": 0.0},
            "b" * 9: {"CPU": 4.0, "TPU": 8.0, "memory": 1.0},
            "c" * 9: {"memory": 1.0},
        }

    def host(self, node):
        return f"host {node[0]}"


@pytest.fixture
def ray(monkeypatch):
    made = Ray()
    for name in ("ray_cluster", "ray_fleet"):
        monkeypatch.setitem(sys.modules, f"bpevo.workers.{name}", made)
        monkeypatch.setattr(bpevo.workers, name, made, raising=False)
    return made


@pytest.fixture
def interruption():
    """Counts how often its handlers are installed again."""
    made = types.SimpleNamespace(restored=0)

    def restore():
        made.restored += 1

    made.restore = restore
    return made


def shared(ray, runs, interruption, **plan) -> tuple:
    with pools.shared(pools.PoolPlan(**{"address": None, "workers": 2} | plan), runs, interruption) as (at_once, own):
        return at_once, own.address, own.workers, own.cpus, ray.open


def test_a_cluster_has_room_for_as_many_runs_as_their_workers_fit_in(ray, interruption):
    assert shared(ray, 3, interruption) == (2, "own:1", 2, 2, 1)  # 5 // 2; its own stays open while they run
    assert ray.wanted == [(6, None)] and ray.open == 0 and interruption.restored == 1
    assert shared(ray, 3, interruption, address="head:1", workers=6, cpus=2) == (1, "head:1", 6, 2, 0)
    assert ray.wanted[1] == (18, 2)
    ray.needed = {"CPU": 1.0, "GPU": 1.0}
    assert shared(ray, 1, interruption, workers=5) == (1, "own:1", 5, None, 1)  # an accelerator needs no CPUs told
    ray.needed = {}
    with pytest.raises(RunError, match="^nothing to give$"):
        shared(ray, 1, interruption)
    assert ray.open == 0


def test_a_cluster_that_cannot_be_reached_or_a_ray_that_is_missing_is_a_message(ray, interruption, monkeypatch):
    ray.error = ConnectionError("cannot reach it")
    with pytest.raises(RunError, match="^cannot reach it$"), pools.connected("head:1", interruption):
        pass
    for name in ("ray_cluster", "ray_fleet"):
        monkeypatch.delattr(bpevo.workers, name)
        monkeypatch.setitem(sys.modules, f"bpevo.workers.{name}", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    message = r"^--pool=ray needs Ray, and .* is not installed: pip install '\.\[cluster\]' in a clone of bpevo, on every machine"
    with pytest.raises(RunError, match=message), pools.connected(None, interruption):
        pass
    assert interruption.restored == 0


def test_a_pool_is_opened_with_a_first_worker_and_closed(ray, interruption, monkeypatch):
    done = []

    class Pool:
        def __init__(self, fleet, recipe, workers, versions, say):
            done.append((fleet, recipe, workers, versions))
            self.meet = lambda: done.append("met")
            self.close = lambda: done.append("closed")

    ray.RayFleet = lambda begin, needs, environment: (begin.func, begin.args, needs, environment)
    monkeypatch.setattr(pools, "Pool", Pool)
    monkeypatch.setattr(pools, "expected", lambda: {"jax": "1"})
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    monkeypatch.delenv("JAX_DEFAULT_MATMUL_PRECISION", raising=False)
    plan = pools.PoolPlan(address=None, workers=3, cpus=2)
    with pools.opened(plan, "a recipe", True, interruption, print) as pool:
        assert isinstance(pool, Pool) and done.pop() == "met" and ray.open == 1
    fleet = (pools.begin, (True,), {"CPU": 2.0}, {"XLA_FLAGS": "--mine", "FOR": "{'CPU': 2.0}"})
    assert done == [(fleet, "a recipe", 3, {"jax": "1"}), "closed"] and ray.open == 0 and ray.wanted == [(3, 2)]


def test_a_worker_begins_with_the_set_up_of_jax_and_the_check_if_it_is_asked_for(monkeypatch):
    begun = []
    monkeypatch.setattr(pools, "configure_jax", lambda: begun.append("jax"))
    monkeypatch.setattr(selfcheck, "check", lambda: begun.append("check"))
    own = provenance.numerics(provenance.versions())
    assert pools.begin(False) == own and begun == ["jax"]
    assert pools.begin(True) == own and begun == ["jax", "jax", "check"]
    assert pools.expected() == {name: value for name, value in own.items() if name not in ("device", "rules")}


@pytest.fixture
def looked_at(ray, interruption, monkeypatch):
    """The doctor's findings on a cluster whose workers say what is given."""
    monkeypatch.setattr(pools, "expected", lambda: {"jax": "1"})
    monkeypatch.setattr(pools, "environment", lambda needs: {"NAME": "x"})

    def look(said: dict) -> list[clusters.Finding]:
        def asked(begin: functools.partial, needs, environment, seconds):
            assert (begin.func, begin.keywords) == (pools.begin, {"check": True})
            assert (needs, environment, seconds) == (ray.needed, {"NAME": "x"}, 300.0)
            return said

        ray.asked = asked
        return list(clusters.cluster("head:1", interruption))

    return look


def test_the_doctor_tells_the_nodes_of_a_cluster_and_what_their_workers_say(ray, looked_at, monkeypatch):
    ray.needed = {"CPU": 1.0, "GPU": 0.5}
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    found = looked_at({"a" * 9: {"jax": "1", "device": "T"}, "b" * 9: "silent"})
    assert found == [
        ("cluster", "head:1: 3 nodes, guarded not: whoever reaches its ports runs code there, see README.md", ""),
        ("room", "5 workers of 1 CPU, 0.5 GPU, were nothing else on it", ""),
        ("node aaaaaaaa", "host a, 6 CPU, room for 3", ""),
        ("node bbbbbbbb", "host b, 4 CPU, 8 TPU, room for 2", ""),
        ("node cccccccc", "host c, nothing to give, room for 0", ""),
        ("worker aaaaaaaa", "computes right numbers: jax 1, device T", ""),
        ("worker bbbbbbbb", "of no use", "silent"),
    ]
    ray.free = {}
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    found = looked_at({})
    assert found[0][1] == "head:1: 3 nodes, guarded by a token"
    assert found[1] == ("room", "0 workers of 1 CPU, 0.5 GPU, were nothing else on it", "no node has room for a worker")


def test_a_cluster_with_nothing_to_give_or_out_of_reach_is_a_fault(ray, interruption):
    ray.needed = {}
    assert list(clusters.cluster("head:1", interruption)) == [("cluster", "head:1", "nothing to give")]
    ray.error = ConnectionError("out of reach")
    assert list(clusters.cluster("head:1", interruption)) == [("cluster", "head:1", "out of reach")] and ray.open == 0


@pytest.mark.parametrize("error", ["ModuleNotFoundError: x", "No module named 'ray'"])
def test_what_is_not_installed_on_a_node_is_to_be_installed(error):
    ((what, state, fault),) = clusters.compared({}, {"a": error})
    assert (what, state) == ("worker a", "of no use")
    assert fault == f"{error}: install bpevo there, with what it needs, for the Python that Ray runs with"


def test_where_nothing_was_installed_nothing_is_restored(ray):
    with pools.connected("head:1", process.Interruption()) as cluster:
        assert cluster.address == "head:1"
