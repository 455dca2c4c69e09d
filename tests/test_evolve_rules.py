"""What a rule sees in a network that was not written for it: layouts, positions, state, noise, loops, transformations."""

import functools
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax import lax
from test_evolve import FAST, normal, per_sample

from bpevo import rules
from bpevo.layers import evaluation
from bpevo.layers.evolve import evolve


def assert_close(actual, expected, tolerance=1e-5):
    for (path, a), e in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        largest = float(jnp.abs(e).max())
        np.testing.assert_allclose(
            a, e, rtol=tolerance, atol=tolerance * largest + 1e-7, err_msg=jax.tree_util.keystr(path)
        )


def step(net, params, state, x, target=None):
    """Gradients and next state of a loss that is not linear in the logits."""

    def loss(params, state):
        y = net(params, state, x)
        return jnp.sum((y - (0 if target is None else target)) ** 2) / y.shape[0]

    return jax.jit(jax.grad(loss, (0, 1)), compiler_options=FAST)(params, state)


def one_unit(params, x):
    """hp is x, as `below` is 1, so that the gradient by x is the signal."""
    return jnp.tanh(x * params["below"]) @ params["w"] + params["b"]


def signal_of(rule, params, x, cotangent, steps=1, change=lambda state: state):
    net = evolve(one_unit, rule)
    state = change(net.init(jax.random.key(3), params, x))
    backward = jax.jit(lambda state: jax.grad(lambda x, s: jnp.vdot(net(params, s, x), cotangent), (0, 1))(x, state))
    for _ in range(steps):
        signal, state = backward(state)
    return signal, state


# Positions.


@pytest.mark.parametrize("text", ["unit_row2(g) + unit_elem0(mean(dh))", "unit_mat1(std(h)) * fa", "(h @ W) @ W.T"])
def test_dense_on_positions_is_the_oracles_1x1_convolution(text):
    params = {"below": jnp.float32(1), "w": normal(1, 4, 3), "b": normal(2, 3)}
    x, cotangent = normal(3, 5, 6, 4), normal(4, 5, 6, 3)
    signal, state = signal_of(text, params, x, cotangent)
    r = state.get("w", {}).get("constants", {}).get("R", jnp.zeros((4, 3)))
    h = np.tanh(x)
    unit = oracle.Unit(
        **{k: v[:, :, None] for k, v in {"hp": x, "h": h, "dh": 1 - h**2, "b_next": cotangent}.items()},
        **{k: v.reshape(1, 1, 4, 3) for k, v in {"W": params["w"], "R": r, "S": r}.items()},
        **{"hp_next": (h @ params["w"] + params["b"])[:, :, None], "R_L": None, "b_L": None},
        **{"strides": (1, 1), "padding": ((0, 0), (0, 0))},
    )
    np.testing.assert_allclose(signal, oracle.Rule(text)(unit)[:, :, 0], rtol=1e-4, atol=1e-6)


def test_rules_see_the_bias_in_hp_next_and_products_of_averages():
    params, x = {"below": jnp.float32(1), "w": normal(1, 4, 3), "b": normal(2, 3)}, normal(3, 5, 4)
    h, w = jnp.tanh(x), params["w"]
    signal, _ = signal_of("hp_next @ W.T", params, x, normal(4, 5, 3))
    np.testing.assert_allclose(signal, (h @ w + params["b"]) @ w.T, rtol=1e-4, atol=1e-6)
    signal, _ = signal_of("(h - h) + ((mean(h) @ W) @ W.T)", params, x, normal(4, 5, 3))
    np.testing.assert_allclose(signal, jnp.broadcast_to(h.mean(0) @ w @ w.T, x.shape), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (6, 3), (1, 3), (6, 1), (5, 6, 3), ()])
def test_a_bias_of_any_shape_has_autodiffs_gradient(shape):
    params = {"below": jnp.float32(1), "w": normal(1, 4, 3), "b": normal(2, *shape)}
    x, cotangent = normal(3, 5, 6, 4), normal(4, 5, 6, 3)
    net = evolve(one_unit, "g")
    state = net.init(jax.random.key(0), params, x)
    assert len(net.last) == 1
    ours = jax.grad(lambda p: jnp.vdot(net(p, state, x), cotangent))(params)
    assert_close(ours, jax.grad(lambda p: jnp.vdot(one_unit(p, x), cotangent))(params))


def test_scaling_before_an_activation_is_not_part_of_it():
    def network(params, x):
        return jnp.tanh(2 * (x * params["below"]) + 0.5) @ params["w"]

    params, x = {"below": jnp.float32(1), "w": normal(1, 4, 3)}, normal(3, 5, 4)
    net = evolve(network, "dh")
    signal = jax.grad(lambda x: jnp.sum(net(params, net.init(jax.random.key(0), params, x), x)))(x)
    np.testing.assert_allclose(
        signal, 2 * (1 - jnp.tanh(2 * x + 0.5) ** 2), rtol=1e-4, atol=1e-6
    )  # 2 from below the unit


def test_rules_compute_in_float32_where_the_network_does_not():
    def network(params, x):
        return jax.nn.relu(x * params["below"]).astype(jnp.bfloat16) @ params["w"].astype(jnp.bfloat16)

    params, x = {"below": jnp.float32(1), "w": normal(1, 40, 30)}, normal(3, 5, 40)
    cotangent = normal(4, 5, 30).astype(jnp.bfloat16)
    net = evolve(network, "(mean(fah) + mean(gh)) + g")
    state = net.init(jax.random.key(0), params, x)
    following = jax.jit(jax.grad(lambda s: jnp.vdot(net(params, s, x), cotangent)), compiler_options=FAST)(state)
    assert jax.eval_shape(net, params, state, x).dtype == jnp.bfloat16
    for k, matrix in enumerate((state["w"]["constants"]["R"], params["w"])):  # the weight as it is, not rounded
        expected = (cotangent.astype(jnp.float32) @ matrix.T).mean(0)
        np.testing.assert_allclose(following["w"]["rule"]["m"][k][0], expected, rtol=1e-4, atol=1e-5)


def test_what_follows_a_conversion_between_floats_belongs_to_the_linear_map():
    """[relu, mean over pairs and product], the mean taken in bfloat16: the rule sees the product of it."""
    params = {"below": jnp.ones(6), "w": normal(31, 3, 5)}

    def network(params, x):
        h = jax.nn.relu(x * params["below"]).astype(jnp.bfloat16)
        return h.reshape(-1, 3, 2).mean(-1) @ params["w"].astype(jnp.bfloat16)

    x, cotangent = normal(32, 4, 6), normal(33, 4, 5)
    net = evolve(network, "hp_next @ W.T")
    state = net.init(jax.random.key(0), params, x)
    _, pull = jax.vjp(lambda x: net(params, state, x), x)
    h = np.maximum(x, 0).reshape(4, 3, 2).mean(-1)
    expected = np.repeat((h @ params["w"] @ params["w"].T)[..., None] / 2, 2, -1).reshape(4, 6)
    np.testing.assert_allclose(pull(cotangent.astype(jnp.bfloat16))[0], expected, rtol=0.03, atol=0.03)


def test_direct_feedback_is_per_position_where_logits_and_unit_share_positions():
    params = {"below": jnp.float32(1), "w": normal(1, 4, 3), "b": normal(2, 3)}
    x, b_L = normal(3, 5, 6, 4), normal(4, 5, 6, 3)  # noqa: N806
    signal, state = signal_of("b_L @ R_L", params, x, b_L)
    r_l = state["w"]["constants"]["R_L"]
    assert r_l.shape == (3, 4)
    np.testing.assert_allclose(signal, jnp.einsum("btv,vi->bti", b_L, r_l), rtol=1e-4, atol=1e-5)
    signal, state = signal_of("(h @ R_L.T) @ R_L", params, x, b_L)
    r_l = state["w"]["constants"]["R_L"]
    np.testing.assert_allclose(signal, jnp.tanh(x) @ r_l.T @ r_l, rtol=1e-4, atol=1e-5)


def test_direct_feedback_joins_positions_that_the_logits_do_not_have():
    def network(params, x):
        return jax.nn.relu(x * params["below"]).mean(1) @ params["w"]

    params, x = {"below": jnp.float32(1), "w": normal(1, 4, 3)}, normal(3, 5, 6, 4)
    state = evolve(network, "dfa").init(jax.random.key(0), params, x)
    assert state["w"]["constants"]["R_L"].shape == (3, 6, 4)


# Layouts: constants have the kernel's form [inputs…, O] whatever the layout of the weight, and samples come first.


def test_feedback_through_the_weight_itself_is_backprop_in_every_layout():
    def network(params, x):
        x = lax.conv_general_dilated(x, params["oihw"], (1, 1), "SAME")  # NCHW
        x = jax.nn.relu(x)
        x = lax.conv_general_dilated(x, params["grouped"], (2, 2), "SAME", feature_group_count=2)
        x = lax.reduce_window(jax.nn.relu(x), 0.0, lax.add, (1, 1, 2, 2), (1, 1, 1, 1), "VALID")
        x = jnp.einsum("bchw,ocw->boh", x, params["ocw"])
        return jnp.einsum("boh,kh->bok", jax.nn.relu(x), params["kh"]).reshape(x.shape[0], -1)

    shapes = {"oihw": (4, 2, 3, 3), "grouped": (6, 2, 3, 3), "ocw": (5, 6, 2), "kh": (3, 2)}
    params, x = {n: 0.5 * normal(i, *s) for i, (n, s) in enumerate(shapes.items())}, normal(9, 3, 2, 6, 6)
    net = evolve(network, "fa")
    state = net.init(jax.random.key(0), params, x)
    kernels = {
        "grouped": params["grouped"].transpose(2, 3, 1, 0),
        "ocw": params["ocw"].transpose(1, 2, 0).reshape(12, 5).reshape(6, 2, 5),
        "kh": params["kh"].T,
    }
    assert {name: s["constants"]["R"].shape for name, s in state.items()} == {n: k.shape for n, k in kernels.items()}
    state = {name: s | {"constants": {"R": kernels[name]}} for name, s in state.items()}
    gradient, _ = step(net, params, state, x)
    assert_close(gradient, jax.jit(jax.grad(lambda p: jnp.sum(network(p, x) ** 2) / 3))(params))


def test_networks_for_one_sample_are_the_same_networks_for_a_batch():
    network, model, x = per_sample()

    def batched(params, x):
        (w0, b0), w1, (w2, b2) = params
        return jnp.tanh(jnp.tanh(x @ w0 + b0) @ w1) @ w2 + b2

    params = ((model[0].weight.T, model[0].bias), model[1].weight.T, (model[2].weight.T, model[2].bias))
    rule = "unit_row2(fa) + (mean(hp_next) @ W.T) * dh"
    ours, theirs = evolve(network, rule), evolve(batched, rule)
    state = ours.init(jax.random.key(0), model, x)
    renamed = dict(zip(theirs.init(jax.random.key(0), params, x), state.values(), strict=True))
    (gradient, following), (expected, wanted) = step(ours, model, state, x), step(theirs, params, renamed, x)
    assert_close([m.weight.T for m in gradient], [expected[0][0], expected[1], expected[2][0]])
    assert_close(list(following.values()), list(wanted.values()))


# State.


def two_layers(params, x):
    return jax.nn.relu(jax.nn.relu(x @ params["a"]) @ params["b"]) @ params["c"]


TWO, X = {"a": normal(1, 3, 4), "b": normal(2, 4, 5), "c": normal(3, 5, 2)}, normal(4, 6, 3)


def test_mlp_follows_the_oracle_over_two_steps():
    def network(params, x):
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        return x @ params[-1][0] + params[-1][1]

    sizes, labels = (5, 8, 6, 4), jnp.arange(12) % 4
    start = [(normal(i, *s), normal(i + 9, s[1])) for i, s in enumerate(zip(sizes, sizes[1:], strict=False))]

    @functools.partial(jax.jit, compiler_options=FAST)
    def gradients(program, params, state, x):
        net = evolve(network, rules.InterpretedRule(program))

        def loss(params, state):
            logits = jax.nn.log_softmax(net(params, state, x))
            return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], 1))

        return jax.value_and_grad(loss, (0, 1))(params, state)

    blank = evolve(network, rules.InterpretedRule(rules.blank_program()))
    for name in ("feedback_alignment", "direct_feedback_alignment", "frsf", "a2_sgd_2", "a3_sgd_1", "b1_momentum_1"):
        program = rules.assemble(rules.parse(rules.NAMED[name]).to_equation())
        params, state = start, blank.init(jax.random.key(0), start, normal(1, 12, 5))
        references, constants = (
            [oracle.Rule(rules.NAMED[name]) for _ in state],
            [s["constants"] for s in state.values()],
        )
        for x in (normal(1, 12, 5), normal(2, 12, 5)):
            expected, expected_loss = oracle.mlp_gradients(params, x, labels, references, constants)
            loss, (ours, state) = gradients(program, params, state, x)
            np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
            for actual, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max(), err_msg=name)
            params = jax.tree.map(lambda p, g: p - 0.01 * g / (1 + jnp.abs(g).max()), params, ours)


def test_constants_are_their_own_next_value_and_statistics_count_steps():
    net = evolve(two_layers, "fa + dfa + mean(gh)")
    start = state = net.init(jax.random.key(0), TWO, X)
    for t in (1, 2):
        _, state = step(net, TWO, state, X)
        for name in ("b", "c"):
            assert (state[name]["rule"]["step"], state[name]["uses"]) == (t, 1)
            for constant in ("R", "R_L"):
                np.testing.assert_array_equal(state[name]["constants"][constant], start[name]["constants"][constant])


def test_state_of_units_that_the_loss_does_not_read_is_kept():
    net = evolve(lambda p, x: (two_layers(p, x), (x @ p["a"]).sum(-1)), "fa + mean(gh)")
    state = net.init(jax.random.key(0), TWO, X)
    following = jax.jit(jax.grad(lambda s: jnp.sum(net(TWO, s, X)[1])))(state)
    assert jax.tree.map(jnp.shape, following) == jax.tree.map(jnp.shape, state)
    for name in ("b", "c"):
        np.testing.assert_array_equal(following[name]["constants"]["R"], state[name]["constants"]["R"])
        assert following[name]["rule"]["step"] == 1


def test_several_calls_in_one_gradient_share_their_state():
    net = evolve(two_layers, "add_noise(fa, 0.1) + mean(gh)")
    start = state = once = net.init(jax.random.key(0), TWO, X)
    assert start["b"]["uses"] == start["b"]["rule"]["uses"] == 1
    both = jax.jit(jax.grad(lambda s: jnp.sum(net(TWO, s, X)) + jnp.sum(net(TWO, s, 2 * X))), compiler_options=FAST)
    alone = jax.jit(jax.grad(lambda s: jnp.sum(net(TWO, s, X))), compiler_options=FAST)
    for _ in range(3):
        state, once = both(state), alone(once)
    assert state["b"]["uses"] == state["b"]["rule"]["uses"] == 2
    following, once = alone(state), alone(once)
    for name in ("b", "c"):
        np.testing.assert_array_equal(following[name]["rule"]["noise"], once[name]["rule"]["noise"])
        np.testing.assert_allclose(following[name]["constants"]["R"], start[name]["constants"]["R"], rtol=1e-6)
        assert following[name]["rule"]["rule"]["step"] == 4
        words = following[name]["rule"]["noise"]
        assert ((words >= 0) & (words < 2**16) & (words == jnp.round(words))).all()


def test_feedback_has_the_deviation_of_he_or_of_feedback_init():
    params, x = {"a": normal(1, 3, 400), "b": normal(2, 400, 100)}, normal(3, 2, 3)
    network = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]  # noqa: E731
    rule = "(b_next @ R.T) + (b_next @ S.T) + dfa"
    for init, deviation in ((None, (2 / 400) ** 0.5), (nn.initializers.normal(0.3), 0.3)):
        constants = evolve(network, rule, feedback_init=init).init(jax.random.key(0), params, x)["b"]["constants"]
        np.testing.assert_allclose(constants["R"].std(), deviation, rtol=0.02)
        np.testing.assert_allclose(jnp.abs(constants["S"]), deviation, rtol=0.02)
        np.testing.assert_allclose(constants["R_L"].std(), 100**-0.5, rtol=0.02)
        assert abs(np.corrcoef(constants["R"].ravel(), constants["S"].ravel())[0, 1]) < 0.05


def test_noise_is_fresh_each_step_other_in_each_unit_and_the_same_again():
    net = evolve(two_layers, "add_noise(g - g, 1.0)")
    start = state = net.init(jax.random.key(0), TWO, X)
    runs = []
    for state in (start, start):
        gradients = []
        for _ in range(2):
            gradient, state = step(net, TWO, state, X)
            gradients.append(gradient)
        runs.append(gradients)
    (one, two), (again, _) = runs
    np.testing.assert_array_equal(one["a"], again["a"])
    assert jnp.abs(one["a"] - two["a"]).min() > 0 and jnp.abs(one["b"] - two["b"]).min() > 0
    assert not np.array_equal(state["b"]["rule"]["noise"], state["c"]["rule"]["noise"])


def test_a_key_that_a_rule_keeps_in_its_state_is_the_key_again():
    for seed in (0, 1, 2**31 + 5):
        key = jax.random.fold_in(jax.random.key(seed), 7)
        words = evaluation._words(jax.random.key_data(key))
        assert words.shape == (4,) and words.dtype == jnp.float32 and jnp.array_equal(words, jnp.round(words))
        np.testing.assert_array_equal(jax.random.key_data(evaluation._key(words)), jax.random.key_data(key))


def test_a_rule_with_its_noise_in_its_state_is_to_a_unit_what_the_rule_is():
    compiled = rules.compile("add_noise(dfa, 0.1)")
    for rule in (compiled, rules.InterpretedRule.of(compiled.expression.to_equation())):
        kept = evaluation.WithNoise(rule)
        assert (kept.reads, kept.equation_is_data) == (rule.reads, rule.equation_is_data)
        assert rule.needs_noise and not kept.needs_noise


def test_a_rule_without_statistics_constants_and_noise_keeps_nothing():
    assert evolve(two_layers, "g").init(jax.random.key(0), TWO, X) == {}


# Loops, branches, transformations.


def test_a_loop_over_layers_is_the_layers_one_by_one():
    def looped(params, x):
        layer = lambda x, p: (jax.nn.relu(x) @ p["w"] + p["b"], None)  # noqa: E731
        return lax.scan(layer, x @ params["in"], params["layers"])[0] @ params["out"]

    def unrolled(params, x):
        x = x @ params["in"]
        for i in range(3):
            x = jax.nn.relu(x) @ params["layers"]["w"][i] + params["layers"]["b"][i]
        return x @ params["out"]

    params = {"in": normal(1, 3, 4), "layers": {"w": normal(2, 3, 4, 4), "b": normal(3, 3, 4)}, "out": normal(4, 4, 2)}
    rule = "fa + unit_elem2(dfa) + mean(gh) * dh"
    loop, layers = evolve(looped, rule), evolve(unrolled, rule)
    state = loop.init(jax.random.key(0), params, X)
    assert state["layers/w"]["constants"]["R"].shape == (3, 4, 4)
    assert str(loop.units(params, X)).splitlines()[1].split()[:4] == ["3", "x", "layers/w", "relu"]
    names = ["layers/w", "layers/w#2", "layers/w#3"]
    parts = {n: jax.tree.map(lambda v, i=i: v[i], state["layers/w"]) for i, n in enumerate(names)}
    gradient, following = step(loop, params, state, X)
    expected, wanted = step(layers, params, parts | {"out": state["out"]}, X)
    assert_close(gradient, expected)
    assert_close(following["out"], wanted.pop("out"))
    assert_close(following["layers/w"], jax.tree.map(lambda *v: jnp.stack(v), *wanted.values()))


def test_units_of_a_branch_that_is_not_taken_keep_their_state():
    def network(params, x):
        x = x @ params["a"]
        x = lax.cond(x[0, 0] > 0, lambda x: jax.nn.relu(x) @ params["b"], lambda x: jnp.tanh(x) @ params["b"], x)
        return x @ params["c"]

    net = evolve(network, "fa + mean(gh)")
    state = net.init(jax.random.key(0), TWO, X)
    for sign, taken, left in ((1, "b#2", "b"), (-1, "b", "b#2")):
        x = X.at[0].set(sign * TWO["a"][:, 0])
        _, following = step(net, TWO, state, x)
        assert_close(following[left], state[left], 0)
        assert following[taken]["rule"]["step"] == 1 and following["c"]["rule"]["step"] == 1
        np.testing.assert_array_equal(following[taken]["constants"]["R"], state[taken]["constants"]["R"])


def test_checkpointed_networks_have_the_same_gradients():
    def inside(params, x):
        x = jax.checkpoint(lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]))(params, x)
        return x @ params["c"]

    rule = "drop(fa, 0.3) + unit_fro(dfa) + mean(gh)"
    net, plain = (
        evolve(inside, rule, where=lambda u: u.path == "b"),
        evolve(two_layers, rule, where=lambda u: u.path == "b"),
    )
    state = plain.init(jax.random.key(0), TWO, X)
    expected = step(plain, TWO, state, X)
    assert_close(step(net, TWO, state, X), expected)
    assert_close(step(lambda *args: jax.checkpoint(plain)(*args), TWO, state, X), expected)


def test_networks_mapped_over_candidates_with_equations_as_data_are_each_alone():
    network = lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"]  # noqa: E731

    def gradients(program, params, state):
        net = evolve(network, rules.InterpretedRule(program))
        return jax.grad(lambda p, s: jnp.sum(net(p, s, X) ** 2), (0, 1))(params, state)

    texts = ["g", "drop(g, 0.3) - unit_elem0(bn(dfah))", "bn(gh) * dh"]
    programs = [rules.assemble(rules.parse(text).to_equation()) for text in texts]
    blank = evolve(network, rules.InterpretedRule(rules.blank_program()))
    states = [blank.init(jax.random.key(i), TWO, X) for i in range(3)]
    candidates = [
        (p, jax.tree.map(lambda v, i=i: v + 0.1 * i, TWO), s)
        for i, (p, s) in enumerate(zip(programs, states, strict=True))
    ]
    alone = jax.jit(gradients, compiler_options=FAST)
    together = jax.jit(jax.vmap(gradients), compiler_options=FAST)(
        *jax.tree.map(lambda *leaves: jnp.stack(leaves), *candidates)
    )
    for i, candidate in enumerate(candidates):
        assert_close(jax.tree.map(lambda v, i=i: v[i], together), alone(*candidate))


DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from test_evolve_rules import FAST, TWO, evolve, rules, two_layers, normal
x = normal(4, 8, 3)
for text, interpreted in (("fa + unit_fro(dfa) + mean(gh)", False), ("(std(hp_next) @ S.T) - whiten(dfa)", True)):
    rule = rules.compile(text)
    rule = rules.InterpretedRule.of(rule.expression.to_equation()) if interpreted else rule
    net = evolve(two_layers, rule, where=lambda unit: unit.path == "c" or not interpreted)  # one unit: it compiles for long
    state = net.init(jax.random.key(0), TWO, x[:4])
    gradients = jax.grad(lambda p, s, x: jnp.sum(net(p, s, x) ** 2), (0, 1))
    shard = jax.shard_map(
        gradients, mesh=Mesh(jax.devices(), "d"), in_specs=(P(), P(), P("d")), out_specs=P(), check_vma=True
    )
    shard, alone = (jax.jit(f, compiler_options=FAST) for f in (shard, gradients))
    found, (one, other) = shard(TWO, state, x), (alone(TWO, state, x[i : i + 4]) for i in (0, 4))
    sums = jax.tree.map(jnp.add, one, other)
    expected = sums[0], jax.tree.map(lambda s: s / 2, sums[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    assert len(jax.devices()) == 2
"""


def test_networks_in_shard_map_have_checked_types_add_their_gradients_and_average_their_state():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    here = pathlib.Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", DEVICES], env=environment, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_effects_happen_once():
    seen = []

    def network(params, x):
        x = jax.nn.relu(x @ params["a"])
        jax.debug.callback(lambda total: seen.append(float(total)), x.sum())
        return jax.nn.relu(x @ params["b"]) @ params["c"]

    net = evolve(network, "fa")
    step(net, TWO, net.init(jax.random.key(0), TWO, X), X)
    jax.effects_barrier()
    np.testing.assert_allclose(seen, [float(jax.nn.relu(X @ TWO["a"]).sum())], rtol=1e-5)


def test_dropout_and_padding_masks_belong_to_the_linear_map():
    def network(params, x, key, mask):
        x = jax.nn.relu(x @ params["a"])
        x = jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0.0) * mask
        return x @ params["b"]

    mask, key = (jnp.arange(6) % 3 > 0)[:, None], jax.random.key(1)
    net = evolve(network, "(b_next @ W.T) * dh + 0.0*dfa")
    state = net.init(jax.random.key(0), TWO, X, key, mask)
    assert [u.activation for u in net.units(TWO, X, key, mask)] == ["relu"]
    ours = jax.grad(lambda p: jnp.sum(net(p, state, X, key, mask) ** 2))(TWO)
    assert_close(ours, jax.grad(lambda p: jnp.sum(network(p, X, key, mask) ** 2))(TWO))


# Messages.


def test_units_are_listed_with_what_was_left_alone_and_why():
    net = evolve(two_layers, "unit_elem2(g)", where=lambda unit: unit.kernel != (4, 5))
    assert str(net) == "evolve(two_layers, unit_elem2(g)): call it, or its units(…), to see the units"
    assert str(net.units(TWO, X)).splitlines() == [
        "unit  activation  hp      hp_next  kernel",
        "c     relu        [6, 5]  [6, 2]   [5, 2]",
        "left alone:",
        "  a: nothing with parameters lies below it",
        "  b: where= does not choose it",
    ]
    assert str(net).startswith("evolve(two_layers, unit_elem2(g))\nunit  activation")


def integer_weight(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["q"].astype(jnp.float32)


def concrete(params, x):
    return two_layers(params, x) * float(x.sum())


def on_the_host(params, x):
    return two_layers(params, np.asarray(x) + 1)


QUANTISED = {"a": TWO["a"], "q": jnp.ones((4, 2), jnp.int32)}
WIDE = {"a": normal(1, 3, 2**13), "b": normal(2, 2**13, 2**14)}
WRONG = [
    (lambda p, x: jnp.mean(two_layers(p, x)), "dfa", TWO, ValueError, r"reads b_L or R_L, .* returns no logits .*float32\[\]"),
    (lambda p, x: {"y": two_layers(p, x)}, "b_L @ R_L", TWO, ValueError, r"no logits.*'y': 'float32\[6, 2\]'.*logits=lambda"),
    (lambda p, x: jnp.argmax(two_layers(p, x), -1), "dfa", TWO, ValueError, r"no logits .*int32\[6\]"),
    (lambda p, x: two_layers(p, x).reshape(3, 4), "dfa", TWO, ValueError, r"b_L does not reach the unit b: its hp \[6, 4\]"),
    (integer_weight, "g", QUANTISED, TypeError, "the parameter q is int32, and a weight needs a gradient"),
    (concrete, "g", TWO, TypeError, r"(?s)concrete needs the value of an array while it is traced.*float\(x.sum\(\)\)"),
    (on_the_host, "g", TWO, TypeError, r"(?s)on_the_host needs the value .*np.asarray"),
    (lambda p, x: x @ p["a"], "g", TWO, ValueError, r"(?s)has no unit for a rule.*nothing with parameters lies below it"),
    (
        lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], "dfa", WIDE, ValueError,
        r"R_L of the unit b would map the logits \[6, 16384\] to hp \[6, 8192\]: 134 million entries, more than 67",
    ),
]  # fmt: skip


@pytest.mark.parametrize("network, rule, params, kind, message", WRONG)
def test_what_cannot_train_gets_one_clear_error(network, rule, params, kind, message):
    with pytest.raises(kind, match=message):
        evolve(network, rule).init(jax.random.key(0), params, X)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"where": "nope"}, "where= takes a function, such as lambda unit: .*, not 'nope'"),
        ({"logits": 0}, "logits= takes a function, such as lambda out: .*, not 0"),
        ({"apply": TWO}, "takes a function of parameters and inputs, such as model.apply, not {"),
    ],
)
def test_what_is_no_function_is_refused_at_once(arguments, message):
    with pytest.raises(TypeError, match=message):
        evolve(**{"apply": two_layers, "rule": "g"} | arguments)


def test_products_that_hold_no_unit_are_left_alone_with_the_reason():
    @jax.custom_vjp
    def own_gradient(x, w):
        return x @ w

    own_gradient.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, b: (b @ r[1].T, r[0].T @ b))

    def network(params, x):
        x = jax.nn.relu(x @ params["a"])
        x = x + 0 * jnp.sum(own_gradient(x, params["b"]))
        x = x + 0 * jnp.sum(lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, c[1] @ params["w"]), (0, x))[1])
        x = x + 0 * lax.map(lambda row: row @ params["w"], x) + 0 * x @ lax.stop_gradient(params["w"])
        return x @ params["b"] + jnp.sum(x @ x.T)

    units = evolve(network, "g").units(TWO | {"w": normal(1, 4, 4)}, X)
    assert [u.path for u in units] == ["b"]
    assert list(units.left_alone) == [
        ("a", "nothing with parameters lies below it"),
        ("b", "inside a custom_vjp_call"),
        ("w", "inside a while"),
        ("w", "one sample at a time, no axis of samples: use jax.vmap instead of a loop"),
        ("dot_general of [6, 4] and [4, 6]", "a product of two activations"),
    ]


def test_a_state_of_another_rule_is_refused():
    state = evolve(two_layers, "g").init(jax.random.key(0), TWO, X)
    with pytest.raises(ValueError, match=r"the state is not that of two_layers with the rule fa .*net.init\("):
        evolve(two_layers, "fa")(TWO, state, X)


def test_logits_may_be_any_output():
    net = evolve(lambda p, x: {"y": two_layers(p, x), "x": x}, "dfa", logits=lambda out: out["y"])
    state = net.init(jax.random.key(0), TWO, X)
    expected = step(evolve(two_layers, "dfa"), TWO, state, X)
    assert_close(step(lambda *args: net(*args)["y"], TWO, state, X), expected, 0)
    with pytest.raises(ValueError, match="logits= must choose one array"):
        evolve(two_layers, "g", logits=lambda out: [out]).units(TWO, X)
