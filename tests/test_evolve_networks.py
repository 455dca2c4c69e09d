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
from test_evolve import FAST, assert_trees_agree, normal

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


# What lies between a product with `a` and one with `b`: the activation of the unit `b`; None: of several operations.

MASK = jnp.arange(24).reshape(6, 4) % 3 > 0


@jax.custom_jvp
def clipped(x):
    return jnp.where(x > 0, x, jnp.zeros_like(x))


clipped.defjvps(lambda t, y, x: t * (x > 0))


@jax.custom_jvp
def running_sum(x):
    return jnp.cumsum(x, 1)


running_sum.defjvps(lambda t, y, x: jnp.cumsum(t, 1))


@jax.custom_jvp
def in_two(x):
    return jnp.tanh(x), x


in_two.defjvp(lambda x, t: (in_two(*x), (t[0] * (1 - jnp.tanh(x[0]) ** 2), t[0])))


BETWEEN = {
    "zeros around": (lambda h, p: jnp.pad(relu(h)[:, :2], ((0, 0), (1, 1))), "relu"),
    "ones around": (lambda h, p: jnp.pad(relu(h)[:, :2], ((0, 0), (1, 1)), constant_values=1.0), "identity"),
    "zeros outside of a mask": (lambda h, p: jnp.where(MASK, relu(h), 0.0), "relu"),
    "zeros inside of a mask": (lambda h, p: jnp.where(MASK, 0.0, relu(h)), "relu"),
    "ones outside of a mask": (lambda h, p: jnp.where(MASK, relu(h), 1.0), "identity"),
    "numbers outside of a mask": (lambda h, p: jnp.where(MASK, relu(h), jnp.arange(4.0)), "identity"),
    "data outside of a mask": (lambda h, p: jnp.where(MASK, relu(h), GATE), "identity"),
    "factors": (lambda h, p: relu(h) * jnp.arange(4.0), "relu"),
    "factors that are trained": (lambda h, p: relu(h) * p["gain"], "identity"),
    "a mixing matrix and a factor": (lambda h, p: 0.5 * (MIX @ relu(h)), "relu"),
    "a reciprocal": (lambda h, p: 1 / (1 + relu(h)), None),
    "a constant": (lambda h, p: h + 1.0, "identity"),
    "a square": (lambda h, p: h * h, "mul"),
    "two functions": (lambda h, p: jnp.tanh(relu(h)), "relu+tanh"),
    "a function of a running sum": (lambda h, p: relu(jnp.cumsum(h, 1)), "relu"),
    "a function of what is reversed": (lambda h, p: relu(h[:, ::-1]), "relu"),
    "a function of what is sorted": (lambda h, p: relu(jnp.sort(h, 1)), "relu"),
    "a softmax": (lambda h, p: jax.nn.softmax(h), "identity"),
    "a slope in an array, and a mask of the weight": (lambda h, p: jnp.where(h > 0, h, SLOPE * h), None),
    "a function with a gradient of its own": (lambda h, p: clipped(h), None),
    "a running sum with a gradient of its own": (lambda h, p: running_sum(h), "identity"),
    "two results with a gradient of their own": (lambda h, p: in_two(h)[0] + 0 * in_two(h)[1], "identity"),
    "a loop without a product": (lambda h, p: lax.scan(lambda s, row: (s + row, s), 0 * h[0], relu(h))[1], "identity"),
    "a branch without a product": (lambda h, p: lax.cond(h[0, 0] > 0, jnp.tanh, relu, h), "identity"),
}
GAIN = P | {"gain": normal(11, 4)}


def above_and_below(name):
    between, _ = BETWEEN[name]
    weight = (lambda p: p["b"] * PRUNED) if "mask of the weight" in name else (lambda p: p["b"])
    return lambda p, x: between(x @ p["a"], p) @ weight(p)


@pytest.mark.parametrize("name", BETWEEN)
def test_an_activation_ends_where_something_is_not_element_by_element(name):
    (unit,) = evolve(above_and_below(name), "g").units(GAIN, X)
    expected = BETWEEN[name][1]
    assert (unit.path, unit.hp, unit.hp_next, unit.kernel) == ("b", (6, 4), (6, 5), (4, 5))
    assert unit.activation == expected if expected else unit.activation not in ("identity", "")


def test_whatever_lies_between_the_gradients_are_autodiffs():
    ours = {name: evolve(above_and_below(name), "g") for name in BETWEEN}
    plain = {name: above_and_below(name) for name in BETWEEN}

    def gradients(nets, *state):
        of = lambda net: jax.grad(lambda p: jnp.sum(net(p, *state, X) ** 2))(GAIN)  # noqa: E731
        return {name: of(net) for name, net in nets.items()}

    found, expected = jax.jit(lambda: (gradients(ours, {}), gradients(plain)), compiler_options=FAST)()
    for name in BETWEEN:
        assert_trees_agree(found[name], expected[name], 1e-4)


# Parameters, further arguments, the network; units; what is left alone and why.
BELOW = "nothing with parameters lies below it"
TWO_ACTIVATIONS = "a product of two activations"
FOUR_BY_FIVE = ("dot_general of [6, 4] and [4, 5]", TWO_ACTIVATIONS)


def with_batch_groups(p, x):
    h = relu(x @ p["a"])
    y = lax.conv_general_dilated(
        h.reshape(6, 2, 2, 1), p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), batch_group_count=2
    )
    return h @ p["b"] + jnp.sum(y)


def of_its_own_noise(p):
    return relu(jax.random.normal(p["key"], (6, 3)) @ p["a"]) @ p["b"]


def chosen_by_data(p, x):
    weight = lax.cond(x.sum() > 0, lambda p: p["w"] @ p["b"], lambda p: p["w"].T @ p["b"], p)
    return relu(relu(x @ p["a"]) @ weight) @ p["c"]


def of_held_data(p, m):
    h = relu(HELD @ p["a"])
    return (h.T @ (h * p["gain"])) @ p["b"] + m.sum()


def in_turn(p, x):
    h = relu(x @ p["a"])
    return h @ p["b"] + jnp.sum(lax.map(lambda row: jnp.einsum("hd,hdo->ho", row.reshape(2, 2), p["e"]), h))


def with_shardings(p, x):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    product = jax.jit(lambda h, w: h @ w, in_shardings=(here, here))
    return relu(product(relu(x @ p["a"]), p["b"])) @ p["c"]


LEFT = {
    "with biases": (P | {"o": normal(12, 5)}, (X,), lambda p, x: relu(x @ p["a"]) @ p["b"] + p["o"], "b", [("a", BELOW)]),
    "batch groups": (
        P | {"k": normal(12, 1, 1, 1, 2)}, (X,), with_batch_groups, "b", [("a", BELOW), ("k", "a convolution with batch groups")],
    ),
    "complex": (
        P, (X,), lambda p, x: (relu(x @ p["a"]) @ (p["b"] + 0j)).real @ p["c"], "c",
        [("a", BELOW), ("b", "not a product of real numbers")],
    ),
    "scaled inputs": (P | {"gain": normal(12, 3)}, (X,), lambda p, x: (x * p["gain"]) @ p["a"], "a", []),
    "masked weights first": (
        P, (X,), lambda p, x: ((p["b"] * PRUNED).T @ relu(x @ p["a"]).T).T, "b", [("a", BELOW)],
    ),
    "weights mixed by what the function holds": (
        P, (X,), lambda p, x: relu(relu(x @ p["a"]) @ (GATE[:4] @ p["b"])) @ p["c"], "c",
        [("a", BELOW), ("b", BELOW), FOUR_BY_FIVE],
    ),
    "weights masked by data": (
        P, (X, PRUNED), lambda p, x, m: relu(relu(x @ p["a"]) @ (p["b"] * m)) @ p["c"], "c", [("a", BELOW), FOUR_BY_FIVE],
    ),
    "weights that data choose": (
        P, (X,), chosen_by_data, "c",
        [("a", BELOW), FOUR_BY_FIVE],
    ),
    "a carried value squared": (
        P, (X[:4],),
        lambda p, x: lax.scan(lambda h, _: (jnp.tanh(h @ h), None), x @ p["a"], None, 2)[0] @ p["b"], "b",
        [("a", BELOW), ("dot_general of [4, 4] and [4, 4]", TWO_ACTIVATIONS)],
    ),
    "signals of what the function holds": (
        P | {"gain": normal(12, 4)}, (GATE,), of_held_data, "b",
        [("a", BELOW), ("dot_general of [4, 6] and [6, 4]", TWO_ACTIVATIONS)],
    ),
    "weights for each part of one sample": (
        P | {"e": normal(12, 2, 2, 3)}, (X,), in_turn, "b",
        [("a", BELOW), ("e", "one sample at a time, no axis of samples: use jax.vmap instead of a loop")],
    ),
    "noise of a key among the parameters": (P | {"key": jax.random.key(1)}, (), of_its_own_noise, "b", [("a", BELOW)]),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_every_product_is_a_unit_or_left_alone_with_the_reason(name):
    params, arguments, network, path, left = LEFT[name]
    units = evolve(network, "g").units(params, *arguments)
    assert [unit.path for unit in units] == [path]
    assert list(units.left_alone) == left


def test_a_call_that_says_where_its_arguments_lie_is_not_opened():
    units = evolve(with_shardings, "g").units(P, X)
    assert [unit.path for unit in units] == ["c"]
    ((a, why), (b, inside)) = units.left_alone
    assert (a, why, b) == ("a", BELOW, "b") and inside in ("inside a jit", "inside a pjit")


def test_units_keep_their_samples_in_front_where_the_product_has_others():
    arguments, network, _ = NETWORKS["edges of a graph"]
    assert [(u.hp, u.hp_next) for u in evolve(network, "g").units(P, *arguments)] == [
        ((6, 4), (9, 5)),
        ((9, 5), (9, 2)),
    ]


def signal_at(network, rule, params, x):
    """What the rule sends to x, the units' hp or a copy of it, of a sum of the outputs."""
    net = evolve(network, rule)
    state = net.init(jax.random.key(0), params, x)
    return jax.jit(jax.grad(lambda x: jnp.sum(net(params, state, x))), compiler_options=FAST)(x)


def test_a_bias_may_come_first_and_a_scale_after_a_product_is_no_part_of_the_unit():
    params = {"below": jnp.float32(1), "w": P["w"], "o": normal(12, 4)}
    h = jnp.tanh(GATE)
    for network, hp_next in (
        (lambda p, x: p["o"] + jnp.tanh(x * p["below"]) @ p["w"], h @ P["w"] + params["o"]),
        (lambda p, x: (jnp.tanh(x * p["below"]) @ p["w"]) * p["o"], h @ P["w"]),
    ):
        found = signal_at(network, "hp_next @ W.T", params, GATE)
        np.testing.assert_allclose(found, hp_next @ P["w"].T, rtol=1e-4, atol=1e-5)


def test_a_product_that_is_read_twice_is_a_unit_without_its_bias():
    def network(p, x):
        y = jnp.tanh(x * p["below"]) @ p["w"]
        return (y + p["o"]) * jnp.cos(y)

    params = {"below": jnp.float32(1), "w": P["w"], "o": normal(12, 4)}
    np.testing.assert_array_equal(signal_at(network, "g - g", params, GATE), 0)
    right = jnp.tanh(GATE) @ P["w"] @ P["w"].T
    np.testing.assert_allclose(signal_at(network, "hp_next @ W.T", params, GATE), right, rtol=1e-4, atol=1e-5)

    def returning(p, x):  # read by the sum and by whoever calls
        y = jnp.tanh(x * p["below"]) @ p["w"]
        return y + p["o"], y

    net = evolve(returning, "hp_next @ W.T")
    state = net.init(jax.random.key(0), params, GATE)
    found = jax.grad(lambda x: jnp.sum(net(params, state, x)[0]))(GATE)
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


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
