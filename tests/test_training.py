"""Training: settings, one candidate against plain SGD written by hand, and slots that never touch each other."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpevo import data
from bpevo.evolution import SearchSpace
from bpevo.evolution.space import feasible
from bpevo.rules import NAMED, TABLE_1, InterpretedRule, Kernel, blank_program, parse
from bpevo.training import (
    NUMERICS,
    REASONS,
    OutOfMemory,
    Task,
    Trainer,
    Training,
    TrainingPlan,
    TrainingSettings,
    to_examples,
)

CLASSES, PARTS, SEED = 4, 3, 11
SETTINGS = TrainingSettings(model="mlp-8", weight_decay=0.1, batch_size=8, epochs=3)
DIVERGES = "cube(cube(g + 1000000.0))"
DIFFERENT = (
    "g",
    "add_noise(bn(fa), 0.1) + g",
    "drop(dfa, 0.1) - g",
    DIVERGES,
    "unit_fro(g) + whiten(h)",
    "(b_next @ R.T) * dh",
)


def synthetic_split() -> data.Split:
    """50 images to train on and 30 to evaluate on, 4x4x1; the label is the brightest quadrant."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 100, (80, 4, 4, 1)).astype(np.uint8)
    labels = rng.integers(0, CLASSES, 80).astype(np.int32)
    for image, label in zip(images, labels, strict=True):
        row, column = 2 * (label // 2), 2 * (label % 2)
        image[row : row + 2, column : column + 2] += 120
    return data.Split(
        train_images=images[:50], train_labels=labels[:50], eval_images=images[50:], eval_labels=labels[50:]
    )


SPLIT = synthetic_split()


def make_task(settings: TrainingSettings = SETTINGS, **options) -> Task:
    return Task(
        settings=settings, classes=CLASSES, examples=len(SPLIT.train_labels), **({"flip": False, "pad": 0} | options)
    )


def make_trainer(capacity: int, settings: TrainingSettings = SETTINGS, **options) -> Trainer:
    examples = to_examples(SPLIT, settings.batch_size)
    return Trainer(make_task(settings), examples, capacity=capacity, max_parts=PARTS, seed=SEED, **options)


def training(text: str, learning_rate: float = 0.1, replicate: int = 0) -> Training:
    return Training(parse(text).to_equation(PARTS), learning_rate, replicate=replicate)


def run(trainer: Trainer, trainings: dict[int, Training]) -> dict[int, list]:
    """Every slot's results until all have ended."""
    for slot, order in trainings.items():
        trainer.start(slot, order)
    curves = {slot: [] for slot in trainings}
    while len(trainer.free) < trainer.capacity:
        for slot, result in trainer.advance().items():
            curves[slot].append(result)
    return curves


def parameters(trainer: Trainer, slot: int):
    return jax.tree.map(lambda x: np.asarray(x[slot]), trainer._states.params)


@pytest.fixture(scope="module")
def trainers() -> dict[int, Trainer]:
    return {capacity: make_trainer(capacity, devices=jax.devices()[:1]) for capacity in (1, 4, 8)}


@pytest.fixture(scope="module")
def alone(trainers) -> dict[str, tuple[list, dict]]:
    """What each of DIFFERENT gives in the only slot: its curve and final parameters."""
    return {t: (run(trainers[1], {0: training(t)})[0], parameters(trainers[1], 0)) for t in DIFFERENT}


def assert_same(trainer: Trainer, slot: int, curve: list, expected: tuple[list, dict]) -> None:
    """Bit for bit; parameters that are not finite stay where they stopped."""
    assert repr(curve) == repr(expected[0])
    jax.tree.map(np.testing.assert_array_equal, parameters(trainer, slot), expected[1])


# Settings and schedules.


@pytest.mark.parametrize(
    "change, message",
    [
        ({"optimizer": "adm"}, "optimizer must be one of sgd, momentum, adam, or .* not 'adm'; the nearest is 'adam'"),
        ({"schedule": "step"}, "schedule must be one of"),
        ({"compute_dtype": "float16"}, "compute_dtype must be one of float32, bfloat16"),
        ({"batch_size": 0}, "at least 1"),
        ({"epochs": 0}, "at least 1"),
        ({"weight_decay": 1.0}, "weight_decay must lie in"),
        ({"weight_decay": -0.1}, "weight_decay must lie in"),
        ({"weight_decay": math.nan}, "weight_decay must lie in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**change)


def test_settings_have_the_defaults_that_are_told():
    assert dataclasses.asdict(TrainingSettings()) == {
        "model": "wrn-16-2", "optimizer": "sgd", "weight_decay": 0.001, "batch_size": 128, "epochs": 20, "schedule": "paper",
        "compute_dtype": "float32",
    }  # fmt: skip
    assert TrainingSettings(batch_size=1, epochs=1, weight_decay=0.0).batch_size == 1
    order = training("g")
    assert (
        Training(order.equation, 0.1)
        == order
        == Training(order.equation, 0.1, replicate=0, transform="", held_out=False)
    )


def test_a_plans_fingerprint_tells_its_images_apart_and_reads_them_once(monkeypatch):
    dataset = data.load("digits")
    split = data.train_validation_split(dataset, 64)
    plan = TrainingPlan(settings=SETTINGS, learning_rates=(0.1, 0.2), dataset=dataset, split=split, seed=7)
    checksums, crc32 = [], zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda *a: checksums.append(crc32(*a)) or checksums[-1])
    found = plan.fingerprint()
    assert found == plan.fingerprint() and len(checksums) == 4  # images and labels to train and to evaluate on, once
    assert found["dataset_crc32"] == crc32(
        b"".join(a.tobytes() for a in (split.train_images, split.eval_images, split.train_labels, split.eval_labels))
    )
    assert found == dataclasses.asdict(SETTINGS) | {
        "dataset": "digits", "dataset_crc32": found["dataset_crc32"], "train_examples": 64, "learning_rates": [0.1, 0.2],
        "seed": 7, "numerics": NUMERICS,
    }  # fmt: skip
    mirrored = dataclasses.replace(plan, dataset=dataclasses.replace(dataset, flip=True, pad=2))
    assert mirrored.fingerprint() == found | {"augmentation": [True, 2]}
    more = dataclasses.replace(plan, dataset=dataclasses.replace(dataset, num_classes=20))
    assert more.fingerprint() == found | {"classes": 20}
    kept = dataclasses.replace(plan, held_out=5)
    assert kept.fingerprint() == found | {"held_out": 5, "validation_examples": len(split.eval_labels)}
    assert (plan.examples().held_out.sum(), kept.examples().held_out[-1].tolist()) == (0, [False] * 3 + [True] * 5)
    assert plan.task() == Task(settings=SETTINGS, classes=10, examples=64, flip=dataset.flip, pad=dataset.pad)
    shorter = dataclasses.replace(split, eval_images=split.eval_images[:-1])
    assert dataclasses.replace(plan, split=shorter).fingerprint()["dataset_crc32"] != found["dataset_crc32"]


def test_a_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(ValueError, match="batch_size=8 is larger than the training set of 7 examples"):
        Task(settings=SETTINGS, classes=CLASSES, examples=7, flip=False, pad=0)
    assert Task(settings=SETTINGS, classes=CLASSES, examples=8, flip=False, pad=0).steps_per_epoch == 1


@pytest.mark.parametrize(
    "schedule, epochs, expected",
    [
        ("paper", 50, {0: 1, 1: 1, 500: 1, 999: 1}),
        ("paper", 51, {0: 0, 50: 0.5, 100: 1, 325: (1 + math.sqrt(0.5)) / 2, 550: 0.5, 1000: 0}),
        ("warmup_cosine", 20, {0: 0, 10: 0.1, 100: 1, 400: 0.75, 700: 0.25, 1000: 0}),
        ("cosine", 20, {0: 1, 250: (1 + math.sqrt(0.5)) / 2, 500: 0.5, 1000: 0}),
        ("constant", 100, {0: 1, 999: 1}),
    ],
)
def test_schedule_equals_numbers_computed_by_hand(schedule, epochs, expected):
    factor = TrainingSettings(epochs=epochs, schedule=schedule).learning_rate_factor(1000)
    assert {step: float(factor(step)) for step in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "steps, expected",
    [
        (1, {0: 0, 1: 1, 2: 0}),
        (5, {0: 0, 1: 1, 3: 0.5, 5: 0}),
        (19, {0: 0, 1: 1, 10: 0.5, 19: 0}),
        (20, {0: 0, 1: 0.5, 2: 1, 11: 0.5, 20: 0}),
    ],
)
def test_the_warm_up_is_a_tenth_of_the_steps_and_one_at_least(steps, expected):
    factor = TrainingSettings(epochs=1, schedule="warmup_cosine").learning_rate_factor(steps)
    assert {step: float(factor(step)) for step in expected} == pytest.approx(expected, abs=1e-6)


# One candidate against SGD written by hand.


def by_hand(settings: TrainingSettings, rate: float, replicate: int, momentum: float, factor):
    """Plain autodiff and plain SGD from the candidate's initial weights over its batches."""
    task = make_task(settings)
    key = jax.random.fold_in(jax.random.key(SEED), replicate)
    variables = task._variables(InterpretedRule(blank_program(PARTS)), key, jnp.zeros((1, 4, 4, 1)))
    params = [dict(variables["params"][name]) for name in sorted(variables["params"])]
    mean = SPLIT.train_images.mean(0)

    def logits(params, images):
        x = ((images - mean) / 255).reshape(len(images), -1)
        for i, layer in enumerate(params):
            x = x @ layer["kernel"] + layer["bias"]
            x = jnp.maximum(x, 0) if i < len(params) - 1 else x
        return x

    def loss(params, images, labels):
        z = logits(params, images)
        right = jnp.mean(jnp.argmax(z, 1) == labels)
        return jnp.mean(jax.nn.logsumexp(z, 1) - z[jnp.arange(len(labels)), labels]), right

    gradient_of = jax.jit(jax.value_and_grad(loss, has_aux=True))
    velocity = [{k: np.zeros_like(v) for k, v in layer.items()} for layer in params]
    steps, losses, rights, norms = len(SPLIT.train_labels) // settings.batch_size, [], [], []
    for epoch in range(settings.epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 2), epoch), 50))
        for i in range(steps):
            batch = order[i * settings.batch_size :][: settings.batch_size]
            (value, right), gradient = gradient_of(params, SPLIT.train_images[batch], SPLIT.train_labels[batch])
            losses.append(float(value))
            rights.append(float(right))
            norms.append(math.sqrt(sum(float(jnp.sum(g * g)) for g in jax.tree.leaves(gradient))))
            for layer, speed, g in zip(params, velocity, gradient, strict=True):
                for name in layer:
                    decay = settings.weight_decay * layer[name] if name == "kernel" else 0
                    speed[name] = momentum * speed[name] + g[name] + decay
                    layer[name] = layer[name] - rate * factor(epoch * steps + i) * speed[name]
    right = np.argmax(logits(params, SPLIT.eval_images), 1) == SPLIT.eval_labels
    return params, *(np.reshape(values, (-1, steps)).mean(1) for values in (losses, rights, norms)), right.mean()


def assert_trains_as(trainer: Trainer, slot: int, curve: list, expected) -> None:
    params, losses, rights, norms, accuracy = expected
    found = parameters(trainer, slot)
    for name, layer in zip(sorted(found), params, strict=True):
        for leaf in layer:
            np.testing.assert_allclose(found[name][leaf], layer[leaf], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose([e.train_loss for e in curve], losses, rtol=1e-5)
    np.testing.assert_allclose([e.train_accuracy for e in curve], rights, rtol=1e-6)
    np.testing.assert_allclose([e.gradient_norm for e in curve], norms, rtol=1e-4)
    assert curve[-1].eval_accuracy == pytest.approx(accuracy)
    assert [e.epoch for e in curve] == list(range(1, len(curve) + 1)) and not any(e.reason for e in curve)


@pytest.mark.parametrize("replicate", [0, 3])
def test_the_rule_g_is_plain_sgd_with_weight_decay_on_kernels_only(trainers, replicate):
    curve = run(trainers[4], {2: training("g", 0.3, replicate)})[2]
    assert_trains_as(trainers[4], 2, curve, by_hand(SETTINGS, 0.3, replicate, 0.0, lambda t: 1.0))


def test_momentum_takes_in_the_decayed_gradient_and_the_schedule_comes_after_it():
    settings = TrainingSettings(
        model="mlp-8-8", optimizer="momentum", weight_decay=0.1, batch_size=8, epochs=5, schedule="warmup_cosine"
    )  # 30 steps, 3 of them warm-up
    trainer = make_trainer(1, settings)
    curve = run(trainer, {0: training("g", 0.2)})[0]

    def factor(t):
        return t / 3 if t < 3 else (1 + math.cos(math.pi * (t - 3) / 27)) / 2

    assert_trains_as(trainer, 0, curve, by_hand(settings, 0.2, 0, 0.9, factor))


def judged(trainer: Trainer, params, images, labels) -> tuple[np.ndarray, np.ndarray]:
    """Each example's loss, and whether it is right."""
    x = images / 255 - SPLIT.train_images.mean(0) / 255
    logits = np.asarray(trainer.task._model(None).apply({"params": params}, x), np.float64)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels], logits.argmax(1) == labels


def test_evaluation_counts_every_example_once_though_batches_are_padded(trainers):
    assert len(SPLIT.eval_labels) % SETTINGS.batch_size  # else nothing is padded
    result = run(trainers[4], {0: training("g", 0.3)})[0][-1]
    losses, right = judged(trainers[4], parameters(trainers[4], 0), SPLIT.eval_images, SPLIT.eval_labels)
    assert result.eval_accuracy == pytest.approx(right.mean())
    assert result.eval_loss == pytest.approx(losses.mean(), rel=1e-5)
    nothing = run(trainers[4], {0: dataclasses.replace(training("g", 0.3), held_out=True)})[0][-1]
    assert (nothing.eval_loss, nothing.eval_accuracy, nothing.train_loss) == (0, 0, result.train_loss)


def test_padding_carries_no_label_and_small_evaluation_sets_are_one_batch():
    examples = to_examples(SPLIT, 8)
    assert examples.eval_images.shape == (4, 8, 4, 4, 1)
    np.testing.assert_array_equal(examples.eval_labels.ravel(), [*SPLIT.eval_labels, -1, -1])
    assert to_examples(SPLIT, 64).eval_labels.shape == (1, 30)


def test_held_out_examples_count_for_trainings_that_ask_for_them_and_for_no_others(trainers):
    """The last ten of thirty; the three figures of one rule fit together as those of ten, twenty and thirty examples."""
    examples = to_examples(SPLIT, SETTINGS.batch_size, held_out=10)
    assert examples.held_out.ravel()[:30].tolist() == [False] * 20 + [True] * 10
    trainer = Trainer(make_task(), examples, capacity=4, max_parts=PARTS, seed=SEED)
    own = training("g", 0.3)
    others, kept = run(trainer, {0: own, 1: dataclasses.replace(own, held_out=True)}).values()
    everything = run(trainers[4], {0: own})[0]
    for few, most, all_ in zip(kept, others, everything, strict=True):
        assert few.train_loss == most.train_loss == all_.train_loss
        assert 10 * few.eval_accuracy + 20 * most.eval_accuracy == pytest.approx(30 * all_.eval_accuracy)
        assert 10 * few.eval_loss + 20 * most.eval_loss == pytest.approx(30 * all_.eval_loss, rel=1e-5)
    assert kept[-1].eval_loss != others[-1].eval_loss
    trainer._examples = jax.device_put(to_examples(SPLIT, SETTINGS.batch_size, held_out=1))
    last = run(trainer, {0: dataclasses.replace(own, held_out=True)})[0][-1]
    losses, right = judged(trainer, parameters(trainer, 0), SPLIT.eval_images[29:], SPLIT.eval_labels[29:])
    assert (last.eval_loss, last.eval_accuracy) == (pytest.approx(losses[0], rel=1e-5), right[0])


# Slots.


@pytest.mark.parametrize("capacity, places", [(4, (3, 1, 0, 2)), (8, (7, 0, 5, 2, 4, 6))])
def test_a_result_is_bit_identical_whatever_the_slots_neighbours_and_place(trainers, alone, capacity, places):
    trainer = trainers[capacity]
    chosen = dict(zip(places, DIFFERENT, strict=False))
    curves = run(trainer, {slot: training(text) for slot, text in chosen.items()})
    for slot, text in chosen.items():
        assert_same(trainer, slot, curves[slot], alone[text])


def test_a_slot_that_is_refilled_while_others_train_gives_the_same(trainers, alone):
    trainer, texts = trainers[4], {0: DIVERGES, 1: "g"}
    for slot, text in texts.items():
        trainer.start(slot, training(text))
    first = trainer.advance()
    assert trainer.free == [0, 2, 3]  # the diverged one ended at once
    trainer.start(0, training(DIFFERENT[1]))
    trainer.start(3, training(DIFFERENT[2]))
    curves = {0: [], 1: [first[1]], 3: []}
    while len(trainer.free) < 4:
        for slot, result in trainer.advance().items():
            curves[slot].append(result)
    for slot, text in {0: DIFFERENT[1], 1: "g", 3: DIFFERENT[2]}.items():
        assert_same(trainer, slot, curves[slot], alone[text])


def test_a_training_goes_on_from_its_state_in_another_trainer(trainers, alone):
    text = DIFFERENT[1]
    trainers[4].start(2, training(text))
    first = trainers[4].advance()[2]
    state = trainers[4].state(2)
    trainers[4].stop(2)
    assert [(x.shape, str(x.dtype)) for x in state] == trainers[4].state_shapes
    trainers[8].start(5, training(text), first.epoch, state)
    curve = [first]
    while len(trainers[8].free) < 8:
        curve.append(trainers[8].advance()[5])
    assert_same(trainers[8], 5, curve, alone[text])


def test_the_host_may_work_once_an_epoch_while_slots_train(trainers):
    seen = []
    assert trainers[4].advance(lambda: seen.append("idle")) == {} and not seen
    trainers[4].start(0, training("g"))
    trainers[4].advance(lambda: seen.append("busy"))
    trainers[4].stop(0)
    assert seen == ["busy"]


def test_a_candidate_that_diverges_ends_at_once_and_says_why(alone):
    curve, params = alone[DIVERGES]
    assert len(curve) == 1 and curve[0].reason == "signal not finite"
    assert all(len(alone[t][0]) == SETTINGS.epochs and not alone[t][0][-1].reason for t in DIFFERENT if t != DIVERGES)


def test_steps_after_the_one_that_diverged_count_as_nothing(trainers, alone):
    """The first batch of six has a loss, and its signal is not finite."""
    (found,), _ = alone[DIVERGES]
    key = jax.random.fold_in(jax.random.key(SEED), 0)
    params = trainers[1].task._variables(InterpretedRule(blank_program(PARTS)), key, jnp.zeros((1, 4, 4, 1)))["params"]
    first = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 2), 0), 50))[:8]
    losses, right = judged(trainers[1], params, SPLIT.train_images[first], SPLIT.train_labels[first])
    assert found.train_loss == pytest.approx(losses.mean() / 6, rel=1e-5)
    assert found.train_accuracy == pytest.approx(right.mean() / 6, rel=1e-5)
    assert not math.isfinite(found.gradient_norm) and (found.eval_loss, found.eval_accuracy) == (0, 0)


def test_the_first_thing_that_is_not_finite_is_the_reason(trainers, monkeypatch):
    trainer = trainers[4]
    assert [e.reason for e in run(trainer, {1: training("g", 3e38)})[1]] == ["weight not finite"]
    unknown = jnp.full_like(trainer._examples.mean, jnp.nan)
    monkeypatch.setattr(trainer, "_examples", trainer._examples.replace(mean=unknown))
    assert [e.reason for e in run(trainer, {1: training("g")})[1]] == ["loss not finite"]  # and nothing else is finite


def test_replicates_learning_rates_and_equations_each_change_the_result(trainers):
    orders = [training("g"), training("g", replicate=1), training("g", 0.2), training("fa")]
    curves = run(trainers[4], dict(enumerate(orders)))
    assert len({repr(c) for c in curves.values()}) == 4


def test_an_epoch_is_traced_once_for_many_equations_rates_and_replicates(monkeypatch):
    chex.clear_trace_counter()
    monkeypatch.setattr(Task, "_epoch", chex.assert_max_traces(Task._epoch, n=1))
    trainer = make_trainer(2, TrainingSettings(model="mlp-4", batch_size=8, epochs=1), devices=jax.devices()[:1])
    for replicate, text in enumerate(("g", "unit_fro(fa) - h", "clip(g, 0.5)")):
        curve = run(trainer, {replicate % 2: training(text, 0.1 * (1 + replicate), replicate)})[replicate % 2]
        assert len(curve) == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"train_images": np.zeros((50, 4, 4), np.uint8)},
        {"train_images": np.zeros((50, 4, 4, 1), np.float32)},
        {"eval_labels": np.zeros(29, np.int32)},
        {"eval_images": np.zeros((30, 4, 5, 1), np.uint8)},
        {"eval_images": np.zeros((30, 5, 4, 1), np.uint8)},
    ],
)
def test_a_split_of_wrong_shapes_or_types_is_refused_before_anything_is_traced(fault):
    with pytest.raises(AssertionError, match="\\[Chex\\]"):
        to_examples(dataclasses.replace(SPLIT, **fault), 8)


def test_a_trainer_refuses_examples_of_another_task():
    task = dataclasses.replace(make_task(), examples=49)
    with pytest.raises(AssertionError, match="\\[Chex\\]"):
        Trainer(task, to_examples(SPLIT, 8), capacity=1)


def test_every_equation_runs_in_one_of_two_compiled_programs(trainers):
    rng, space = np.random.default_rng(3), SearchSpace(PARTS)
    equations = [e for e in (space.random(rng) for _ in range(500)) if feasible(e)][:20]
    assert len(equations) == 20
    for start in range(0, 20, 4):
        run(trainers[4], {k: Training(e, 0.1) for k, e in enumerate(equations[start : start + 4])})
    beside, on_tiles = trainers[4]._programs
    assert on_tiles._cache_size() == 1 and beside._cache_size() <= 1


def test_rules_of_table_1_train_on_an_mlp(trainers):
    texts = sorted(set(TABLE_1.values()))
    for start in range(0, len(texts), 8):
        curves = run(trainers[8], {k: training(t) for k, t in enumerate(texts[start : start + 8])})
        for curve in curves.values():
            assert curve[-1].reason in REASONS
            assert curve[-1].reason or np.isfinite([curve[-1].train_loss, curve[-1].eval_loss]).all()


def test_an_implicit_transfer_during_training_is_an_error(trainers, monkeypatch):
    trainer = trainers[4]
    trainer.start(0, training("g"))

    def transferring(orders, states, examples):
        return states, jnp.sin(np.ones(3)) + orders.epoch[0]

    monkeypatch.setattr(trainer, "_programs", [transferring] * 2)
    with pytest.raises(Exception, match="[Dd]isallowed host-to-device transfer"):
        trainer.advance()
    trainer.stop(0)


def test_running_out_of_memory_is_told_with_fewer_slots_to_try(trainers, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    trainer = trainers[4]
    trainer.start(0, training("g"))
    monkeypatch.setattr(trainer, "_programs", [full] * 2)
    with pytest.raises(OutOfMemory, match="4 slots do not fit.*--slots=2"):
        trainer.advance()
    trainer.stop(0)


def test_states_are_given_to_the_epoch_that_changes_them(trainers):
    trainer = trainers[4]
    trainer.start(0, training("g"))
    before = jax.tree.leaves(trainer._states)
    trainer.advance()
    trainer.stop(0)
    assert all(x.is_deleted() for x in before)


def test_occupancy_is_the_share_of_slots_that_trained(trainers):
    trainer = trainers[4]
    trained, offered = trainer.epochs_run, trainer.epochs_offered
    assert trainer.advance() == {}
    run(trainer, {1: training("g")})
    assert (trainer.epochs_run - trained, trainer.epochs_offered - offered) == (3, 12)
    assert trainer.occupancy == trainer.epochs_run / trainer.epochs_offered


def test_vmap_and_the_kernel_agree_with_map():
    settings = TrainingSettings(model="mlp-8", weight_decay=0.01, batch_size=8, epochs=2)
    texts = ("g", "add_noise(bn(fa), 0.1) + g", "unit_row2(g)", "(b_L @ R_L) * dh")
    orders = {k: training(t) for k, t in enumerate(texts)}
    trainers = [make_trainer(4, settings, lowering=how) for how in ("map", "vmap")]
    trainers.append(make_trainer(4, settings, lowering="vmap", kernel=Kernel("tpu", interpret=True, floats=16)))
    assert [trainer.kernel and type(trainer.kernel) for trainer in trainers] == [None, None, Kernel]
    mapped, *others = (run(trainer, orders) for trainer in trainers)
    for batched in others:
        for slot in orders:
            for one, other in zip(mapped[slot], batched[slot], strict=True):
                assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
                assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)
                assert one.eval_loss == pytest.approx(other.eval_loss, rel=1e-4)
    beside, inside = trainers[2]._programs  # the last equation has a product, which no tile can compute
    assert beside._cache_size() == inside._cache_size() == 1
    trainers[2]._programs[0] = None  # needed by no other
    assert run(trainers[2], {1: orders[1]})[1] == others[1][1]
    # That one reads fa as well as g. What reads one product each has a program of its own, once no slot holds such an equation.
    assert run(trainers[2], {0: orders[0]})[0] == others[1][0]
    assert inside._cache_size() == 1
    alone = run(trainers[2], {0: orders[0], 1: orders[2]})
    assert alone == {0: others[1][0], 1: others[1][2]} and inside._cache_size() == 2


def print_results_of_devices(*counts: int) -> None:
    """Run in a process of its own: curves of DIFFERENT over that many devices."""
    jax.config.update("jax_num_cpu_devices", max(counts))
    assert [make_trainer(k, devices=jax.devices()[:2]).capacity for k in (1, 2, 3, None)] == [
        1,
        2,
        4,
        8,
    ]  # whole devices
    for count in counts:
        trainer = make_trainer(8, devices=jax.devices()[:count])
        assert len(trainer._states.reason.sharding.device_set) == count
        orders = {k: training(t) for k, t in enumerate(DIFFERENT)}
        print(json.dumps([repr(c) for c in run(trainer, orders).values()]))


def test_several_devices_give_the_results_of_one(alone):
    repository = pathlib.Path(__file__).parents[1]
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    environment |= {"PYTHONPATH": f"{repository}{os.pathsep}{repository / 'tests'}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import test_training; test_training.print_results_of_devices(2, 8)"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = [repr(alone[t][0]) for t in DIFFERENT]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [expected] * 2


def print_results_beside_another() -> None:
    """Run in a process of its own, under vmap: two noisy trainings alone, then beside each other."""
    settings = TrainingSettings(model="mlp-8", weight_decay=0.01, batch_size=8, epochs=2)
    trainer = make_trainer(2, settings, lowering="vmap", devices=jax.devices()[:1])
    noisy = [training("add_noise(g, 0.1) + drop(fa, 0.1)"), training("mul_noise(g, 0.5)", replicate=1)]
    for orders in ({0: noisy[0]}, {1: noisy[1]}, dict(enumerate(noisy))):
        print(json.dumps({slot: repr(curve) for slot, curve in run(trainer, orders).items()}))


def test_the_environments_random_generator_changes_no_result():
    repository = pathlib.Path(__file__).parents[1]
    results = []
    for name in ("threefry2x32", "rbg", "unsafe_rbg"):
        environment = os.environ | {
            "PYTHONPATH": f"{repository}{os.pathsep}{repository / 'tests'}",
            "JAX_PLATFORMS": "cpu",
            "JAX_DEFAULT_PRNG_IMPL": name,
        }
        command = [sys.executable, "-c", "import test_training; test_training.print_results_beside_another()"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        first, second, both = map(json.loads, done.stdout.splitlines())
        assert first | second == both  # alone as beside another
        results.append(both)
    assert results[0] == results[1] == results[2]


# The Wide ResNet.


@pytest.fixture(scope="module")
def wide_resnet() -> Trainer:
    dataset = data.load("digits")
    split = data.train_validation_split(dataset, 512)
    settings = TrainingSettings(model="wrn-10-1", batch_size=32, epochs=3)
    task = Task(settings=settings, classes=10, examples=512, flip=dataset.flip, pad=dataset.pad)
    return Trainer(task, to_examples(split, 32), capacity=4, max_parts=PARTS, devices=jax.devices()[:1])


@pytest.mark.slow  # its program compiles for a minute
def test_a_wide_resnet_learns_digits_and_backprop_beats_the_zero_signal(wide_resnet):
    texts = ("backprop", "zero_signal", "a1_sgd_1")
    curves = run(wide_resnet, {k: training(NAMED[name]) for k, name in enumerate(texts)})
    backprop, zero, found = (curves[k][-1].eval_accuracy for k in range(3))
    assert backprop > 0.7 and backprop > zero + 0.1
    assert zero > 0.1 and found > zero


@pytest.mark.slow
def test_rules_of_table_1_train_on_a_wide_resnet(wide_resnet):
    texts = sorted(set(TABLE_1.values()))
    for start in range(0, len(texts), 4):
        orders = {k: training(t, 0.05) for k, t in enumerate(texts[start : start + 4])}
        for slot, order in orders.items():
            wide_resnet.start(slot, order)
        for slot, result in wide_resnet.advance().items():
            assert result.reason in REASONS
            assert result.reason or np.isfinite([result.train_loss, result.eval_loss]).all(), texts[start + slot]
            wide_resnet.stop(slot)
    assert wide_resnet._programs[-1]._cache_size() == 1
