"""Networks of rule-driven layers: backprop against plain Flax, other rules against the oracle, sizes, compiled code."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from bpevo import layers, models, rules
from bpevo.rules import InterpretedRule

BACKPROP = ("g", "(b_next @ W.T) * dh")
CLASSES = 4
FAST = {"xla_backend_optimization_level": 0}  # to compile


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def cross_entropy(logits, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))


def network_loss(net, variables, params, x, labels):
    logits, new = net.apply({**variables, "params": params}, x, mutable=["batch_stats"])
    return cross_entropy(logits, labels), new


def assert_trees_agree(actual, expected, tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            a, e, rtol=tolerance, atol=tolerance * float(jnp.abs(e).max()) + 1e-7, err_msg=jax.tree_util.keystr(path)
        )


# Plain networks, from Flax alone.


class PlainMLP(nn.Module):
    hidden: tuple

    @nn.compact
    def __call__(self, x, train=True):
        x = x.reshape(x.shape[0], -1)
        for features in self.hidden:
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(CLASSES)(x)


class PlainWRN(nn.Module):
    """Wide ResNet of 1605.07146: BN-ReLU-conv twice a block, 1x1 shortcut of the activated input on new widths."""

    depth: int
    width: int

    @nn.compact
    def __call__(self, x, train=True):
        def conv(features, kernel, stride):
            return nn.Conv(features, (kernel, kernel), stride, use_bias=False)

        def activated(x):
            return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))

        x = conv(16, 3, 1)(x)
        for group in range(3):
            features = 16 * 2**group * self.width
            for block in range((self.depth - 4) // 6):
                stride = 2 if group > 0 and block == 0 else 1
                first = activated(x)
                y = conv(features, 3, stride)(first)
                y = conv(features, 3, 1)(activated(y))
                shortcut = x if x.shape[-1] == features else conv(features, 1, stride)(first)
                x = shortcut + y
        return nn.Dense(CLASSES)(activated(x).mean((1, 2)))


# Backprop.


@pytest.mark.parametrize("rule", BACKPROP)
def test_mlp_with_a_backprop_rule_has_autodiffs_gradients(rule):
    x, labels = normal(1, 8, 3, 2, 1), jnp.arange(8) % CLASSES
    net, plain = models.MLP((7, 6, 5), CLASSES, rules.compile(rule)), PlainMLP((7, 6, 5))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    params = variables.pop("params")
    grad = jax.jit(jax.value_and_grad(network_loss, argnums=2, has_aux=True), static_argnums=0)
    (loss, _), gradients = grad(net, variables, params, x, labels)
    (expected_loss, _), expected = grad(plain, {}, params, x, labels)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    assert_trees_agree(gradients, expected, 1e-5)


IMAGES, LABELS = (2, 4, 16, 16, 3), jnp.arange(4) % CLASSES  # two batches of images


@pytest.fixture(scope="module")
def wrn():
    """Variables of WRN-10-1, and its plain gradients on two batches."""
    images = normal(1, *IMAGES)
    net = models.WideResNet(10, 1, CLASSES, rules.compile("g"))
    variables = jax.eval_shape(net.init, jax.random.key(0), images[0])
    params = jax.tree.map(lambda p: 0.1 * normal(p.size, *p.shape) + 0.5 * (len(p.shape) == 1), variables.pop("params"))
    variables = jax.tree.map(lambda v: jnp.full(v.shape, 0.5), variables)
    plain = jax.jit(jax.value_and_grad(network_loss, argnums=2, has_aux=True), static_argnums=0)
    return images, variables, params, [plain(PlainWRN(10, 1), variables, params, x, LABELS) for x in images]


def scan_of_gradients(net, variables, params, images):
    """Gradients of every batch, from one loop as training has it."""
    grad = jax.value_and_grad(network_loss, argnums=2, has_aux=True)
    return jax.lax.scan(lambda carry, x: (carry, grad(net, variables, params, x, LABELS)), 0, images)[1]


@pytest.mark.parametrize("rule", BACKPROP)
def test_wide_resnet_with_a_backprop_rule_has_autodiffs_gradients_in_fast_loops(wrn, rule):
    images, variables, params, expected = wrn
    net = models.WideResNet(10, 1, CLASSES, rules.compile(rule))
    compiled = jax.jit(scan_of_gradients, static_argnums=0).lower(net, variables, params, images).compile()
    results = compiled(variables, params, images)
    for i, ((loss, new), gradients) in enumerate(expected):
        (our_loss, our_new), ours = jax.tree.map(lambda r, i=i: r[i], results)
        np.testing.assert_allclose(our_loss, loss, rtol=1e-5)
        assert_trees_agree(ours, gradients, 3e-4)
        assert_trees_agree(our_new["batch_stats"], new["batch_stats"], 1e-4)
    if jax.default_backend() == "cpu":
        # XLA's CPU backend runs a convolution inside a loop fast only if it is a canonical forward convolution.
        text = compiled.as_text()
        assert " while(" in text
        convolutions = re.findall(r"= \S+ convolution\(.*", text)
        assert len(convolutions) >= 12  # at least 7 of 3x3 forward and 6 of them backward, some maybe fused
        for line in convolutions:
            assert "dim_labels=b01f_01io->b01f" in line, line
            assert "feature_group_count" not in line and "batch_group_count" not in line, line


@pytest.mark.parametrize("name, count", [("wrn-10-1", 77_850), ("wrn-16-2", 691_674), ("wrn-28-10", 36_479_194)])
def test_wide_resnets_have_the_papers_numbers_of_parameters(name, count):
    net = models.by_name(name, 10, rules.compile("g"))
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
    assert sum(int(np.prod(p.shape)) for p in jax.tree.leaves(shapes["params"])) == count


def test_wide_resnet_in_bfloat16_keeps_parameters_and_logits_float32(wrn):
    images, variables, params, _ = wrn
    net = models.WideResNet(10, 1, CLASSES, rules.compile("unit_fro(g) + (0.5*bn(gh))"), jnp.bfloat16)
    shapes = jax.eval_shape(net.init, jax.random.key(0), images[0])
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    state = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes[layers.OVERWRITE])
    batch_stats = variables["batch_stats"]

    def step(params, state, x):
        def loss(params, state):
            collections = {"params": params, "batch_stats": batch_stats, layers.OVERWRITE: state}
            mutable = ["batch_stats", "intermediates"]
            logits, new = net.apply(collections, x, mutable=mutable, capture_intermediates=True)
            return cross_entropy(logits, LABELS), (logits, new)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, state)

    (_, (logits, new)), (gradients, new_state) = jax.jit(step)(params, state, images[0])
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(new["intermediates"]["Conv_0"])} == {jnp.dtype("bfloat16")}
    for old, tree in ((params, gradients), (state, new_state), (batch_stats, new["batch_stats"])):
        assert jax.tree.map(lambda v: (v.shape, v.dtype), tree) == jax.tree.map(lambda v: (v.shape, v.dtype), old)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))
    assert all(bool((leaf != 0).any()) for leaf in jax.tree.leaves(gradients))


def test_evaluation_uses_running_averages_of_batch_norm(wrn):
    images, variables, params, _ = wrn
    net = models.WideResNet(10, 1, CLASSES, rules.compile("g"))
    logits = jax.jit(lambda p: net.apply({**variables, "params": p}, images[0], train=False))(params)
    collections = {"params": params, "batch_stats": variables["batch_stats"]}
    plain = jax.jit(lambda v: PlainWRN(10, 1).apply(v, images[0], train=False))(collections)
    np.testing.assert_allclose(logits, plain, rtol=1e-4, atol=1e-4)


# Other rules, against the oracle.

ORACLE_RULES = [
    "feedback_alignment",
    "direct_feedback_alignment",
    "frsf",
    *("a1_sgd_1", "a1_sgd_2", "a1_momentum_1", "a1_momentum_2", "a2_sgd_1", "a2_sgd_2", "a2_momentum_1"),
    *("a2_momentum_2", "a3_sgd_1", "a3_sgd_2", "b1_sgd_1", "b1_sgd_4", "b1_momentum_1", "b1_momentum_3"),
]


@pytest.mark.parametrize("name", ORACLE_RULES)
def test_mlp_follows_the_oracle_over_two_steps(name):
    text, batch = rules.NAMED[name], 12
    net = models.MLP((8, 6, 5), CLASSES, rules.compile(name))
    labels = jnp.arange(batch) % CLASSES
    images = [normal(1, batch, 5), normal(2, batch, 5)]
    variables = jax.jit(net.init, compiler_options=FAST)(
        {"params": jax.random.key(3), "feedback": jax.random.key(4)}, images[0]
    )
    params, state = variables["params"], variables.get(layers.OVERWRITE, {})
    feedback = variables.get(layers.FEEDBACK, {})
    shapes = [(8, 6), (6, 5), (5, CLASSES)]
    zeros = [{"R": np.zeros(s), "S": np.zeros(s), "R_L": np.zeros((CLASSES, s[0]))} for s in shapes]
    constants = [z | feedback.get(f"Dense_{i}", {}) for i, z in enumerate(zeros, 1)]
    references = [oracle.Rule(text) for _ in shapes]

    @functools.partial(jax.jit, compiler_options=FAST)
    def gradients(params, state, x):
        def loss(params, state):
            return cross_entropy(net.apply({**variables, "params": params, layers.OVERWRITE: state}, x), labels)

        return jax.value_and_grad(loss, (0, 1))(params, state)

    for x in images:
        weights = [(params[f"Dense_{i}"]["kernel"], params[f"Dense_{i}"]["bias"]) for i in range(4)]
        expected, expected_loss = oracle.mlp_gradients(weights, x, labels, references, constants)
        loss, (ours, state) = gradients(params, state, x)
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
        for i, (kernel, bias) in enumerate(expected):
            for actual, wanted in ((ours[f"Dense_{i}"]["kernel"], kernel), (ours[f"Dense_{i}"]["bias"], bias)):
                tolerance = 1e-4 * np.abs(wanted).max()
                np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=tolerance, err_msg=f"layer {i}")
        params = jax.tree.map(lambda p, g: p - 0.01 * g / (1 + jnp.abs(g).max()), params, ours)


# Equations as data, side by side.


def test_candidates_with_different_equations_train_side_by_side_as_alone():
    x, labels = normal(1, 6, 5), jnp.arange(6) % CLASSES
    texts = ["g", "fa", "bn(gh) * dh", "unit_fro(g) + (0.5*g)", "drop(g, 0.3) - unit_elem0(bn(dfah))"]
    programs = [rules.assemble(rules.parse(text).to_equation()) for text in texts]

    def net(rule):
        return models.MLP((5,), CLASSES, rule)

    def gradients(program, params, state, feedback, key):
        def loss(params, state):
            collections = {"params": params, layers.OVERWRITE: state, layers.FEEDBACK: feedback}
            logits = net(InterpretedRule(program)).apply(collections, x, rngs={"noise": key})
            return cross_entropy(logits, labels)

        return jax.grad(loss, (0, 1))(params, state)

    candidates = []
    for i, program in enumerate(programs):
        v = net(InterpretedRule(program)).init(jax.random.key(i), x)
        candidates.append((program, v["params"], v[layers.OVERWRITE], v[layers.FEEDBACK], jax.random.key(10 + i)))
    together = jax.jit(jax.vmap(gradients))(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *candidates))
    alone = jax.jit(gradients)
    for i, (text, candidate) in enumerate(zip(texts, candidates, strict=True)):
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        assert_trees_agree(mine, alone(*candidate), 1e-5)
        _, params, _, feedback, key = candidate
        compiled = net(rules.compile(text))
        state = compiled.init(jax.random.key(0), x).get(layers.OVERWRITE, {})

        def loss(params, compiled=compiled, state=state, feedback=feedback, key=key):
            collections = {"params": params, layers.OVERWRITE: state, layers.FEEDBACK: feedback}
            return cross_entropy(compiled.apply(collections, x, rngs={"noise": key}), labels)

        assert_trees_agree(mine[0], jax.grad(loss)(params), 1e-4)


# Names.


def test_networks_have_names():
    assert models.by_name("wrn-28-10", 100) == models.WideResNet(28, 10, 100)
    assert models.by_name("mlp-64-32", 10) == models.MLP((64, 32), 10)
    assert models.by_name("wrn-10-1").width == 1 and models.by_name("wrn-100-999").depth == 100
    assert {m.classes for m in (models.by_name("mlp-8"), models.MLP((8,)), models.WideResNet(10, 1))} == {10}


@pytest.mark.parametrize(
    "name, hint",
    [
        ("wnr-16-2", "; the nearest is 'wrn-16-2': write"),
        ("wnr-16", ": write"),
        ("mlpp-8-8", "; the nearest is 'mlp-8-8'"),
    ],
)
def test_a_slip_in_a_networks_name_is_answered_by_the_nearest(name, hint):
    with pytest.raises(ValueError, match=f"^no model '{name}'{hint}"):
        models.by_name(name)


WRONG = ["wrn-12-1", "wrn-4-1", "wrn-10-0", "wrn-10", "mlp", "mlp-0", "mlp-64-", "WRN-10-1", "resnet", ""]


@pytest.mark.parametrize("name", WRONG)
def test_unknown_networks_are_refused_with_the_form_to_write(name):
    with pytest.raises(
        ValueError, match="no model .*write wrn-DEPTH-WIDTH with depth 6n.*mlp-HIDDEN.*or package.module:factory"
    ):
        models.by_name(name)


@pytest.mark.parametrize("hidden", [64, (), "64"])
def test_hidden_layers_without_a_list_of_sizes_are_refused(hidden):
    with pytest.raises(ValueError, match=rf"as a tuple, such as \(64, 64\), not {re.escape(repr(hidden))}"):
        models.MLP(hidden).init(jax.random.key(0), jnp.zeros((1, 8)))


@pytest.mark.parametrize("depth", [11, 4])
def test_wrong_depth_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth is 6n.*not {depth}"):
        models.WideResNet(depth, 1).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_a_family_of_ones_own_has_names():
    def build(groups, classes, rule, dtype):
        if groups[0] == "9":
            raise ValueError("nine is no size")
        return models.MLP((int(groups[0]),), classes, rule, dtype)

    models.MODELS["tiny"] = models.Family("tiny-N (tiny-3)", r"(\d)", build)
    try:
        assert models.by_name("tiny-3", 4).hidden == (3,)
        with pytest.raises(ValueError, match=r"no model 'tiny-33': write .*tiny-N \(tiny-3\)"):
            models.by_name("tiny-33")
        with pytest.raises(ValueError, match="no model 'tiny-9': nine is no size"):
            models.by_name("tiny-9")
    finally:
        del models.MODELS["tiny"]
