"""A rule on any network: what is found, gradients of backprop against autodiff, the carrier, state, errors."""

import contextlib
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from bpevo import rules
from bpevo.layers.evolve import _path, _Plan, evolve
from bpevo.layers.graph import Trace
from bpevo.layers.traced_map import Product

FAST = {"xla_backend_optimization_level": 0}  # to compile


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def values_like(tree):
    """Distinct values of one tenth, so that no bias is zero."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [0.3 * normal(i, *x.shape).astype(x.dtype) for i, x in enumerate(leaves)])


def assert_trees_agree(actual, expected, tolerance=1e-5):
    """Relative to the largest entry of all: gradients that vanish in exact arithmetic are rounding in either tree."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    largest = max(float(jnp.abs(e).max()) for e in jax.tree.leaves(expected))
    for (path, a), e in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        a, e = np.float32(a), np.float32(e)
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * largest, err_msg=jax.tree_util.keystr(path))


# Architectures: (network(params, x), params, x, units). Everything that the units replace is written as users write it.


def linen(module, x, **kwargs):
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, **kwargs), x)
    return lambda params, x: module.apply({"params": params}, x, **kwargs), values_like(variables["params"]), x


def flatten(x):
    return x.reshape(x.shape[0], -1)


def convolutional(convolution, *shape):
    return linen(
        sequential(
            nn.Conv(4, (1,) * len(convolution.kernel_size)), nn.relu, convolution, nn.tanh, flatten, nn.Dense(3)
        ),
        normal(1, *shape),
    )


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)(y, y)
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x))))


class Scanned(nn.Module):
    """Layers in a loop, as nn.scan makes them."""

    @nn.compact
    def __call__(self, x):
        loop = nn.scan(
            lambda module, x, _: (nn.relu(nn.Dense(5)(x)), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )

        class Loop(nn.Module):
            @nn.compact
            def __call__(self, x):
                return loop(self, x, None)[0]

        return nn.Dense(3)(Loop()(nn.Dense(5)(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.second = nnx.Conv(4, 4, (3, 3), strides=2, rngs=rngs)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.silu(self.norm(self.conv(x)))
        return self.out(jnp.mean(nnx.relu(self.second(x)), (1, 2)))


def split_nnx():
    graph, params, rest = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param, ...)
    return lambda params, x: nnx.merge(graph, params, rest)(x), values_like(params), normal(1, 2, 5, 6, 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Affine:
    """A layer as Equinox has them: a pytree, called for one sample, weights [O, I]."""

    weight: jax.Array
    bias: jax.Array | None
    name: str = dataclasses.field(metadata={"static": True}, default="affine")

    def __call__(self, x):
        y = self.weight @ x
        return y if self.bias is None else y + self.bias


def per_sample(batch=4):
    """Hidden layers as wide as the batch, the second without a bias: shapes do not tell which axis is that of samples."""
    model = [
        Affine(normal(1, 4, 5), normal(2, 4)),
        Affine(normal(3, 4, 4), None),
        Affine(normal(4, 3, 4), normal(5, 3)),
    ]

    def network(model, x):
        def one(x):
            for layer in model[:-1]:
                x = jax.nn.tanh(layer(x))
            return model[-1](x)

        return jax.vmap(one)(x)

    return network, model, normal(6, batch, 5)


def tied():
    def network(params, tokens):
        x = params["embedding"][tokens]
        x = jax.nn.relu(x @ params["w"]) @ params["w"].T
        return x @ params["embedding"].T

    return network, {"embedding": normal(1, 6, 4), "w": normal(2, 4, 5)}, jnp.array([[0, 3, 5], [1, 1, 2]])


def recurrent():
    def network(params, x):
        def step(h, x):
            h = jnp.tanh(x @ params["in"] + h @ params["hh"] + params["b"])
            return h, h

        h, _ = lax.scan(step, jnp.zeros((x.shape[0], 4)), jnp.swapaxes(x, 0, 1))
        return h @ params["out"]

    params = {"in": normal(1, 3, 4), "hh": normal(2, 4, 4), "b": normal(3, 4), "out": normal(4, 4, 2)}
    return network, params, normal(5, 3, 5, 3)


def branching():
    def network(params, x):
        x = x @ params["a"]
        x = lax.cond(x.sum() > 1e6, lambda x: jnp.tanh(x) @ params["b"], lambda x: jax.nn.relu(x) @ params["c"], x)
        return jax.nn.relu(x) @ params["d"]

    return network, {n: normal(i, 4, 4) for i, n in enumerate("abcd")}, normal(5, 3, 4)


def rearranged():
    """Products written as einsums, heads merged, samples and positions joined for the product and parted after it."""

    def network(params, x):
        x = jnp.einsum("bti,oi->bto", x, params["a"])
        x = jnp.einsum("bto,thdo->bthd", jax.nn.relu(x), params["b"])  # positions with weights of their own
        x = 0.5 * jnp.swapaxes(jax.nn.gelu(x), 2, 3)
        b, t, *_ = x.shape
        x = (x.reshape(b * t, -1) @ params["c"]).reshape(b, t, -1) + params["bias"]
        return jnp.where(jnp.arange(t)[:, None] > 0, jax.nn.softplus(x), 0.0).sum(1) @ params["d"]

    shapes = {"a": (5, 3), "b": (4, 2, 3, 5), "c": (6, 5), "bias": (5,), "d": (5, 2)}
    return network, {n: normal(i, *s) for i, (n, s) in enumerate(shapes.items())}, normal(9, 2, 4, 3)


def derived():
    """Weights made of parameters: standardised, with a low-rank part, one for each of several experts."""

    def network(params, x):
        kernel = (params["k"] - params["k"].mean(0)) / params["k"].std(0) + params["a"] @ params["b"]
        x = jax.nn.relu6(jax.nn.elu(x @ params["in"]) @ kernel)
        gates = jax.nn.softmax(x @ params["gate"])
        return jnp.einsum("bi,eio,be->bo", x, params["experts"], gates)

    shapes = {"in": (3, 4), "k": (4, 6), "a": (4, 2), "b": (2, 6), "gate": (6, 3), "experts": (3, 6, 2)}
    return network, {n: normal(i, *s) for i, (n, s) in enumerate(shapes.items())}, normal(9, 2, 3)


def low_precision():
    network = sequential(
        nn.Conv(4, (3, 3), dtype=jnp.bfloat16),
        nn.relu,
        nn.Conv(4, (3, 3), dtype=jnp.bfloat16),
        nn.gelu,
        flatten,
        nn.Dense(3),
    )
    return linen(network, normal(1, 2, 4, 4, 3))


def pooled():
    """The activation below mean pooling belongs to its unit, that below max pooling does not."""
    return sequential(
        *(nn.Conv(4, (3, 3)), nn.relu, lambda x: nn.avg_pool(x, (2, 2), (2, 2))),
        *(nn.Conv(4, (3, 3)), nn.relu, lambda x: nn.max_pool(x, (2, 2), (2, 2)), flatten, nn.Dense(3)),
    )


def transformer():
    return sequential(nn.Dense(6), nn.remat(Block)(), Block(), lambda x: x.mean(1), nn.Dense(3))


def sequential(*layers):
    return nn.Sequential(layers)


DENSE = (nn.Dense(5), nn.relu, nn.Dense(4), nn.silu, nn.Dense(3))
GENERAL = (nn.DenseGeneral((2, 3)), nn.relu, nn.DenseGeneral(4, axis=(-2, -1)), nn.gelu, nn.Dense(3))
GROUPED = nn.Conv(4, (3, 3), feature_group_count=2, kernel_dilation=2)
TRANSPOSED = nn.ConvTranspose(4, (3, 3), (2, 2), transpose_kernel=True)
ARCHITECTURES = {
    "dense_on_sequences": (lambda: linen(sequential(*DENSE), normal(1, 2, 4, 3)), 2),
    "dense_general": (lambda: linen(sequential(*GENERAL), normal(1, 2, 4, 3)), 2),
    "conv_1d_strided": (lambda: convolutional(nn.Conv(4, (3,), 2), 2, 7, 3), 2),
    "conv_2d": (lambda: convolutional(nn.Conv(4, (3, 3), padding="VALID"), 2, 5, 6, 3), 2),
    "conv_2d_grouped_dilated": (lambda: convolutional(GROUPED, 2, 6, 6, 3), 2),
    "conv_2d_circular": (lambda: convolutional(nn.Conv(4, (3, 3), (2, 1), padding="CIRCULAR"), 2, 5, 6, 3), 2),
    "conv_3d": (lambda: convolutional(nn.Conv(4, (2, 2, 2)), 2, 3, 3, 3, 2), 2),
    "conv_transposed": (lambda: convolutional(TRANSPOSED, 2, 3, 3, 2), 2),
    "pooling": (lambda: linen(pooled(), normal(1, 2, 8, 8, 2)), 2),
    "transformer": (lambda: linen(transformer(), normal(1, 2, 4, 5)), 13),
    "nnx": (split_nnx, 2),
    "per_sample": (per_sample, 2),
    "tied": (tied, 3),
    "recurrent": (recurrent, 2),
    "branching": (branching, 3),
    "rearranged": (rearranged, 3),
    "derived": (derived, 3),
    "low_precision": (low_precision, 2),
    "scanned": (lambda: linen(Scanned(), normal(1, 2, 4)), 2),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_backprop_as_a_rule_is_autodiff_in_every_architecture(name):
    make, count = ARCHITECTURES[name]
    network, params, x = make()
    target = normal(7, *jax.eval_shape(network, params, x).shape)
    net = evolve(network, "g")
    state = net.init(jax.random.key(0), params, x)
    assert len(net.units(params, x)) == count, net

    def ours(params, state):
        y = net(params, state, x)
        return jnp.sum(y * target), y

    def plain(params):
        y = network(params, x)
        return jnp.sum(y * target), y

    both = lambda params, state: (  # noqa: E731
        jax.grad(ours, (0, 1), has_aux=True)(params, state),
        jax.grad(plain, has_aux=True)(params),
    )
    ((gradient, next_state), y), (expected, wanted) = jax.jit(both, compiler_options=FAST)(params, state)
    tolerance = 2e-2 if name == "low_precision" else 1e-5
    np.testing.assert_allclose(y, wanted, rtol=tolerance, atol=tolerance)
    assert_trees_agree(gradient, expected, tolerance)
    assert jax.tree.map(jnp.shape, next_state) == jax.tree.map(jnp.shape, state)


GELU = "gelu"
FOUND = {
    "dense_general": [
        ("layers_2/kernel", "relu", (2, 4, 2, 3), (2, 3, 4)),
        ("layers_4/kernel", GELU, (2, 4, 4), (4, 3)),
    ],
    "conv_2d": [
        ("layers_2/kernel", "relu", (2, 5, 6, 4), (3, 3, 4, 4)),
        ("layers_5/kernel", "tanh", (2, 3, 4, 4), (48, 3)),  # flattening belongs to the linear map
    ],
    "pooling": [
        ("layers_3/kernel", "relu", (2, 8, 8, 4), (3, 3, 4, 4)),
        ("layers_7/kernel", "identity", (2, 2, 2, 4), (16, 3)),  # max pooling does not
    ],
    "nnx": [("second/kernel", "silu", (2, 5, 6, 4), (3, 3, 4, 4)), ("out/kernel", "relu", (2, 3, 3, 4), (4, 3))],
    "tied": [
        ("w", "identity", (2, 3, 4), (4, 5)),
        ("w#2", "relu", (2, 3, 5), (5, 4)),
        ("embedding", "identity", (2, 3, 4), (4, 6)),
    ],
    "rearranged": [
        ("b", "relu", (2, 4, 5), (5, 24)),
        ("c", GELU, (2, 4, 2, 3), (6, 5)),
        ("d", "softplus", (2, 4, 5), (5, 2)),
    ],
    "derived": [
        ("a + b + k", "elu", (2, 4), (4, 6)),
        ("gate", "relu6", (2, 6), (6, 3)),
        ("experts", "relu6", (2, 6), (6, 6)),
    ],
}


def test_heads_are_joined_after_positions():
    """An identity has no layout of its own: hp keeps positions in front of features, as the product reads them."""
    network, params, x = ARCHITECTURES["transformer"][0]()
    out = [u for u in evolve(network, "g").units(params, x) if u.path.endswith("out/kernel")]
    assert [(u.hp, u.hp_next, u.kernel) for u in out] == [((2, 4, 2, 3), (2, 4, 6), (2, 3, 6))] * 2


@pytest.mark.parametrize("name", FOUND)
def test_units_have_their_activation_and_the_linear_chain_around_the_weight(name):
    network, params, x = ARCHITECTURES[name][0]()
    units = evolve(network, "g").units(params, x)
    # Which name a function of several operations has depends on the release of JAX; that it is found does not.
    assert [(u.path, u.hp, u.kernel) for u in units] == [(path, hp, kernel) for path, _, hp, kernel in FOUND[name]]
    for unit, (_, activation, *_) in zip(units, FOUND[name], strict=True):
        assert unit.activation == activation or (activation != "identity" and "+" in unit.activation)


# Samples, arguments and outputs.


def hidden(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


HIDDEN, X = {"a": normal(1, 5, 4), "b": normal(2, 4, 3)}, normal(3, 6, 5)


def test_samples_are_those_of_the_chosen_logits_whatever_else_comes_out():
    def network(params, x):
        return {"a": params["a"].sum(0), "logits": hidden(params, x)}

    (unit,) = evolve(network, "g", logits=lambda out: out["logits"]).units(HIDDEN, X)
    assert (unit.hp, unit.hp_next) == ((6, 4), (6, 3))


def test_logits_are_the_first_of_a_tuple():
    params = HIDDEN | {"aside": normal(4, 4, 7)}

    def network(params, x):
        return hidden(params, x), jnp.tanh(x @ params["a"]) @ params["aside"]

    state = jax.eval_shape(evolve(network, "b_L @ R_L").init, jax.random.key(0), params, X)
    assert {name: entry["constants"]["R_L"].shape for name, entry in state.items()} == {"b": (3, 4), "aside": (3, 4)}


def test_a_network_that_returns_its_loss_may_have_rules_that_need_no_logits():
    units = evolve(lambda params, x: jnp.mean(hidden(params, x) ** 2), "g").units(HIDDEN, X)
    assert [(unit.path, unit.hp) for unit in units] == [("b", (6, 4))]


def with_a_copy(network):
    """The network, which does one thing more for more than four samples."""
    return lambda model, x: jnp.tanh(network(model, x)) if len(x) > 4 else network(model, x)


def for_four(network):
    def fixed(model, x):
        if len(x) != 4:
            raise RuntimeError("made for four samples")
        return network(model, x)

    return fixed


def test_where_shapes_do_not_tell_samples_apart_another_number_of_them_does_if_the_network_allows_it():
    network, model, x = per_sample()
    traces = [_Plan(evolve(f(network), "g"), model, (x,), {}) for f in (lambda f: f, with_a_copy, for_four)]
    more, *others = (plan.with_more_samples() for plan in traces)
    assert more.outputs[0].shape == (8, 3) and others == [None, None]
    for plan in traces:
        assert [(unit.hp, unit.hp_next) for unit in plan.listing] == [((4, 4), (4, 4)), ((4, 4), (4, 3))]


def test_a_shorter_trace_of_more_samples_does_something_else_too():
    network, model, x = per_sample()
    shorter = lambda model, x: network(model, x) if len(x) > 4 else jnp.tanh(network(model, x))  # noqa: E731
    assert _Plan(evolve(shorter, "g"), model, (x,), {}).with_more_samples() is None


def joined(features, join):
    """A language model of 4 texts of 8 tokens: logits [4, 8, 5], or joined to [32, 5]."""
    leaves = {"in": normal(1, 7, features), "hidden": normal(2, features, features), "out": normal(3, features, 5)}

    def network(params, x):
        logits = jnp.tanh(jnp.tanh(params["in"][x]) @ params["hidden"]) @ params["out"]
        return logits.reshape(-1, 5) if join else logits

    return network, leaves, jnp.arange(32).reshape(4, 8) % 7


@pytest.mark.parametrize("features", [32, 33])
def test_features_as_many_as_joined_logits_have_rows_are_no_samples(features):
    gradients = []
    for join in (True, False):
        network, params, x = joined(features, join)
        net = evolve(network, "unit_row2(g)")
        assert [unit.hp for unit in net.units(params, x)] == [(4, 8, features)] * 2
        gradients.append(jax.grad(lambda p, net=net, x=x: jnp.mean(net(p, {}, x) ** 2))(params))
    assert_trees_agree(*gradients)


@pytest.mark.parametrize("features", [8, 9])
def test_features_as_many_as_samples_are_none_where_samples_are_joined_with_windows(features):
    params = {"a": normal(1, 3, features), "b": normal(2, features, features), "c": normal(3, features, 5)}

    def network(params, x):  # [B, windows, positions, 3]
        windows = jnp.tanh(x.reshape(-1, 6, 3) @ params["a"])
        mixed = jnp.tanh(windows @ params["b"]).reshape(len(x), -1, features)
        return mixed.mean(1) @ params["c"]

    units = evolve(network, "g").units(params, normal(4, 8, 4, 6, 3))
    assert units[0].path == "b" and units[0].hp == (32, 6, features)


def test_arguments_that_are_no_arrays_stay_as_they_are_and_shapes_are_enough_for_the_others():
    def network(params, x, dtype, how, *, times):
        return getattr(jnp, how)(x.astype(dtype) @ params["a"]) @ params["b"] * times

    net, others = evolve(network, "g"), (jnp.float32, "tanh")
    given = net.units(HIDDEN, X, *others, times=2)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (HIDDEN, X))
    assert given == net.units(*shapes, *others, times=2)
    assert [(unit.activation, unit.kernel) for unit in given] == [("tanh", (4, 3))]
    assert jax.eval_shape(lambda params, x: net(params, {}, x, *others, times=2), *shapes).shape == (6, 3)


@pytest.mark.parametrize(
    "keys, name",
    [
        ((GetAttrKey("out"), DictKey("kernel"), GetAttrKey("value")), "out/kernel"),  # of an nnx.Variable
        ((DictKey("kernel"), GetAttrKey("value")), "kernel"),
        ((GetAttrKey("value"),), "value"),
        ((DictKey("attention"), DictKey("value")), "attention/value"),
        ((SequenceKey(0), GetAttrKey("weight")), "0/weight"),
    ],
)
def test_weights_are_named_by_their_place_among_the_parameters(keys, name):
    assert _path(keys) == name


def test_a_rule_that_is_data_is_named_by_its_kind():
    net = evolve(hidden, rules.InterpretedRule(rules.blank_program()))
    assert str(net) == "evolve(hidden, InterpretedRule): call it, or its units(…), to see the units"
    assert str(evolve(hidden, "g")).startswith("evolve(hidden, g):")


def test_a_value_that_is_needed_while_tracing_is_told_with_its_place_and_jaxs_words():
    def network(params, x):
        return hidden(params, x) * float(x.sum())

    def words(function):
        with pytest.raises(TypeError) as caught:
            function()
        return str(caught.value).splitlines()

    first = network.__code__.co_firstlineno
    _, place, why = words(lambda: evolve(network, "g").units(HIDDEN, X))
    assert place == f"  {__file__}, line {first + 1}: return hidden(params, x) * float(x.sum())"
    assert why == f"  {words(lambda: jax.make_jaxpr(network)(HIDDEN, X))[0]}"


# Parts of the linear maps.


@pytest.mark.parametrize(
    "change, measured",
    [
        ({}, True),
        ({"window_strides": (2, 1), "padding": ((0, 0), (1, 2))}, True),
        ({"lhs_dilation": (2, 1)}, False),
        ({"rhs_dilation": (1, 2)}, False),
        ({"padding": ((1, 1), (-1, 0))}, False),
        ({"precision": lax.Precision.HIGHEST}, False),
        ({"preferred_element_type": jnp.float64}, False),
        ({"preferred_element_type": jnp.float32}, True),
        ({"feature_group_count": 2, "rhs": (3, 3, 1, 4)}, False),
        ({"dimension_numbers": ("NCHW", "HWIO", "NHWC"), "lhs": (3, 2, 6, 5)}, False),
        ({"dimension_numbers": ("NHWC", "OIHW", "NHWC"), "rhs": (4, 2, 3, 3)}, False),
        ({"dimension_numbers": ("NHWC", "HWIO", "NCHW")}, False),
    ],
)
def test_plain_convolutions_alone_have_the_lowering_that_was_measured(change, measured):
    x, w = (
        jax.ShapeDtypeStruct(change.pop(side, shape), jnp.float32)
        for side, shape in (("lhs", (3, 6, 5, 2)), ("rhs", (3, 3, 2, 4)))
    )
    given = {
        "window_strides": (1, 1),
        "padding": ((1, 1), (1, 1)),
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    } | change
    wide = given.get("preferred_element_type") == jnp.float64
    with jax.enable_x64() if wide else contextlib.nullcontext():
        graph = Trace(lambda x, w: lax.conv_general_dilated(x, w, **given), x, w).graph
        (node,) = graph.nodes
        assert bool(Product.of(node, 1, x, w).measured) == measured
