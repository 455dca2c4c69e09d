"""Networks of one's own by `--model=package.module:factory`: the numbers of our own, and one clear error for each fault."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import CLASSES, PARTS, SEED, SPLIT, make_task, parameters, run, training

from bpevo import models
from bpevo.rules import InterpretedRule, blank_program
from bpevo.training import Trainer, TrainingSettings, to_examples

SETTINGS = TrainingSettings(model="mlp-6-6", weight_decay=0.1, batch_size=10, epochs=2)
TEXTS = ("g", "unit_fro(g) + (0.5*h)", "whiten(g) * clip(bn(h), 0.5)")


def trained(model: str, texts=TEXTS) -> tuple[list, list]:
    settings = dataclasses.replace(SETTINGS, model=model)
    options = {"capacity": len(texts), "max_parts": PARTS, "seed": SEED, "devices": jax.devices()[:1]}
    trainer = Trainer(make_task(settings), to_examples(SPLIT, 10), **options)
    curves = run(trainer, {i: training(text, 0.1) for i, text in enumerate(texts)})
    return [curves[i] for i in range(len(texts))], [parameters(trainer, i) for i in range(len(texts))]


def test_a_plain_flax_network_gives_the_numbers_of_models():
    """In the compiled slots with interpreted rules: losses, accuracies and every parameter."""
    (curves, found), (expected_curves, expected) = trained("own_networks:MLP"), trained("mlp-6-6")
    for curve, theirs in zip(curves, expected_curves, strict=True):
        np.testing.assert_allclose([e.train_loss for e in curve], [e.train_loss for e in theirs], rtol=1e-5)
        assert [e.eval_accuracy for e in curve] == [e.eval_accuracy for e in theirs]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, expected)
    kernels = [p["Dense_0"]["kernel"] for p in found]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3  # the rules differ


@pytest.mark.parametrize("model", ["own_networks:gelu", "own_networks:NNX"])
def test_running_averages_dropout_and_seeds_reach_the_users_network(model):
    """Averages move in training only; dropout depends on the key; another seed starts from other weights."""
    network = models.by_name(model, CLASSES, InterpretedRule(blank_program(1)))
    x = jax.random.normal(jax.random.key(0), (12, 4, 4, 1)) + 2
    first, other = (
        network.init({"params": jax.random.key(i), "feedback": jax.random.key(9)}, x[:1], train=False) for i in (1, 2)
    )
    assert not any(np.array_equal(a, b) for a, b in zip(*map(_kernels, (first, other)), strict=True))

    def logits(train, key):
        out, updated = network.apply(
            first, x, train=train, mutable=["batch_stats"], rngs={"noise": jax.random.key(key)}
        )
        return out, updated.get("batch_stats", first["batch_stats"])

    (a, stats), (b, _), (c, kept) = logits(True, 3), logits(True, 4), logits(False, 3)
    assert a.shape == (12, CLASSES) and a.dtype == jnp.float32 and not np.allclose(a, b)
    moved = [
        float(jnp.abs(p - q).max()) for p, q in zip(*map(jax.tree.leaves, (stats, first["batch_stats"])), strict=True)
    ]
    assert max(moved) > 0.01
    jax.tree.map(np.testing.assert_array_equal, kept, first["batch_stats"])
    np.testing.assert_array_equal(c, logits(False, 4)[0])  # no dropout
    standard = models.by_name(model, CLASSES).apply(first, x, train=False, mutable=False)
    np.testing.assert_allclose(c, standard, rtol=1e-5, atol=1e-6)


def _kernels(variables):
    return [p for p in jax.tree.leaves(variables["params"]) if p.ndim > 1]


def test_the_fingerprint_follows_the_parameters_shapes():
    shape = (4, 4, 1)
    first = models.fingerprint("own_networks:gelu", 4, shape)
    assert first == models.fingerprint("own_networks:gelu", 4, shape) and set(first) == {"model_crc32"}
    assert models.fingerprint("own_networks:gelu", 5, shape) != first
    assert models.fingerprint("own_networks:NNX", 4, shape) != first
    assert models.fingerprint("mlp-8", 4, shape) == {}


@pytest.mark.parametrize(
    "name, message",
    [
        ("own_networks:gelus", "the module own_networks has no gelus"),
        ("own_network:gelu", "there is no module own_network; start where"),
        ("own networks:gelu", "write package.module:name"),
        (":gelu", "write package.module:name"),
        ("own_networks:raises", "fails: RuntimeError: no weights found .*own_networks.py, line"),
        ("own_networks:nothing", "returns a int, no Linen or NNX module"),
        ("own_networks:instance", "is a GELU: name a function"),
        ("own_networks:unseeded", "needs an argument rngs"),
        ("own_networks:numpy", "fails when it is traced on .*TracerArrayConversionError.*own_networks.py, line"),
        ("own_networks:integers", "its parameter shift is int32"),
        ("own_networks:scalar", r"returns float32 \[\] for float32 \[3, 4, 4, 1\], no logits \[3, 4\]"),
        ("own_networks:features", r"returns float32 \[3, 7\]"),
    ],
)
def test_what_is_no_network_gets_one_clear_error(name, message):
    with pytest.raises(ValueError, match=message) as error:
        models.fingerprint(name, 4, (4, 4, 1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, message", [("own_networks:one_layer", "has no unit")])
def test_a_network_whose_units_take_no_rule_is_refused(name, message):
    task = make_task(dataclasses.replace(SETTINGS, model=name))
    with pytest.raises(ValueError, match=message):
        task.blank(InterpretedRule(blank_program(1)), (4, 4, 1))


def test_bfloat16_needs_a_factory_that_takes_the_dtype():
    with pytest.raises(ValueError, match="needs an argument dtype"):
        models.by_name("own_networks:gelu", 4, None, jnp.bfloat16)
