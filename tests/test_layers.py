"""Rule-driven Dense and Conv: gradients equal autodiff where they should, carrier, feedback constants, primitives."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from flax.training.train_state import TrainState

from bpevo import layers, rules
from bpevo.layers import convolution

ACTIVATIONS = {"relu": nn.relu, "tanh": nn.tanh, "gelu": nn.gelu, "identity": None}
BACKPROP = ("g", "(b_next @ W.T) * dh")
FAST = {"xla_backend_optimization_level": 0}  # to compile


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def gradients(layer, variables, x, target):
    """Gradients of sum(y * target) by the parameters and x."""

    def loss(params, x):
        y = layer.apply({**variables, "params": params}, x)
        return jnp.sum(y.astype(jnp.float32) * target)

    return jax.grad(loss, (0, 1))(variables["params"], x)


def assert_trees_agree(actual, expected, tolerance):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * float(jnp.abs(e).max()))


class Plain(nn.Module):
    """The same unit from plain Flax layers."""

    layer: nn.Module
    activation: object

    @nn.compact
    def __call__(self, x):
        return self.layer(self.activation(x) if self.activation else x)


def assert_layer_is_backprop(ours, plain, x, activation, dtype):
    """Values and all gradients of `ours(rule)` are those of the plain layer after the activation."""
    tolerance = 1e-5 if dtype is None else 3e-2
    variables = ours("g").init(jax.random.key(0), x)
    params = jax.tree.map(lambda p: p + 0.1, variables["params"])  # biases that are not zero
    target = normal(9, *plain.apply({"params": params}, x).shape)
    expected = gradients(Plain(plain, activation), {"params": {"layer": params}}, x, target)
    for rule in BACKPROP:
        layer = ours(rule)
        variables = {**variables, "params": params}  # both rules keep the same (empty) state
        y = layer.apply(variables, x)
        np.testing.assert_allclose(
            np.float32(y),
            np.float32(plain.apply({"params": params}, activation(x) if activation else x)),
            rtol=tolerance,
            atol=tolerance,
        )
        assert y.dtype == (dtype or jnp.float32)
        actual = gradients(layer, variables, x, target)
        assert_trees_agree(({"layer": actual[0]}, actual[1]), expected, tolerance)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_with_a_backprop_rule_has_autodiffs_gradients(activation, bias, dtype):
    act = ACTIVATIONS[activation]

    def ours(rule):
        return layers.Dense(3, rules.compile(rule), act, use_bias=bias, dtype=dtype)

    assert_layer_is_backprop(ours, nn.Dense(3, use_bias=bias, dtype=dtype), normal(1, 5, 4), act, dtype)


CONVOLUTIONS = [
    # kernel, strides, padding, activation, bias, dtype
    ((3, 3), 1, "SAME", "relu", True, None),
    ((3, 3), 2, "SAME", "tanh", False, None),
    ((3, 3), (2, 1), "SAME", "relu", True, None),
    ((3, 3), 2, "VALID", "gelu", True, None),
    ((1, 1), 2, "SAME", "relu", False, None),
    ((1, 1), 1, "VALID", "identity", True, None),
    ((5, 3), (2, 1), "VALID", "gelu", False, None),
    ((5, 3), 1, "SAME", "identity", False, None),
    ((3, 3), 2, "SAME", "relu", True, jnp.bfloat16),
    ((5, 3), 1, "VALID", "tanh", False, jnp.bfloat16),
]


@pytest.mark.parametrize("kernel, strides, padding, activation, bias, dtype", CONVOLUTIONS)
def test_conv_with_a_backprop_rule_has_autodiffs_gradients(kernel, strides, padding, activation, bias, dtype):
    act = ACTIVATIONS[activation]

    def ours(rule):
        return layers.Conv(3, kernel, strides, padding, rules.compile(rule), act, bias, dtype)

    plain = nn.Conv(3, kernel, strides, padding, use_bias=bias, dtype=dtype)
    assert_layer_is_backprop(ours, plain, normal(1, 3, 6, 5, 2), act, dtype)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_pooled_dense_with_a_backprop_rule_has_autodiffs_gradients(dtype):
    class PooledPlain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, dtype=dtype, name="dense")(jnp.mean(x, (1, 2)))

    x = normal(1, 3, 4, 5, 2)
    for rule in (*BACKPROP, None):
        layer = layers.PooledDense(3, rule and rules.compile(rule), nn.gelu, dtype=dtype)
        variables = layer.init(jax.random.key(0), x)
        params, target = variables["params"], normal(2, 3, 3)
        plain = Plain(PooledPlain(), nn.gelu)
        expected = gradients(plain, {"params": {"layer": {"dense": params}}}, x, target)
        actual = gradients(layer, variables, x, target)
        assert_trees_agree(({"layer": {"dense": actual[0]}}, actual[1]), expected, 1e-5 if dtype is None else 3e-2)


@pytest.mark.parametrize("layer", [layers.Dense(3), layers.Conv(3, strides=2)])
def test_layers_without_a_rule_are_plain_backprop(layer):
    x = normal(1, 3, 4) if isinstance(layer, layers.Dense) else normal(1, 3, 5, 5, 2)
    variables = layer.init(jax.random.key(0), x)
    assert set(variables) == {"params"}
    plain = nn.Dense(3) if isinstance(layer, layers.Dense) else nn.Conv(3, (3, 3), 2)
    target = normal(2, *layer.apply(variables, x).shape)
    expected = gradients(Plain(plain, nn.relu), {"params": {"layer": variables["params"]}}, x, target)
    actual = gradients(layer, variables, x, target)
    assert_trees_agree(({"layer": actual[0]}, actual[1]), expected, 1e-5)
    assert layer.apply(variables, x, jnp.ones((3, 7)))[1].shape == (3, 7)


def test_weight_gradients_are_standard_whatever_the_rule():
    x, target = normal(1, 3, 5, 5, 2), normal(2, 3, 5, 5, 4)
    results = {}
    for rule in ("g", "zero_signal", "cube(h) + 1.0"):
        layer = layers.Conv(4, rule=rules.compile(rule))
        variables = layer.init(jax.random.key(0), x)
        results[rule] = gradients(layer, variables, x, target)
    for rule in ("zero_signal", "cube(h) + 1.0"):
        assert_trees_agree(results[rule][0], results["g"][0], 0)
    np.testing.assert_array_equal(results["zero_signal"][1], 0)
    np.testing.assert_allclose(results["cube(h) + 1.0"][1], nn.relu(x) ** 3 + 1, rtol=1e-5)


# The carrier.


class Two(nn.Module):
    rule: rules.Rule

    @nn.compact
    def __call__(self, x):
        carrier = layers.carrier(x.shape[0], 3)
        x, carrier = layers.Dense(5, self.rule)(x, carrier)
        x, carrier = layers.Dense(3, self.rule)(x, carrier)
        return x + carrier


def cross_entropy(logits, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))


def test_carrier_brings_the_gradient_at_the_logits_to_every_unit():
    x, labels = normal(1, 6, 4), jnp.arange(6) % 3
    net = Two(rules.compile("b_L @ R_L"))
    variables = net.init({"params": jax.random.key(0), layers.FEEDBACK: jax.random.key(1)}, x)
    logits = net.apply(variables, x)
    true = jax.grad(cross_entropy)(logits, labels)
    dx = jax.grad(lambda x: cross_entropy(net.apply(variables, x), labels))(x)
    np.testing.assert_allclose(dx, true @ variables[layers.FEEDBACK]["Dense_0"]["R_L"], rtol=1e-5, atol=1e-7)
    hidden = jax.grad(lambda p: cross_entropy(net.apply({**variables, "params": p}, x), labels))(variables["params"])
    second = true @ variables[layers.FEEDBACK]["Dense_1"]["R_L"]  # the signal at the first unit's output
    np.testing.assert_allclose(hidden["Dense_0"]["bias"], second.sum(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(hidden["Dense_1"]["bias"], true.sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", ["dfa", "b_L @ R_L", "left(g, b_L) + mean(dfah)"])
def test_missing_carrier_is_an_error_that_says_what_to_do(rule):
    rule = rules.compile(rule)
    for layer, shape in ((layers.Dense(3, rule), (2, 4)), (layers.Conv(3, rule=rule), (2, 4, 4, 1))):
        with pytest.raises(ValueError, match="needs the signal at the logits: pass a carrier"):
            layer.init(jax.random.key(0), jnp.zeros(shape))


class Forgetful(nn.Module):
    """Passes the carrier on, then forgets it."""

    rule: object
    how: str

    @nn.compact
    def __call__(self, x):
        first = carrier = layers.carrier(x.shape[0], 3)
        x, carrier = layers.Dense(5, self.rule, name="below")(x, carrier)
        x, last = layers.Dense(3, self.rule, name="above")(x, first if self.how == "passes another" else carrier)
        return x + last if self.how == "passes another" else x


X6, LABELS6 = normal(1, 6, 4), jnp.arange(6) % 3
FORGOTTEN = r"the rule .* of {} needs the signal at the logits, but the carrier .* add it to the logits at the end"


def wrapped(transformation, loss, params):
    if transformation == "jit":
        return jax.jit(jax.grad(loss))(params)
    if transformation == "vmap of grad":
        return jax.vmap(jax.grad(loss))(jax.tree.map(lambda p: jnp.stack([p, p]), params))
    if transformation == "grad of vmap":
        return jax.grad(lambda p: jnp.sum(jax.vmap(loss)(jax.tree.map(lambda p: jnp.stack([p, p]), p))))(params)
    if transformation == "scan":
        return jax.lax.scan(lambda p, _: (jax.tree.map(jnp.subtract, p, jax.grad(loss)(p)), None), params, None, 2)
    if transformation == "remat":
        return jax.grad(jax.checkpoint(loss))(params)
    return jax.grad(loss)(params)


TRANSFORMATIONS = ["none", "jit", "vmap of grad", "grad of vmap", "scan", "remat"]


@pytest.mark.parametrize("transformation, interpreted", [*((t, False) for t in TRANSFORMATIONS), ("jit", True)])
@pytest.mark.parametrize("how, where", [("forgets", "above"), ("passes another", "below")])
def test_a_carrier_that_reaches_no_logits_is_an_error_that_says_what_to_do(transformation, interpreted, how, where):
    rule = rules.compile("dfa")
    rule = rules.InterpretedRule.of(rule.expression.to_equation()) if interpreted else rule
    net, noise = Forgetful(rule, how), {"noise": jax.random.key(0)}
    variables = net.init(jax.random.key(0), X6)

    def loss(params):
        return cross_entropy(net.apply({**variables, "params": params}, X6, rngs=noise), LABELS6)

    assert jnp.isfinite(loss(variables["params"]))  # nothing is wrong as long as nobody wants the gradient
    with pytest.raises(ValueError, match=FORGOTTEN.format(where)):
        wrapped(transformation, loss, variables["params"])


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
def test_a_carrier_that_is_added_is_no_error_under_any_transformation(transformation):
    net = Two(rules.compile("dfa"))
    variables = net.init(jax.random.key(0), X6)
    loss = lambda p: cross_entropy(net.apply({**variables, "params": p}, X6), LABELS6)  # noqa: E731
    assert all(
        bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(wrapped(transformation, loss, variables["params"]))
    )


@pytest.mark.parametrize("text", ["dfa", "unit_fro(g)"])
@pytest.mark.parametrize("mapped", ["candidates", "samples"])
def test_what_is_mapped_inside_the_gradient_has_a_signal_at_the_logits_of_its_own(text, mapped):
    net = Two(rules.compile(text))
    variables = net.init(jax.random.key(0), X6)
    params = jax.tree.map(lambda p: jnp.stack([p, 2 * p + 0.1, -p]), variables["params"])
    if mapped == "samples":
        params = jax.tree.map(lambda p: jnp.stack([p[0]] * 6), params)
    images = X6[None].repeat(3, 0) if mapped == "candidates" else X6[:, None]
    labels = LABELS6[None].repeat(3, 0) if mapped == "candidates" else LABELS6[:, None]

    def loss(params, x, labels):
        return cross_entropy(net.apply({**variables, "params": params}, x), labels)

    expected = jax.vmap(jax.grad(loss))(params, images, labels)
    if mapped == "candidates":
        actual = jax.grad(lambda p: jnp.sum(jax.vmap(loss)(p, images, labels)))(params)
    else:
        shared = variables["params"]
        actual = jax.grad(lambda p: jnp.sum(jax.vmap(loss, (None, 0, 0))(p, images, labels)))(shared)
        expected = jax.tree.map(lambda e: e.sum(0), expected)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), actual, expected)


def test_a_loss_of_the_carrier_alone_has_no_signal_from_above():
    layer = layers.Dense(3, rules.compile("g + dfa"))
    variables = layer.init(jax.random.key(0), X6, layers.carrier(6, 3))
    loss = lambda x: jnp.sum(layer.apply(variables, x, layers.carrier(6, 3))[1])  # noqa: E731
    expected = (np.ones((6, 3)) @ variables[layers.FEEDBACK]["R_L"]) * (X6 > 0)
    np.testing.assert_allclose(jax.grad(loss)(X6), expected, rtol=1e-5, atol=1e-7)


def test_a_rule_that_needs_no_carrier_may_forget_it():
    net = Forgetful(rules.compile("unit_fro(g)"), "forgets")
    variables = net.init(jax.random.key(0), X6)
    jax.grad(lambda v: cross_entropy(net.apply(v, X6), LABELS6))(variables)


# Activations.


def first_channel(x):
    return jnp.where(jnp.arange(x.shape[-1]) == 0, x, nn.tanh(x))


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize(
    "activation", [nn.softmax, nn.log_softmax, nn.standardize, jnp.sort, lambda x: jnp.cumsum(x, 0), nn.glu, jnp.sum]
)
def test_activations_that_mix_entries_are_refused(activation, rank):
    layer = layers.Dense(3, "g", activation) if rank == 2 else layers.Conv(3, rule="g", activation=activation)
    with pytest.raises(ValueError, match="does not act element by element"):
        jax.eval_shape(
            jax.jit(layer.init), jax.random.key(0), jnp.ones((2, 4, 4, 6)[:2] if rank == 2 else (2, 4, 4, 6))
        )


@pytest.mark.parametrize(
    "activation",
    [nn.relu, nn.gelu, nn.silu, nn.elu, nn.sigmoid, nn.leaky_relu, jnp.sin, jnp.sign, first_channel]
    + [lambda x: x * jnp.linspace(0, 1, 7), jnp.square],
)
def test_activations_that_act_element_by_element_are_not(activation):
    layer, x = layers.Dense(3, "g", activation), normal(1, 2, 7)
    variables = layer.init(jax.random.key(0), x)
    dx = jax.grad(lambda x: jnp.sum(layer.apply(variables, x)))(x)
    plain = jax.grad(lambda x: jnp.sum(activation(x) @ variables["params"]["kernel"]))(x)
    np.testing.assert_allclose(dx, plain, rtol=1e-5, atol=1e-6)


def test_without_a_rule_any_activation_has_its_own_gradient():
    layer, x = layers.Dense(3, activation=nn.softmax), normal(1, 2, 7)
    variables = layer.init(jax.random.key(0), x)
    dx = jax.grad(lambda x: jnp.sum(layer.apply(variables, x)[:, 0]))(x)
    np.testing.assert_allclose(
        dx, jax.grad(lambda x: jnp.sum(nn.softmax(x) @ variables["params"]["kernel"][:, 0]))(x), rtol=1e-5
    )


# What a layer is given.


@pytest.mark.parametrize(
    "rule", ["unit_fro(g)", "a1_sgd_3", rules.parse("unit_fro(g)"), rules.parse("unit_fro(g)").to_equation()]
)
def test_a_rule_may_be_a_text_a_name_or_an_expression(rule):
    x = normal(1, 3, 4)
    one, other = layers.Dense(2, rule), layers.Dense(2, rules.compile("unit_fro(g)"))
    variables = other.init(jax.random.key(0), x)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, one.init(jax.random.key(0), x)))
    gradients = [jax.grad(lambda x, la=la: jnp.sum(la.apply(variables, x)))(x) for la in (one, other)]
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize(
    "rule, error, message",
    [
        ("unit_fr(g)", rules.RuleSyntaxError, "the nearest is 'unit_fro'"),
        ("g + W", rules.InfeasibleEquation, r"\[B, I\] and \[I, O\]"),
        (3, ValueError, "takes a Rule, a text or a name such as .*, not 3"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_languages_errors(rule, error, message):
    with pytest.raises(error, match=message):
        layers.Dense(2, rule).init(jax.random.key(0), jnp.ones((3, 4)))


def test_no_activation_is_the_identity_and_one_number_is_a_square_kernel():
    x = normal(1, 2, 5, 5, 3)
    one = layers.Conv(4, 3, 2, rule="g", activation=None)
    other = layers.Conv(4, (3, 3), (2, 2), rule="g", activation=lambda x: x)
    variables = one.init(jax.random.key(0), x)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, other.init(jax.random.key(0), x)))
    np.testing.assert_array_equal(one.apply(variables, x), other.apply(variables, x))
    plain = nn.Conv(4, (3, 3), 2).apply({"params": variables["params"]}, x)
    np.testing.assert_allclose(one.apply(variables, x), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["g", "unit_fro(g) + mean(h)", "unit_elem_inf(g)"])
@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.Dense(3), (0, 4)),
        (layers.Dense(3), (2, 0)),
        (layers.Dense(0), (2, 4)),
        (layers.Conv(3), (0, 4, 4, 2)),
        (layers.Conv(3), (2, 0, 4, 2)),
        (layers.PooledDense(3), (0, 4, 4, 2)),
    ],
)
def test_empty_batches_and_layers_are_refused_by_their_shapes(rule, layer, shape):
    with pytest.raises(
        ValueError, match=rf"cannot train on nothing: x has the shape \({shape[0]}, .*skip empty batches"
    ):
        layer.clone(rule=rule).init(jax.random.key(0), jnp.zeros(shape))


def two_layers(params, x):
    return nn.relu(x @ params["below"]) @ params["above"]


def test_evolved_networks_refuse_empty_batches_and_what_is_no_rule():
    params = {"below": jnp.ones((4, 3)), "above": jnp.ones((3, 2))}
    net = layers.evolve(two_layers, "unit_elem_inf(g)")
    with pytest.raises(ValueError, match=r"above cannot train on nothing: x has the shape \(0, 3\)"):
        net.init(jax.random.key(0), params, jnp.zeros((0, 4)))
    with pytest.raises(ValueError, match="takes a Rule, a text or a name such as .*, not 3"):
        layers.evolve(two_layers, 3)


def test_empty_batches_without_a_rule_pass():
    layer, x = layers.Dense(3), jnp.zeros((0, 4))
    assert layer.init_with_output(jax.random.key(0), x)[0].shape == (0, 3)


# Noise and state.


@pytest.mark.parametrize("interpreted", [False, True])
def test_noise_needs_a_key_only_where_something_trains(interpreted):
    rule = rules.compile("add_noise(g, 0.1)")
    rule = rules.InterpretedRule.of(rule.expression.to_equation()) if interpreted else rule
    net, x = Two(rule), normal(1, 2, 4)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    loss = jax.jit(lambda p, rngs: jnp.sum(net.apply({**variables, "params": p}, x, rngs=rngs)))
    key = {"noise": jax.random.key(1)}
    np.testing.assert_array_equal(loss(variables["params"], None), loss(variables["params"], key))
    with pytest.raises(ValueError, match="of Dense_1 draws noise: call apply with rngs="):
        jax.eval_shape(jax.grad(loss), variables["params"], None)
    jax.eval_shape(jax.grad(loss), variables["params"], key)


def test_noise_differs_between_layers_and_keys_and_is_reproducible():
    x = normal(1, 6, 4)
    net = Two(rules.compile("add_noise(g - g, 1.0)"))
    variables = net.init(jax.random.key(0), x)

    def signals(key):
        """The noise at the output of the first unit, summed over samples, and at x."""

        def loss(params, x):
            return jnp.sum(net.apply({**variables, "params": params}, x, rngs={"noise": key}))

        params, x_gradient = jax.grad(loss, (0, 1))(variables["params"], x)
        return params["Dense_0"]["bias"], x_gradient

    one, again, other = signals(jax.random.key(1)), signals(jax.random.key(1)), signals(jax.random.key(2))
    for a, b, c in zip(one, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).all()
    assert not np.allclose(one[0][:4], one[1].sum(0))


@pytest.mark.parametrize(
    "rule, collections",
    [
        ("unit_fro(g) + clip(h, 0.5)", set()),
        (lambda u: u.backward(u.b_next, u.W), set()),
        ("add_noise(g, 0.1)", set()),
        ("fa", {layers.FEEDBACK}),
        ("g + mean(g)", {layers.OVERWRITE}),
    ],
)
def test_layers_have_only_the_variables_that_their_rule_needs(rule, collections):
    for layer, shape in ((layers.Dense(3, rule), (2, 4)), (layers.Conv(3, rule=rule), (2, 4, 4, 1))):
        assert set(jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros(shape))) == {"params"} | collections


def test_an_ordinary_train_state_trains_layers_whose_rule_keeps_no_state():
    x, labels = normal(1, 30, 4), jnp.argmax(normal(1, 30, 4)[:, :3], -1)
    net = Two("unit_elem2(g)")
    state = TrainState.create(apply_fn=net.apply, params=net.init(jax.random.key(0), x)["params"], tx=optax.adam(0.03))

    @jax.jit
    def step(state):
        loss = lambda params: cross_entropy(state.apply_fn({"params": params}, x), labels)  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradient), value

    state, first = step(state)
    for _ in range(50):
        state, last = step(state)
    assert last < 0.5 * first


def test_gradient_of_the_rules_state_is_its_next_state():
    layer, x = layers.Dense(3, rules.compile("mean(hp) + g")), normal(1, 5, 4)
    variables = layer.init(jax.random.key(0), x)
    state = variables.pop(layers.OVERWRITE)
    for step in (1, 2):
        x = normal(step, 5, 4)
        loss = lambda s, x=x: jnp.sum(layer.apply({**variables, layers.OVERWRITE: s}, x))  # noqa: E731
        state = jax.grad(loss)(state)
        assert state["rule"]["step"] == step
    first, second = normal(1, 5, 4).mean(0), normal(2, 5, 4).mean(0)
    np.testing.assert_allclose(state["rule"]["m"][0][0], (0.09 * first + 0.1 * second) / 0.19, rtol=1e-4, atol=1e-6)


# Feedback constants.


@pytest.mark.parametrize("keys", [jax.random.key(0), {"params": jax.random.key(0), "feedback": jax.random.key(0)}])
def test_random_feedback_is_not_the_weight_even_when_streams_share_a_key(keys):
    rule = rules.compile("fa")
    for layer, shape in ((layers.Dense(40, rule), (2, 90)), (layers.Conv(40, rule=rule), (2, 4, 4, 10))):
        variables = layer.init(keys, jnp.zeros(shape))
        w, r = variables["params"]["kernel"], variables[layers.FEEDBACK]["R"]
        assert w.shape == r.shape and abs(np.corrcoef(w.ravel(), r.ravel())[0, 1]) < 0.1
        fan_in = int(np.prod(w.shape[:-1]))
        np.testing.assert_allclose([w.std(), r.std()], [(2 / fan_in) ** 0.5] * 2, rtol=0.05)
        assert abs(r.mean()) < 0.1 * r.std()


def test_random_constants_are_independent_of_each_other():
    layer = layers.Dense(40, rules.compile("fa + (b_next @ S.T)"))
    constants = layer.init(jax.random.key(0), jnp.zeros((2, 50)))[layers.FEEDBACK]
    assert abs(np.corrcoef(constants["R"].ravel(), constants["S"].ravel())[0, 1]) < 0.1


def test_random_signs_have_the_deviation_of_the_initial_weights():
    variables = layers.Conv(40, rule=rules.compile("b_next @ S.T")).init(jax.random.key(0), normal(1, 2, 4, 4, 10))
    signs = variables[layers.FEEDBACK]["S"]
    np.testing.assert_allclose(jnp.abs(signs), (2 / 90) ** 0.5, rtol=1e-6)
    assert signs.shape == (3, 3, 10, 40) and abs((signs > 0).mean() - 0.5) < 0.03


def test_direct_feedback_has_variance_one_over_the_classes():
    classes, carrier = 50, layers.carrier(2, 50)
    dense = layers.Dense(3, rules.compile("dfa")).init(jax.random.key(0), normal(1, 2, 80), carrier)
    conv = layers.Conv(3, rule=rules.compile("dfa")).init(jax.random.key(0), normal(1, 2, 4, 5, 4), carrier)
    assert dense[layers.FEEDBACK]["R_L"].shape == (classes, 80)
    assert conv[layers.FEEDBACK]["R_L"].shape == (classes, 4, 5, 4)
    for variables in (dense, conv):
        np.testing.assert_allclose(variables[layers.FEEDBACK]["R_L"].var(), 1 / classes, rtol=0.1)


def test_rules_hold_only_the_constants_that_they_read():
    x, carrier = normal(1, 2, 4), layers.carrier(2, 3)
    for rule, names in (("g", set()), ("fa + (b_next @ S.T)", {"R", "S"}), ("dfa", {"R_L"})):
        variables = layers.Dense(3, rules.compile(rule)).init(jax.random.key(0), x, carrier)
        assert set(variables.get(layers.FEEDBACK, {})) == names


@pytest.mark.parametrize(
    "layer, shape, message",
    [
        (layers.Dense(3), (4,), r"Dense needs \[B, …, I\]"),
        (layers.Conv(3), (2, 3, 4), r"Conv needs \[B, …, H, W, I\]"),
        (layers.PooledDense(3), (2, 3), r"PooledDense needs \[B, H, W, I\]"),
        (layers.Conv(3, padding="same"), (2, 3, 3, 1), "'SAME' or 'VALID'"),
    ],
)
def test_wrong_shapes_and_paddings_are_refused(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), jnp.zeros(shape))


# Convolution primitives.

WINDOWS = [
    (kernel, strides, padding)
    for kernel in ((1, 1), (3, 3), (5, 3))
    for strides in ((1, 1), (2, 2), (2, 1))
    for padding in ("SAME", "VALID")
]


@pytest.mark.parametrize("small", [False, True], ids=["convolutions", "products"])
@pytest.mark.parametrize("index", range(len(WINDOWS)))
def test_convolution_and_its_gradients_agree_with_the_dense_matrix(index, small, monkeypatch):
    monkeypatch.setattr(convolution, "_small", lambda *_: small)  # both forms that the CPU has
    kernel, strides, padding = WINDOWS[index]
    size = (6, 5)
    window = convolution.window(size, kernel, strides, padding)
    pads = oracle.same_padding(size, kernel, strides) if padding == "SAME" else ((0, 0), (0, 0))
    assert window.padding == pads
    x, w = normal(1, 3, *size, 2), normal(2, *kernel, 2, 4)
    expected = oracle.conv(x, w, strides, pads)
    b = normal(3, *expected.shape)

    def all_three(x, w, b):
        return (
            convolution.conv(x, w, window),
            convolution.conv_input_gradient(b, w, size, window),
            convolution.conv_weight_gradient(x, b, kernel, window),
        )

    def agrees(results, x, w, b):
        wanted = (
            oracle.conv(x, w, strides, pads),
            oracle.conv_input_gradient(b, w, (*size, 2), strides, pads),
            oracle.conv_weight_gradient(x, b, w.shape, strides, pads),
        )
        for actual, expected in zip(results, wanted, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)

    # Mapped over candidates: everything, or one of the three arguments, has an axis of candidates.
    which = ((0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0))[(index + small) % 4]
    args = [a if axis is None else jnp.stack([a, -0.5 * a]) for a, axis in zip((x, w, b), which, strict=True)]
    both = lambda one, all: (all_three(*one), jax.vmap(all_three, which)(*all))  # noqa: E731
    alone, results = jax.jit(both, compiler_options=FAST)((x, w, b), args)
    agrees(alone, x, w, b)
    for i in range(2):
        agrees([r[i] for r in results], *(a if axis is None else a[i] for a, axis in zip(args, which, strict=True)))


@pytest.mark.parametrize("strides", [1, 2])
def test_on_a_gpu_mapped_weight_gradients_are_matrix_products_and_no_convolution_is_grouped(strides):
    geometry = convolution.window((8, 8), (3, 3), (strides, strides), "SAME")
    x, w = jnp.ones((4, 2, 8, 8, 5)), jnp.ones((4, 3, 3, 5, 6))
    b = jax.vmap(lambda x, w: convolution.conv(x, w, geometry))(x, w)

    def text(function, *arguments):
        return jax.jit(jax.vmap(function)).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()

    gradient = text(lambda x, b: convolution.conv_weight_gradient(x, b, (3, 3), geometry), x, b)
    assert "stablehlo.dot_general" in gradient and "stablehlo.convolution" not in gradient
    for lowered in (
        text(lambda x, w: convolution.conv(x, w, geometry), x, w),
        text(lambda b, w: convolution.conv_input_gradient(b, w, (8, 8), geometry), b, w),
    ):
        assert lowered.count("stablehlo.convolution") == 4  # one per candidate
        groups = re.findall(r"(?:feature|batch)_group_count = (\d+)", lowered)
        assert groups and set(groups) == {"1"}


@pytest.mark.parametrize(
    ("side", "kernel", "channels", "products"),
    [
        (4, (3, 3), (5, 6), (False, False)),
        (4, (1, 1), (5, 6), (True, True)),  # of one position
        (3, (3, 3), (5, 6), (False, False)),
        (2, (3, 3), (5, 6), (True, True)),  # smaller than the kernel
        (4, (3, 3), (4, 5), (True, False)),  # few channels on its own side
        (4, (3, 3), (5, 4), (False, True)),
    ],
)
def test_on_a_cpu_small_convolutions_are_matrix_products(side, kernel, channels, products):
    geometry = convolution.window((side, side), kernel, (1, 1), "SAME")
    x, b = (jnp.ones((2, side, side, c)) for c in channels)
    w = jnp.ones((*kernel, *channels))

    def of_products(function, *arguments):
        text = jax.jit(function).lower(*arguments).as_text()
        assert ("stablehlo.dot_general" in text) != ("stablehlo.convolution" in text)
        return "stablehlo.dot_general" in text

    forward = of_products(lambda x, w: convolution.conv(x, w, geometry), x, w)
    backward = of_products(lambda b, w: convolution.conv_input_gradient(b, w, (side, side), geometry), b, w)
    assert (forward, backward) == products
