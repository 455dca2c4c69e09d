"""Optimizers by name: those of optax train as a plain optax loop does, and what does not fit is refused with its reason."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training import SEED, SPLIT, make_task, parameters, training

from bpevo.rules import InterpretedRule, blank_program, compile
from bpevo.training import OPTIMIZERS, Trainer, TrainingSettings, to_examples
from bpevo.training.optimizers import _value, is_kernel, optimizer_named

DECAY, BATCH, EPOCHS = 0.05, 10, 2


def kernels(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


# Text, learning rate, the same in plain optax with weight decay DECAY, L2 where the optimizer has none of its own.
EQUALS = [
    ("adam:b1=0.8,b2=0.95", 0.03, lambda r: optax.adam(r, 0.8, 0.95), DECAY),
    ("adamw:b2=0.95", 0.03, lambda r: optax.adamw(r, b2=0.95, weight_decay=DECAY, mask=kernels), 0),
    ("lion", 0.01, lambda r: optax.lion(r, weight_decay=DECAY, mask=kernels), 0),
    ("lars", 30.0, lambda r: optax.lars(r, weight_decay=DECAY, weight_decay_mask=kernels), 0),
    ("muon", 0.03, lambda r: optax.contrib.muon(r, weight_decay=DECAY, weight_decay_mask=kernels), 0),
    ("adafactor:min_dim_size_to_factor=4", 0.1, lambda r: optax.adafactor(r, min_dim_size_to_factor=4), DECAY),
    ("prodigy:estim_lr0=0.01", 1.0, lambda r: optax.contrib.prodigy(r, estim_lr0=0.01), DECAY),
    ("rprop", 0.01, lambda r: optax.rprop(r), DECAY),
    ("sgd:momentum=0.9,nesterov=true", 0.1, lambda r: optax.sgd(r, 0.9, True), DECAY),
]


def settings(text: str, schedule: str = "cosine") -> TrainingSettings:
    return TrainingSettings(
        model="mlp-6", optimizer=text, weight_decay=DECAY, batch_size=BATCH, epochs=EPOCHS, schedule=schedule
    )


def plain_loop(rate: float, make, l2: float):
    """Parameters at the start and at the end of plain autodiff and an optax optimizer under a cosine schedule."""
    key = jax.random.fold_in(jax.random.key(SEED), 0)
    variables = make_task(settings("sgd"))._variables(InterpretedRule(blank_program(3)), key, jnp.zeros((1, 4, 4, 1)))
    params = start = variables["params"]
    images = SPLIT.train_images / np.float32(255) - SPLIT.train_images.mean(0) / np.float32(255)
    steps = len(images) // BATCH
    optimizer = make(optax.cosine_decay_schedule(rate, EPOCHS * steps))
    optimizer = optax.chain(optax.add_decayed_weights(l2, kernels), optimizer)
    state = optimizer.init(params)

    def loss(params, x, y):
        h = jnp.maximum(x.reshape(BATCH, -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
        logits = h @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, state, x, y):
        updates, state = optimizer.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    for epoch in range(EPOCHS):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 2), epoch), len(images)))
        for i in range(steps):
            batch = order[i * BATCH :][:BATCH]
            params, state = step(params, state, jnp.float32(images[batch]), SPLIT.train_labels[batch])
    return start, params


@pytest.mark.parametrize("text, rate, make, l2", EQUALS, ids=[text.partition(":")[0] for text, *_ in EQUALS])
def test_an_optimizer_of_optax_trains_as_a_plain_optax_loop(text, rate, make, l2):
    if text == "rprop":  # reads the learning rate at its start only, and takes no schedule
        start, expected = plain_loop(rate, lambda _: optax.rprop(rate), l2)
    else:
        start, expected = plain_loop(rate, make, l2)
    options = {"capacity": 2, "seed": SEED, "lowering": "vmap", "rule": compile("g"), "devices": jax.devices()[:1]}
    trainer = Trainer(make_task(settings(text)), to_examples(SPLIT, BATCH), **options)
    trainer.start(0, training("g", 2 * rate))
    trainer.start(1, training("g", rate))
    for _ in range(EPOCHS):
        trainer.advance()
    found = parameters(trainer, 1)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (start, expected)), strict=True)]
    scale = max(moved)
    assert scale > 1e-4
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-3 * scale)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("momo", "missing 1 required .*'value'"),
        ("lbfgs", "'value_fn'"),
        ("sophia", "obj_fn must be provided"),
        ("schedule_free_adamw", "evaluates other parameters than it trains"),
        ("schedule_free", "needs base_optimizer"),
        ("dpsgd:l2_norm_clip=1,noise_multiplier=1,seed=0", "batch dimension"),
        ("noisy_sgd", "it draws noise, the same for every seed"),
        ("sam", "takes no learning rate"),
        ("adm", "the nearest is 'adam'"),
        ("", "must be one of sgd"),
        ("adam:", "write NAME:KEY=VALUE"),
        ("adam:b1=0.9,b1=0.8", "each key once, not 'b1=0.8'"),
        ("adam:1=2", "each key once, not '1=2'"),
        ("adam:b1", "each key once, not 'b1'"),
        ("adam:b1=", "each key once, not 'b1='"),
        ("scale_by_learning_rate", "optax.scale_by_learning_rate takes no learning rate"),
        ("adam:b7=1", "adam takes b1, b2, eps, .* not b7"),
        ("adamw:weight_decay=1", "weight_decay comes from --weight_decay"),
        ("adamw:mask=1", "mask comes from --weight_decay"),
        ("lion:learning_rate=1", "learning_rate comes from --learning_rates"),
        ("adamw:b1=__import__('os')", "does not fit"),
        ("adam:b1=word", "does not fit"),
        ("momentum:decay=0.8", "momentum takes no arguments"),
    ],
)
def test_what_is_no_optimizer_here_is_refused_with_its_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        TrainingSettings(optimizer=text)


def test_an_optimizer_whose_updates_have_other_shapes_is_refused(monkeypatch):
    def summed(learning_rate):
        return optax.stateless(lambda g, _: jax.tree.map(lambda x: learning_rate * x.sum(0), g))

    monkeypatch.setattr(optax, "summed", summed, raising=False)
    with pytest.raises(ValueError, match="does not fit.*shapes"):
        optimizer_named("summed", 0.0)


def test_a_registered_name_comes_before_optaxs(monkeypatch):
    ones = optax.stateless(lambda g, _: jax.tree.map(jnp.ones_like, g))
    monkeypatch.setitem(OPTIMIZERS, "lion", lambda: ones)
    optimizer = optimizer_named("lion", 0.0)
    params, rate = {"kernel": jnp.zeros((2, 2))}, jnp.float32(0.5)
    after, _ = optimizer.update(params, optimizer.init(params, rate), params, rate)
    assert after["kernel"].tolist() == [[-0.5, -0.5], [-0.5, -0.5]]


def test_weight_decay_applies_to_parameters_of_two_axes_or_more():
    shapes = {"scale": (), "bias": (3,), "dense": (3, 2), "conv": (3, 3, 2, 4)}
    found = is_kernel({name: jnp.zeros(shape) for name, shape in shapes.items()})
    assert found == {"scale": False, "bias": False, "dense": True, "conv": True}
    heads = {"query": {"kernel": (4, 2, 3), "bias": (2, 3)}, "norms": {"scale": (5, 4), "bias": (5, 4)}}  # scanned
    found = is_kernel(jax.tree.map(jnp.zeros, heads, is_leaf=lambda x: isinstance(x, tuple)))
    assert found == {"query": {"kernel": True, "bias": False}, "norms": {"scale": False, "bias": False}}


@pytest.mark.parametrize("text", ["muon", "adamw", "sgd"])
def test_every_kernel_decays_and_nothing_else(text):
    """By the rate times the decay, of ones whose gradient is zero."""
    params = {"conv": {"kernel": jnp.ones((3, 3, 2, 4))}, "dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    optimizer, rate = optimizer_named(text, 0.1), jnp.float32(0.5)
    nothing = jax.tree.map(jnp.zeros_like, params)
    after, _ = optimizer.update(nothing, optimizer.init(params, rate), params, rate)
    for layer, name in (("conv", "kernel"), ("dense", "kernel")):
        np.testing.assert_allclose(after[layer][name], 0.95, rtol=1e-6)
    assert after["dense"]["bias"].tolist() == [1.0, 1.0]


def test_arguments_are_whole_numbers_numbers_constants_of_python_or_words():
    texts = ["3", "-3", "3e-1", "0.5", "true", "False", "NONE", "bfloat16"]
    found = [_value(text) for text in texts]
    assert found == [3, -3, 0.3, 0.5, True, False, None, "bfloat16"]
    assert [type(value) for value in found[:2]] == [int, int]
    optimizer_named("adamw: b1 = 0.8 , nesterov = true", 0.0)


def refusal(text: str) -> str:
    with pytest.raises(ValueError) as caught:
        optimizer_named(text, 0.1)
    return str(caught.value)


def test_arguments_that_an_optimizer_of_optax_does_not_take_or_needs_are_named(monkeypatch):
    def toy(learning_rate, needed, other=1, mask=None, weight_decay=0.0):
        return optax.sgd(learning_rate)

    def bare(learning_rate):
        return optax.sgd(learning_rate)

    monkeypatch.setattr(optax, "toy", toy, raising=False)
    monkeypatch.setattr(optax, "bare", bare, raising=False)
    assert refusal("toy:needed=1,wrong=2") == "optimizer='toy:needed=1,wrong=2': toy takes needed, other, not wrong"
    assert refusal("toy:other=1") == "optimizer='toy:other=1': toy needs needed, as toy:needed=…"
    assert refusal("bare:b=1") == "optimizer='bare:b=1': bare takes no arguments, not b"
    optimizer_named("toy:needed=1", 0.1)


def test_an_entry_of_ones_own_is_tried_with_its_arguments(monkeypatch):
    def failing(strength):
        raise LookupError

    def growing(by):
        return optax.GradientTransformation(lambda params: jnp.zeros(2), lambda g, s, params: (g, jnp.zeros(2 + by)))

    monkeypatch.setitem(OPTIMIZERS, "failing", failing)
    monkeypatch.setitem(OPTIMIZERS, "growing", growing)
    assert refusal("failing:strength=1").endswith("nothing else; failing says: LookupError")
    assert refusal("failing:b=1") == "optimizer='failing:b=1': failing takes strength"
    assert refusal("growing:by=1") == (
        "optimizer='growing:by=1' does not fit: its state changes shape or dtype from step to step"
    )
    optimizer_named("growing:by=0", 0.1)
