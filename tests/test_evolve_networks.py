"""Networks as people write them: with the rule `g` every gradient is autodiff's, also by data, and rules run in them."""

import functools
import os
import pathlib
import subprocess
import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from test_evolve import normal

from bpevo.layers.evolve import evolve

P = {"a": normal(1, 3, 4), "b": normal(2, 4, 5), "c": normal(3, 5, 2), "w": normal(4, 4, 4)}
X, SEQUENCES, GATE, MIX = normal(5, 6, 3), normal(6, 2, 6, 3), normal(7, 6, 4), normal(8, 6, 6)
SLOPE, PRUNED, ROOTS, HELD = jnp.float32(0.2), jnp.arange(20.0).reshape(4, 5) % 3, normal(9, 4, 5), normal(10, 6, 3)
relu = jax.nn.relu


def scalar_gate(p, x):
    return (jax.nn.sigmoid((x @ p["a"]).mean()) * jnp.tile(x, (1, 2))[:, :4]) @ p["b"]


def quantised(p, x):
    return relu(relu(x @ p["a"]) @ (p["b"] + lax.stop_gradient(jnp.round(p["b"]) - p["b"]))) @ p["c"]


def leaky(p, x):
    h = x @ p["a"]
    return jnp.where(h > 0, h, SLOPE * h) @ p["b"]


def gated_loop(p, x, m):
    def step(h, gate):
        return relu((h * gate) @ p["w"]), None

    return lax.scan(step, relu(x @ p["a"]), jnp.stack([m, m - 1]))[0] @ p["b"]


def gated_ensemble(p, x, m):
    members = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), p)
    return jax.vmap(lambda q: (relu(x @ q["a"]) * m) @ q["b"])(members).sum(0)


# Arguments after the parameters; the network; its units' activations.
NETWORKS = {
    "positions joined with samples": ((SEQUENCES,), lambda p, x: relu(x @ p["a"]).reshape(-1, 4) @ p["b"], ["relu"]),
    "edges of a graph": (
        (X, jnp.array([0, 1, 2, 3, 4, 5, 0, 2, 4])),
        lambda p, x, ends: relu(relu(x @ p["a"])[ends] @ p["b"]) @ p["c"],
        ["relu", "relu"],
    ),
    "some samples": ((X,), lambda p, x: relu(relu(x @ p["a"])[:3] @ p["b"]) @ p["c"], ["relu", "relu"]),
    "a set": ((X,), lambda p, x: relu(relu(x @ p["a"]).mean(0, keepdims=True) @ p["b"]) @ p["c"], ["relu", "relu"]),
    "a gate": ((X, GATE), lambda p, x, m: (relu(x @ p["a"]) * m) @ p["b"], ["relu"]),
    "gates in a loop": ((X, GATE), gated_loop, ["identity", "identity"]),
    "a gate of an ensemble": ((X, GATE), gated_ensemble, ["relu"]),
    "an adjacency matrix": ((X, MIX), lambda p, x, m: (m @ relu(x @ p["a"])) @ p["b"], ["relu"]),
    "a gate made of the input": ((X,), lambda p, x: (relu(x @ p["a"]) * jnp.tanh(x[:, :1])) @ p["b"], ["relu"]),
    "a mask, and rows of an index": (
        (X, jnp.arange(24).reshape(6, 4) % 2 > 0, jnp.array([0, 5, 3])),
        lambda p, x, m, i: (relu(x @ p["a"]) * m)[i] @ p["b"],
        ["relu"],
    ),
    "a gate that is one number": ((X,), scalar_gate, ["identity"]),
    "a spectrum": ((X,), lambda p, x: jnp.abs(jnp.fft.fft(x @ p["a"])) @ p["b"], ["identity"]),
    "ranks": (
        (X,),
        lambda p, x: (jnp.argsort(x @ p["a"], -1) < 2).astype(jnp.float32) @ p["b"],
        ["identity"],
    ),
    "quantised weights": ((X,), quantised, ["relu", "relu"]),
    "pruned weights": ((X,), lambda p, x: relu(relu(x @ p["a"]) @ (p["b"] * PRUNED)) @ p["c"], ["relu", "relu"]),
    "weights that are frozen in part": (
        (X,),
        lambda p, x: relu(relu(x @ p["a"]) @ jnp.where(PRUNED > 0, p["b"], ROOTS).T.T) @ p["c"],
        ["relu", "relu"],
    ),
    "data that the function holds": (
        (GATE,),
        lambda p, m: ((relu(HELD @ p["a"]) * m) @ (p["b"] * PRUNED)) @ p["c"],
        ["relu", "identity"],
    ),
    "a slope in an array": ((X,), leaky, None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_by_parameters_and_by_data_are_autodiffs(name):
    arguments, network, activations = NETWORKS[name]
    net = evolve(network, "g")
    state = net.init(jax.random.key(0), P, *arguments)
    found = [unit.activation for unit in net.last]
    assert found == activations if activations else "identity" not in found
    places = tuple(range(1 + len(arguments)))
    ours = jax.grad(lambda *given: jnp.sum(net(given[0], state, *given[1:]) ** 2), places, allow_int=True)(
        P, *arguments
    )
    true = jax.grad(lambda *given: jnp.sum(network(*given) ** 2), places, allow_int=True)(P, *arguments)
    for a, e in zip(jax.tree.leaves(ours), jax.tree.leaves(true), strict=True):
        if e.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4 * float(jnp.abs(e).max()) + 1e-7)


@pytest.mark.parametrize(
    "name", ["positions joined with samples", "edges of a graph", "a gate", "a gate that is one number"]
)
def test_rules_of_other_information_train_in_them(name):
    arguments, network, _ = NETWORKS[name]
    net = evolve(network, "unit_row2(fa) + ((bn(hp_next) @ W.T) * mean(dh))")
    state = net.init(jax.random.key(0), P, *arguments)
    gradients, following = jax.grad(lambda p, s: jnp.sum(net(p, s, *arguments) ** 2), (0, 1))(P, state)
    assert jnp.abs(gradients["a"]).max() > 0 and all(
        jnp.isfinite(x).all() for x in jax.tree.leaves((gradients, following))
    )


def test_a_unit_that_a_call_does_not_run_keeps_its_state():
    def heads(p, x, head):
        h = relu(x @ p["a"])
        return {"b": relu(h @ p["b"]), "w": relu(h @ p["w"])}[head]

    net = evolve(heads, "fa")
    state = net.init(jax.random.key(0), P, X, "b")
    following = jax.grad(lambda s: jnp.sum(net(P, s, X, "b") ** 2))(state)
    jax.tree.map(np.testing.assert_array_equal, following, state)
    assert jnp.abs(state["w"]["constants"]["R"]).max() > 0


def test_numbers_among_parameters_have_gradients_and_leaves_keep_their_names():
    def network(p, x):
        return relu(x * p["gain"]) @ (p["attention"]["value"] * p["gain"])

    params = {"attention": {"value": P["a"]}, "gain": 2.0}
    net = evolve(network, "g")
    state = net.init(jax.random.key(0), params, X)
    assert [unit.path for unit in net.last] == ["attention/value + gain"]
    ours = jax.grad(lambda p: jnp.sum(net(p, state, X) ** 2))(params)
    true = jax.grad(lambda p: jnp.sum(network(p, X) ** 2))(params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), ours, true)


def test_the_state_may_be_frozen():
    net = evolve(lambda p, x: relu(x @ p["a"]) @ p["b"], "bn(g)")
    state = net.init(jax.random.key(0), P, X)
    of = [jax.grad(lambda p, s=s: jnp.sum(net(p, s, X) ** 2))(P) for s in (state, flax.core.freeze(state))]
    jax.tree.map(np.testing.assert_array_equal, *of)


def test_a_product_that_is_not_taken_apart_is_listed():
    params = P | {"e": normal(9, 2, 4, 5)}
    net = evolve(lambda p, x: lax.ragged_dot(relu(x @ p["a"]), p["e"], jnp.array([2, 4])) @ p["c"], "g")
    net.init(jax.random.key(0), params, X)
    assert [unit.path for unit in net.last] == ["c"]
    (why,) = [left.why for left in net.last.left_alone if left.what == "e"]
    assert why.startswith("inside a ragged_dot")


MESHES = """
import jax, jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from bpevo import evolve

p = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 5))}
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    lies = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.device_put(jnp.ones((6, 3)), lies)
    def network(p, x):
        h = jax.nn.relu(x @ p["a"])
        return (lax.with_sharding_constraint(h, lies) if kind == AxisType.Auto else h) @ p["b"]
    net = evolve(network, "g")
    try:
        state = net.init(jax.random.key(0), p, x)
        print([unit.activation for unit in net.last], jax.jit(jax.grad(lambda p: jnp.sum(net(p, state, x))))(p)["a"][0, 0])
    except TypeError as error:
        print(error)
"""


def test_arrays_over_devices_train_and_types_that_say_where_they_lie_are_refused():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", MESHES], env=environment, cwd=root, capture_output=True, text=True)
    automatic, explicit = done.stdout.splitlines()
    assert automatic == "['relu'] 30.0"  # six samples, five outputs
    assert (
        "network was given an array float32[6@data,3]" in explicit
        and "axis_types=(jax.sharding.AxisType.Auto" in explicit
    )
