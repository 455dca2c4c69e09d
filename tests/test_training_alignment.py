"""Gradient transforms, the angle between evolved and true signals, and programs specialised to one rule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training import CLASSES, PARTS, SEED, SPLIT, make_task, make_trainer, parameters, run, training

from bpevo import data, layers, rules
from bpevo.rules import InterpretedRule, blank_program
from bpevo.training import GRAFTED, TRANSFORMS, Trainer, Training, TrainingSettings, to_examples
from bpevo.training.alignment import Recording, compare
from bpevo.training.transforms import CLIP_NORM, block_normalised, clip_global_norm, graft, lars, transformed

GRADIENT = {
    "stem": {"kernel": jnp.array([[3.0, 0.0]]), "bias": jnp.array([4.0])},
    "block": {"norm": {"scale": jnp.array([0.0]), "bias": jnp.array([0.0])}},
}


def test_block_normalised_gradients_have_length_one_in_every_layer_and_a_zero_stays_zero():
    found = block_normalised(GRADIENT, None)
    np.testing.assert_allclose(found["stem"]["kernel"], [[0.6, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(found["stem"]["bias"], [0.8], rtol=1e-6)
    assert float(found["block"]["norm"]["scale"][0]) == 0.0


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_clipping_the_global_norm_is_what_optax_does(scale):
    gradient = jax.tree.map(lambda g: scale * g, GRADIENT)
    expected, _ = optax.clip_by_global_norm(CLIP_NORM).update(gradient, optax.EmptyState())
    found = clip_global_norm(gradient, None)
    jax.tree.map(np.testing.assert_allclose, found, expected)
    np.testing.assert_allclose(optax.tree.norm(found), min(1.0, 5 * scale), rtol=1e-6)  # 3 and 4 in GRADIENT


PARAMS = {
    "stem": {"kernel": jnp.array([[0.0, -2.0]]), "bias": jnp.array([0.0])},
    "block": {"norm": {"scale": jnp.array([1.0]), "bias": jnp.array([0.0])}},
}


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_lars_gives_each_gradient_the_length_of_its_tensor(scale):
    """As optax's trust ratio, where that stays in the range of float32; what has no length to give or take stays as it is."""
    gradient = jax.tree.map(lambda g: scale * g, GRADIENT)
    found = lars(gradient, PARAMS)
    np.testing.assert_allclose(found["stem"]["kernel"], [[2.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(found["stem"]["bias"], [scale * 4.0], rtol=1e-6)
    assert float(found["block"]["norm"]["scale"][0]) == 0.0
    if scale == 1.0:
        expected, _ = optax.scale_by_trust_ratio().update(gradient, optax.EmptyState(), PARAMS)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_graft_has_the_direction_of_one_and_the_length_of_the_other(scale):
    found = graft(
        {"w": scale * jnp.array([[3.0, -4.0]]), "b": jnp.zeros(2)}, {"w": jnp.array([[0.0, 10.0]]), "b": jnp.ones(2)}
    )
    np.testing.assert_allclose(found["w"], [[6.0, -8.0]], rtol=1e-6)
    np.testing.assert_array_equal(found["b"], [0.0, 0.0])
    np.testing.assert_array_equal(graft({"w": jnp.ones(2)}, {"w": jnp.zeros(2)})["w"], [0.0, 0.0])


ALL = tuple(name for name in TRANSFORMS if name) + (GRAFTED,)


def test_a_transform_is_chosen_by_its_place():
    names = tuple(TRANSFORMS)
    for i, function in enumerate(TRANSFORMS.values()):
        found = transformed(names, jnp.int32(i), GRADIENT, PARAMS, lambda: pytest.fail("a second pass without a graft"))
        jax.tree.map(np.testing.assert_array_equal, found, function(GRADIENT, PARAMS))
    jax.tree.map(
        np.testing.assert_array_equal,
        transformed(("", GRAFTED), jnp.int32(1), GRADIENT, PARAMS, lambda: PARAMS),
        graft(GRADIENT, PARAMS),
    )


SETTINGS = TrainingSettings(model="mlp-8-6", weight_decay=0.0, batch_size=8, epochs=2)


@pytest.fixture(scope="module")
def both() -> Trainer:
    """A trainer with transforms that measures the alignment."""
    task = make_task(SETTINGS, measure_alignment=True, transforms=ALL)
    return Trainer(task, to_examples(SPLIT, 8), capacity=5, max_parts=PARTS, seed=SEED, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def plain() -> Trainer:
    return make_trainer(1, SETTINGS, devices=jax.devices()[:1])


def test_each_slot_has_its_own_transform_and_the_empty_one_changes_nothing(both, plain):
    expected = run(plain, {0: training("g")})[0]
    orders = {k: dataclasses.replace(training("g"), transform=t) for k, t in enumerate(TRANSFORMS)}
    curves = run(both, orders)
    np.testing.assert_allclose([e.train_loss for e in curves[0]], [e.train_loss for e in expected], rtol=1e-5)
    assert len({repr([e.train_loss for e in c]) for c in curves.values()}) == len(TRANSFORMS)
    grafted = run(both, {0: dataclasses.replace(training("g"), transform=GRAFTED)})[0]  # backprop's own length
    np.testing.assert_allclose([e.train_loss for e in grafted], [e.train_loss for e in expected], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parameters(both, 0), parameters(plain, 0))


def test_the_alignment_of_known_rules_is_what_it_must_be(both):
    """MLP of units Dense_1 (below) and Dense_2 (head); a factor of 3 a unit is 9 below two of them."""
    curves = run(both, {k: training(t) for k, t in enumerate(("g", "3.0*g", "-g", "g - g"))})
    for slot, (cosines, ratios) in {
        0: ((1, 1), (1, 1)), 1: ((1, 1), (9, 3)), 2: ((1, -1), (1, 1)), 3: ((0, 0), (0, 0)),
    }.items():  # fmt: skip
        for e in curves[slot]:
            found = np.array([e.alignment[unit] for unit in ("Dense_1", "Dense_2")])
            np.testing.assert_allclose(found, np.transpose([cosines, ratios]), atol=1e-5)


def test_the_alignment_compares_with_a_standard_backward_pass_at_the_same_parameters(both):
    """Feedback alignment's signals, worked out by hand from the trained parameters."""
    order = training("fa", 0.3, 2)
    last = run(both, {1: order})[1][-1]
    params = parameters(both, 1)
    key = jax.random.fold_in(jax.random.key(SEED), 2)
    variables = both.task._variables(InterpretedRule(blank_program(PARTS)), key, jnp.zeros((1, 4, 4, 1)))
    feedback = variables[layers.FEEDBACK]
    x = np.asarray(data.normalise(SPLIT.train_images[:8], data.per_pixel_mean(SPLIT.train_images))).reshape(8, -1)
    weights = [(np.asarray(params[f"Dense_{i}"]["kernel"]), np.asarray(params[f"Dense_{i}"]["bias"])) for i in range(3)]
    hp = [x @ weights[0][0] + weights[0][1]]
    for kernel, bias in weights[1:]:
        hp.append(np.maximum(hp[-1], 0) @ kernel + bias)
    z = np.exp(hp[2] - hp[2].max(1, keepdims=True))
    top = (z / z.sum(1, keepdims=True) - np.eye(CLASSES)[SPLIT.train_labels[:8]]) / 8
    signals = {}
    for name, matrices in {
        "true": [w for w, _ in weights], "evolved": [None, *(np.asarray(feedback[f"Dense_{i}"]["R"]) for i in (1, 2))],
    }.items():  # fmt: skip
        upper = (top @ matrices[2].T) * (hp[1] > 0)
        signals[name] = {"Dense_2": upper, "Dense_1": (upper @ matrices[1].T) * (hp[0] > 0)}
    for unit in ("Dense_1", "Dense_2"):
        a, b = signals["evolved"][unit].ravel(), signals["true"][unit].ravel()
        expected = (a @ b / np.linalg.norm(a) / np.linalg.norm(b), np.linalg.norm(a) / np.linalg.norm(b))
        np.testing.assert_allclose(last.alignment[unit], expected, rtol=1e-4, atol=1e-5)


def test_grafting_takes_the_rules_direction_and_backprops_length_of_every_tensor():
    """An epoch of two steps of feedback alignment on an MLP, by hand: jax.grad of a plain network for the lengths."""
    batch, rate, decay = 25, 0.5, 0.1
    settings = TrainingSettings(model="mlp-8-6", weight_decay=decay, batch_size=batch, epochs=1)
    task = make_task(settings, transforms=(GRAFTED,))
    trainer = Trainer(
        task, to_examples(SPLIT, batch), capacity=2, max_parts=PARTS, seed=SEED, devices=jax.devices()[:1]
    )
    order = training("3.0*fa", rate, 2)
    run(trainer, {0: dataclasses.replace(order, transform=GRAFTED), 1: order})

    key = jax.random.fold_in(jax.random.key(SEED), 2)
    variables = task._variables(InterpretedRule(blank_program(PARTS)), key, jnp.zeros((1, 4, 4, 1)))
    params, feedback = variables["params"], variables[layers.FEEDBACK]
    images = data.normalise(SPLIT.train_images, data.per_pixel_mean(SPLIT.train_images)).reshape(50, -1)
    shuffled = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 2), 0), 50)

    def network(params, x, signals):
        """Logits; the rule's backward signal replaces backprop's by stop_gradient tricks of the products with W."""
        x = x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
        for i in (1, 2):
            layer, h = params[f"Dense_{i}"], jax.nn.relu(x)
            if signals:
                # Forward: h @ W. Backward: h's gradient is 3 b R^T, the kernel's is h^T b as ever.
                back = h @ (3.0 * feedback[f"Dense_{i}"]["R"])
                fixed = jax.lax.stop_gradient(h)
                x = fixed @ layer["kernel"] + back - jax.lax.stop_gradient(back) + layer["bias"]
            else:
                x = h @ layer["kernel"] + layer["bias"]
        return x

    for indices in (shuffled[:batch], shuffled[batch:]):
        x, labels = images[indices], SPLIT.train_labels[indices]

        def loss(params, signals, x=x, labels=labels):
            return optax.softmax_cross_entropy_with_integer_labels(network(params, x, signals), labels).mean()

        evolved, true = (jax.grad(loss)(params, signals) for signals in (True, False))
        for name in ("Dense_0", "Dense_1", "Dense_2"):
            for part in ("kernel", "bias"):
                a, b, w = (np.asarray(p[name][part]) for p in (evolved, true, params))
                step = a / np.linalg.norm(a) * np.linalg.norm(b) + (decay * w if part == "kernel" else 0)
                params = {**params, name: {**params[name], part: jnp.asarray(w - rate * step)}}
    found, plain = parameters(trainer, 0), parameters(trainer, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), dict(found), params)
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), dict(plain), params)
    assert min(jax.tree.leaves(differences["Dense_0"])) > 1e-3  # without a graft it is another network


def test_units_of_a_wide_resnet_are_named_in_forward_order():
    task = make_task(TrainingSettings(model="wrn-10-1", batch_size=8), measure_alignment=True)
    names = task.units(InterpretedRule(blank_program(PARTS)), (8, 8, 1))
    assert names == [f"Conv_{i}" for i in range(1, 9)] + ["Dense_0"]  # Conv_0, the stem, is no unit


def test_a_search_measures_nothing(plain):
    assert plain._orders.transform is None
    assert all(e.alignment == {} for e in run(plain, {0: training("g")})[0])
    with pytest.raises(AssertionError):
        plain.start(0, dataclasses.replace(training("g"), transform="block_normalised"))


def test_a_specialised_trainer_trains_a_tree_and_agrees_with_the_interpreter(both):
    task = make_task(SETTINGS, transforms=("block_normalised",))
    tree = rules.compile("(b_next @ W.T) * (dh + (g - g))")  # backprop, but no chain
    trainer = Trainer(task, to_examples(SPLIT, 8), capacity=1, max_parts=PARTS, seed=SEED, rule=tree)
    found = run(trainer, {0: Training(tree.expression, 0.1, transform="block_normalised")})[0]
    expected = run(both, {0: dataclasses.replace(training("g"), transform="block_normalised")})[0]
    np.testing.assert_allclose([e.train_loss for e in found], [e.train_loss for e in expected], rtol=1e-4)
    with pytest.raises(AssertionError):
        trainer.start(0, training("g"))


def test_signals_that_vanish_have_no_angle():
    zero, one = {"u": jnp.zeros((2, 3))}, {"u": jnp.ones((2, 3))}
    np.testing.assert_array_equal(compare(zero, one, ["u"]), [[0, 0]])
    np.testing.assert_array_equal(compare(one, zero, ["u"]), [[0, 0]])
    np.testing.assert_allclose(compare({"u": 1e30 * one["u"]}, one, ["u"]), [[1, 1e30]], rtol=1e-5)


def test_a_rule_that_is_recorded_is_to_a_unit_what_the_rule_is():
    compiled = rules.compile("add_noise(dfa, 0.1)")
    for rule in (compiled, rules.compile("g"), InterpretedRule.of(compiled.expression.to_equation())):
        recording = Recording(rule)
        assert (recording.reads, recording.needs_noise) == (rule.reads, rule.needs_noise)
        assert recording.equation_is_data is rule.equation_is_data
