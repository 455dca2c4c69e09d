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
from bpevo.training import TRANSFORMS, Trainer, Training, TrainingSettings, to_examples
from bpevo.training.alignment import compare
from bpevo.training.transforms import CLIP_NORM, block_normalised, clip_global_norm, transformed

GRADIENT = {
    "stem": {"kernel": jnp.array([[3.0, 0.0]]), "bias": jnp.array([4.0])},
    "block": {"norm": {"scale": jnp.array([0.0]), "bias": jnp.array([0.0])}},
}


def test_block_normalised_gradients_have_length_one_in_every_layer_and_a_zero_stays_zero():
    found = block_normalised(GRADIENT)
    np.testing.assert_allclose(found["stem"]["kernel"], [[0.6, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(found["stem"]["bias"], [0.8], rtol=1e-6)
    assert float(found["block"]["norm"]["scale"][0]) == 0.0


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_clipping_the_global_norm_is_what_optax_does(scale):
    gradient = jax.tree.map(lambda g: scale * g, GRADIENT)
    expected, _ = optax.clip_by_global_norm(CLIP_NORM).update(gradient, optax.EmptyState())
    jax.tree.map(np.testing.assert_allclose, clip_global_norm(gradient), expected)


def test_a_transform_is_chosen_by_its_place():
    for i, function in enumerate(TRANSFORMS.values()):
        jax.tree.map(np.testing.assert_array_equal, transformed(jnp.int32(i), GRADIENT), function(GRADIENT))


SETTINGS = TrainingSettings(model="mlp-8-6", weight_decay=0.0, batch_size=8, epochs=2)


@pytest.fixture(scope="module")
def both() -> Trainer:
    """A trainer with transforms that measures the alignment."""
    task = make_task(SETTINGS, measure_alignment=True)
    return Trainer(
        task, to_examples(SPLIT, 8), capacity=4, max_parts=PARTS, seed=SEED, devices=jax.devices()[:1], transforms=True
    )


@pytest.fixture(scope="module")
def plain() -> Trainer:
    return make_trainer(1, SETTINGS, devices=jax.devices()[:1])


def test_each_slot_has_its_own_transform_and_the_empty_one_changes_nothing(both, plain):
    expected = run(plain, {0: training("g")})[0]
    orders = {k: dataclasses.replace(training("g"), transform=t) for k, t in enumerate(TRANSFORMS)}
    curves = run(both, orders)
    np.testing.assert_allclose([e.train_loss for e in curves[0]], [e.train_loss for e in expected], rtol=1e-5)
    assert len({repr([e.train_loss for e in c]) for c in curves.values()}) == len(TRANSFORMS)
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
    task = make_task(SETTINGS)
    tree = rules.compile("(b_next @ W.T) * (dh + (g - g))")  # backprop, but no chain
    trainer = Trainer(task, to_examples(SPLIT, 8), capacity=1, max_parts=PARTS, seed=SEED, rule=tree, transforms=True)
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
