"""Optimizers by name: those of optax train as a plain optax loop does, and what does not fit is refused with its reason."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training import SEED, SPLIT, make_task, parameters, training

from bpevo.rules import InterpretedRule, blank_program, compile
from bpevo.training import OPTIMIZERS, Trainer, TrainingSettings, to_examples
from bpevo.training.optimizers import optimizer_named

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
        ("sam", "takes no learning rate"),
        ("adm", "the nearest is 'adam'"),
        ("", "must be one of sgd"),
        ("adam:", "write NAME:KEY=VALUE"),
        ("adam:b1=0.9,b1=0.8", "each key once"),
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
