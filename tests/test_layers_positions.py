"""Layers on further axes: [B, …, I] is, to a rule, a 1x1 convolution over positions; initial laws and types of parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpevo import layers, rules
from bpevo.layers import convolution
from bpevo.layers.constants import LARGEST_FEEDBACK, draw_constants, logits_shape
from bpevo.layers.unit import check_elementwise, identity

FAST = {"xla_backend_optimization_level": 0}  # to compile


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def step(layer, variables, x, carrier, cotangents, signal_at_logits):
    """Gradients by everything, of y and the carrier."""

    def loss(variables, x):
        y, c = layer.apply(variables, x, carrier, rngs={"noise": jax.random.key(7)})
        return jnp.vdot(y, cotangents) + jnp.vdot(c, signal_at_logits)

    return jax.jit(jax.grad(loss, (0, 1)), compiler_options=FAST)(variables, x)


@pytest.mark.parametrize(
    "rule", ["unit_col2(g) + mean(fa)", "(std(hp_next) @ S.T) - unit_row2(dfa)", "drop(bn(h), 0.3)"]
)
def test_dense_on_positions_is_a_1x1_convolution_to_every_rule(rule):
    x, zero = normal(1, 5, 2, 3, 4), layers.carrier(5, 3)
    dense, conv = layers.Dense(6, rule, nn.tanh), layers.Conv(6, 1, rule=rule, activation=nn.tanh)
    given = jax.jit(conv.init, compiler_options=FAST)(jax.random.key(0), x, zero)
    given["params"]["bias"] = normal(2, 6)
    cotangents, top = normal(3, 5, 2, 3, 6), normal(4, 5, 3)
    expected, signal = step(conv, given, x, zero, cotangents, top)

    def flat(variables):  # kernels [1, 1, I, O] as [I, O]
        return jax.tree.map(lambda v: v.reshape(v.shape[2:]) if v.shape[:2] == (1, 1) else v, variables)

    actual, dx = step(dense, flat(given), x, zero, cotangents, top)
    np.testing.assert_allclose(dx, signal, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5), actual, flat(expected))
    shapes = jax.eval_shape(dense.init, jax.random.key(0), x, zero)
    assert jax.tree.map(jnp.shape, dict(shapes)) == jax.tree.map(jnp.shape, flat(given))


def test_layers_on_further_axes_have_flaxs_values_and_autodiffs_gradients():
    x = normal(1, 2, 3, 5, 4, 2)
    for ours, plain in (
        (layers.Dense(3, "g"), nn.Dense(3)),
        (layers.Conv(3, (3, 3), 2, rule="g"), nn.Conv(3, (3, 3), 2)),
    ):
        variables = jax.jit(ours.init, compiler_options=FAST)(jax.random.key(0), x)
        target = normal(2, *jax.eval_shape(ours.apply, variables, x).shape)

        def both(variables, x, ours=ours, plain=plain, target=target):
            activated = lambda v, x: plain.apply(v, nn.relu(x))  # noqa: E731
            return [
                jax.value_and_grad(lambda v, x, f=f: jnp.vdot(f(v, x), target), (0, 1))(variables, x)
                for f in (ours.apply, activated)
            ]

        actual, expected = jax.jit(both, compiler_options=FAST)(variables, x)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5), actual, expected)


def test_direct_feedback_is_per_position_where_the_logits_have_positions():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x, carrier = layers.Dense(6, "b_L @ R_L", None)(x, layers.carrier(*x.shape[:2], 3))
            x, carrier = layers.Dense(3, "g")(x, carrier)
            return x + carrier

    x, top = normal(1, 5, 7, 4), normal(2, 5, 7, 3)
    variables = jax.jit(Net().init, compiler_options=FAST)(jax.random.key(0), x)
    feedback = variables[layers.FEEDBACK]["Dense_0"]["R_L"]
    assert feedback.shape == (3, 4)
    signal = jax.jit(jax.grad(lambda x: jnp.vdot(Net().apply(variables, x), top)), compiler_options=FAST)(x)
    np.testing.assert_allclose(signal, top @ feedback, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "x, logits, expected",
    [
        ((5, 4), (5, 3), (5, 3)),
        ((5, 7, 4), (5, 3), (5, 3)),
        ((5, 7, 4), (5, 7, 3), (5, 7, 3)),
        ((5, 8, 4), (5, 7, 3), (5, 21)),  # other positions: joined
        ((5, 4), (5, 7, 3), (5, 21)),
        ((35, 4), (5, 7, 3), (35, 3)),  # samples and positions joined in the unit
        ((5, 7, 2, 4), (5, 7, 3), (5, 7, 3)),  # further positions in the unit
        ((5, 7), (5, 7, 3), (5, 21)),  # the last axis of the unit is of features
        ((5, 4), (5,), (5, 1)),
        ((6, 4), (5, 3), None),
        ((4, 4), (5, 3), None),
    ],
)
def test_the_signal_at_the_logits_has_positions_where_unit_and_logits_share_them(x, logits, expected):
    assert logits_shape(x, logits) == expected


@pytest.mark.parametrize("carrier", [(4, 3), (5,)])
def test_a_carrier_of_other_samples_is_refused(carrier):
    with pytest.raises(
        ValueError, match=r"Dense got x \[5, 4\] and a carrier .*: a carrier has the shape of the logits"
    ):
        layers.Dense(3, "g").init(jax.random.key(0), jnp.zeros((5, 4)), jnp.zeros(carrier))


def test_feedback_that_is_too_large_is_refused_with_both_shapes():
    size = LARGEST_FEEDBACK // 1000 + 1
    for rule in ("dfa", rules.InterpretedRule(rules.blank_program())):
        with pytest.raises(
            ValueError, match=rf"R_L of the unit Dense .* logits \[2, 1000\] to hp \[2, {size}\]: 67 mill"
        ):
            jax.eval_shape(layers.Dense(3, rule).init, jax.random.key(0), jnp.zeros((2, size)), jnp.zeros((2, 1000)))
    for rule in ("g", "fa"):  # of a kernel that is small
        jax.eval_shape(layers.Dense(3, rule).init, jax.random.key(0), jnp.zeros((2, size)), jnp.zeros((2, 1000)))


def test_feedback_of_64_mebi_entries_is_not_too_large():
    x, zero = jax.ShapeDtypeStruct((2, 2**16), jnp.float32), layers.carrier(2, 2**10)
    variables = jax.eval_shape(layers.Dense(3, "dfa").init, jax.random.key(0), x, zero)
    assert variables[layers.FEEDBACK]["R_L"].shape == (2**10, 2**16) and LARGEST_FEEDBACK == 2**26


def test_random_signs_have_the_deviation_of_hes_law_over_all_inputs_of_the_kernel():
    shapes = rules.UnitShapes((2, 5, 5, 10), (2, 5, 5, 40), (2, 4), (3, 3, 10, 40))
    reads = frozenset(["S", "R", "R_L", "g"])
    drawn = jax.jit(lambda key: draw_constants(key, "Conv", reads, shapes), compiler_options=FAST)(jax.random.key(0))
    assert {name: array.shape for name, array in drawn.items()} == {
        "R": (3, 3, 10, 40), "S": (3, 3, 10, 40), "R_L": (4, 5, 5, 10),
    }  # fmt: skip
    np.testing.assert_allclose(jnp.abs(drawn["S"]), (2 / 90) ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(drawn["R"].std(), (2 / 90) ** 0.5, rtol=0.05)


# Initial laws and types.


def test_kernels_and_biases_have_the_laws_they_are_given_and_random_feedback_that_of_the_kernel():
    init, bias = nn.initializers.uniform(0.2), nn.initializers.constant(0.3)
    for layer, shape in (
        (layers.Dense(50, "fa + (b_next @ S.T)", kernel_init=init, bias_init=bias), (2, 40)),
        (layers.Conv(50, rule="fa + (b_next @ S.T)", kernel_init=init, bias_init=bias), (2, 4, 4, 10)),
    ):
        variables = jax.jit(layer.init, compiler_options=FAST)(jax.random.key(0), jnp.zeros(shape))
        params, feedback = variables["params"], variables[layers.FEEDBACK]
        np.testing.assert_allclose(params["bias"], 0.3, rtol=1e-6)
        for array in (params["kernel"], feedback["R"]):  # uniform in [0, 0.2]
            assert array.min() >= 0 and array.max() <= 0.2
            np.testing.assert_allclose([array.mean(), array.std()], [0.1, 0.2 / 12**0.5], rtol=0.05)
        assert abs(np.corrcoef(params["kernel"].ravel(), feedback["R"].ravel())[0, 1]) < 0.1
        np.testing.assert_allclose(jnp.abs(feedback["S"]), feedback["R"].std(), rtol=1e-5)
        assert abs(feedback["S"].mean()) < 0.1 * feedback["R"].std()


@pytest.mark.parametrize("rule", [None, "unit_fro(fa)"])
def test_parameters_and_their_gradients_have_the_type_they_are_given(rule):
    for layer, shape in (
        (layers.Dense(3, rule, param_dtype=jnp.bfloat16), (2, 4)),
        (layers.Conv(3, rule=rule, param_dtype=jnp.bfloat16), (2, 4, 4, 1)),
        (layers.PooledDense(3, rule, param_dtype=jnp.bfloat16), (2, 4, 4, 1)),
    ):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        variables = jax.eval_shape(layer.init, jax.random.key(0), x)
        y = jax.eval_shape(layer.apply, variables, x)
        gradient = jax.eval_shape(jax.grad(lambda v, x, f=layer.apply: jnp.sum(f(v, x) ** 2)), variables, x)
        for tree in (variables["params"], gradient["params"]):
            assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(jnp.bfloat16)}
        assert y.dtype == jnp.float32
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables.get(layers.FEEDBACK, {})))


def test_images_of_integers_are_computed_with_in_float32():
    images = np.arange(24, dtype=np.uint8).reshape(2, 12)
    for rule in (None, "g"):
        layer = layers.Dense(3, rule)
        variables = layer.init(jax.random.key(0), images)
        y = layer.apply(variables, images)
        assert y.dtype == jnp.float32
        np.testing.assert_allclose(y, images @ np.asarray(variables["params"]["kernel"]), rtol=1e-4)


@pytest.mark.parametrize(
    "layer, shape", [(layers.Dense(3), (2, 0)), (layers.Dense(0), (2, 4)), (layers.Conv(3), (2, 4, 4, 0))]
)
def test_kernels_without_an_entry_are_refused_without_a_rule_too(layer, shape):
    with pytest.raises(ValueError, match="cannot train on nothing"):
        layer.init(jax.random.key(0), jnp.zeros(shape))


def test_pooled_dense_takes_images_alone():
    with pytest.raises(ValueError, match=r"PooledDense needs \[B, H, W, I\] but got shape \(2, 3, 3, 3, 1\)"):
        layers.PooledDense(3).init(jax.random.key(0), jnp.zeros((2, 3, 3, 3, 1)))


# Activations.


def slightly(x):
    return x + 0.05 * x.mean(-1, keepdims=True)


@pytest.mark.parametrize("rank, letters", [(2, "bc,bd->bc"), (4, "bhwc,bhwd->bhwc"), (2, ""), (4, "")])
def test_activations_that_mix_entries_slightly_or_in_one_rank_only_are_refused(rank, letters):
    activation = (lambda x: jnp.einsum(letters, x, x)) if letters else slightly
    with pytest.raises(ValueError, match="does not act element by element"):
        check_elementwise(activation, rank)


@pytest.mark.parametrize("activation", [jnp.sqrt, jnp.log, jnp.exp, identity])
def test_activations_may_be_undefined_somewhere(activation):
    check_elementwise(activation, 2)


def test_a_class_is_no_rule():
    with pytest.raises(ValueError, match="takes a Rule, a text or a name such as .*, not <class 'dict'>"):
        layers.Dense(3, dict).init(jax.random.key(0), jnp.zeros((5, 4)))


# Which form of a convolution a CPU runs.


@pytest.mark.parametrize(
    "size, kernel, channels, small",
    [
        ((8, 8), (3, 3), 5, False),
        ((8, 8), (3, 3), 4, True),
        ((8, 8), (1, 1), 5, True),
        ((8, 8), (1, 3), 5, False),
        ((3, 8), (3, 3), 5, False),
        ((2, 8), (3, 3), 5, True),
        ((4, 8), (3, 5), 5, True),
    ],
)
def test_products_of_slices_replace_convolutions_of_points_few_channels_and_kernels_wider_than_the_image(
    size, kernel, channels, small
):
    assert convolution._small(size, kernel, channels) == small


def test_the_weight_gradient_of_a_wide_kernel_is_a_convolution_and_of_a_point_a_product():
    for kernel, expected in (((3, 3), (1, 0)), ((1, 1), (0, 1))):
        geometry = convolution.window((8, 8), kernel, (1, 1), "SAME")
        gradient = lambda x, b, k=kernel, g=geometry: convolution.conv_weight_gradient(x, b, k, g)  # noqa: E731
        traced = jax.jit(gradient).trace(jnp.ones((2, 8, 8, 5)), jnp.ones((2, 8, 8, 6)))
        text = traced.lower(lowering_platforms=("cpu",)).as_text()
        assert (text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")) == expected
