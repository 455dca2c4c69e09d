"""Units that are used several times in a step: running statistics are joint means, whatever adds the gradients up."""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpevo import layers, rules

STEPS, USES, BATCH, WIDTH = 4, 3, 5, 4
RULE = "(mean(hp) + g) * std(hp)"
RANDOM = np.random.default_rng(0)
X = (RANDOM.normal(size=(STEPS, USES, BATCH, WIDTH)) + RANDOM.normal(size=(USES, 1, WIDTH))).astype(np.float32)


def expected(inputs):
    """m and var after inputs [steps, uses, batch, width]: each use renews the joint state, the next joint state is the mean."""
    m = var = np.zeros(np.shape(inputs)[-1])
    for t, uses in enumerate(np.asarray(inputs, np.float64)):
        w = 0.1 / (1 - 0.9 ** (t + 1))
        means, spreads = uses.mean(1), uses.var(1)
        var = ((1 - w) * (var + w * (means - m) ** 2) + w * spreads).mean(0)
        m = m + w * (means.mean(0) - m)
    return m, var


def joint(inputs):
    """The EMA of the mean over all samples of a step."""
    weights = 0.1 * 0.9 ** np.arange(len(inputs))[::-1] / (1 - 0.9 ** len(inputs))
    return np.tensordot(weights, np.asarray(inputs, np.float64).mean((1, 2)), 1)


def assert_state(state, inputs, interpreted=False):
    """The state is that of `expected`, twice in it: RULE takes mean and std of hp."""
    steps, (m, var) = len(inputs), expected(inputs)
    state = jax.tree.map(lambda x: np.asarray(x) / np.asarray(state["uses"]), state)
    assert state["step"] == steps and state["uses"] == 1
    np.testing.assert_allclose(m, joint(inputs), rtol=1e-6, atol=1e-9)
    for k in range(2):
        found = state["small"][k, :, :WIDTH] if interpreted else (state["m"][k][0], state["var"][k][0])
        np.testing.assert_allclose(found[0], m, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[1], var, rtol=1e-4, atol=1e-6)


def train(net, inputs, loss):
    """The rule's state after a step on each of `inputs`; parameters stay."""
    variables = net.init(jax.random.key(0), inputs[0])
    collection = variables.pop(layers.OVERWRITE)
    step = jax.jit(jax.grad(lambda c, x: loss(net.apply({**variables, layers.OVERWRITE: c}, x))))
    for x in inputs:
        collection = step(collection, x)
    return collection, variables


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = layers.Dense(WIDTH, rules.compile(RULE), name="layer")
        first = layer(x)
        return layer(first), first


def test_a_layer_that_is_called_twice_keeps_the_joint_mean_of_its_inputs():
    collection, variables = train(Twice(), X[:, 0], lambda y: jnp.sum(y[0] ** 2))
    second = [Twice().apply({**variables, layers.OVERWRITE: collection}, x)[1] for x in X[:, 0]]
    assert_state(collection["layer"]["rule"], np.stack([X[:, 0], np.stack(second)], 1))


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        body = nn.scan(
            lambda layer, total, x: (total + layer(x), None),
            variable_broadcast=["params", layers.OVERWRITE],
            split_rngs={"params": False},
        )
        return body(layers.Dense(WIDTH, rules.compile(RULE), name="layer"), jnp.zeros((BATCH, WIDTH)), x)[0]


class Mapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = {"params": None, layers.OVERWRITE: None}
        mapped = nn.vmap(lambda layer, x: layer(x), variable_axes=shared, split_rngs={"params": False})
        return mapped(layers.Dense(WIDTH, rules.compile(RULE), name="layer"), x)


@pytest.mark.parametrize("net", [Scanned(), Mapped()], ids=["nn.scan", "nn.vmap"])
def test_a_layer_with_shared_variables_keeps_the_joint_mean_of_its_inputs(net):
    collection, _ = train(net, X, lambda y: jnp.sum(y**2))
    assert_state(collection["layer"]["rule"], X)


@pytest.mark.parametrize("average", [False, True], ids=["added", "averaged"])
@pytest.mark.parametrize("interpreted", [False, True], ids=["compiled", "interpreted"])
def test_gradients_of_micro_batches_carry_joint_means(interpreted, average):
    rule = rules.compile(RULE)
    layer = layers.Dense(WIDTH, rules.InterpretedRule.of(rule.expression.to_equation()) if interpreted else rule)
    zero, noise = layers.carrier(BATCH, 2), {"noise": jax.random.key(0)}
    variables = layer.init(jax.random.key(0), X[0, 0], zero)
    state = variables.pop(layers.OVERWRITE)["rule"]

    def loss(state, x):
        y, carrier = layer.apply({**variables, layers.OVERWRITE: {"rule": state}}, x, zero, rngs=noise)
        return jnp.sum(y**2) + jnp.sum(carrier)

    gradient = jax.jit(jax.grad(loss))
    for micro_batches in X:
        sums = jax.tree.map(lambda *x: sum(x), *(gradient(state, x) for x in micro_batches))
        state = jax.tree.map(lambda x: x / USES, sums) if average else sums
    assert_state(state, X, interpreted)


def test_a_shared_layers_signal_uses_the_joint_mean():
    """Second step: m is the mean of both uses' means, renewed by the use's own batch."""
    layer = layers.Dense(WIDTH, rules.compile("(g - g) + mean(hp)"))
    variables = layer.init(jax.random.key(0), X[0, 0])
    state = variables.pop(layers.OVERWRITE)

    def loss(x, state):
        return jnp.sum(layer.apply({**variables, layers.OVERWRITE: state}, x))

    both = [jax.grad(loss, 1)(X[0, i], state) for i in range(2)]
    state = jax.tree.map(jnp.add, *both)
    signal = jax.grad(loss)(X[1, 0], state)
    first, second = X[0, :2].mean((0, 1)), X[1, 0].mean(0)
    np.testing.assert_allclose(signal[0], (0.09 * first + 0.1 * second) / 0.19, rtol=1e-4, atol=1e-6)


def test_a_unit_without_a_backward_pass_starts_afresh_and_never_divides_by_zero():
    layer = layers.Dense(WIDTH, rules.compile(RULE))
    variables = layer.init(jax.random.key(0), X[0, 0])
    fresh = variables.pop(layers.OVERWRITE)

    def loss(state, on):
        return on * 0.0 + jnp.sum(layer.apply({**variables, layers.OVERWRITE: state}, X[0, 0])) if on else 0.0

    unused = jax.grad(loss)(fresh, False)
    once, twice = (jax.grad(loss)(state, True)["rule"] for state in (fresh, unused))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), once, twice))


DEVICES = """
import functools, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from bpevo import layers, rules
x = np.load(sys.argv[1])
layer = layers.Dense(x.shape[-1], rules.compile(sys.argv[2]))
variables = layer.init(jax.random.key(0), x[0, 0])
kernel, state = variables["params"], variables[layers.OVERWRITE]["rule"]

def gradients(kernel, state, x):
    loss = lambda p, s: jnp.sum(layer.apply({"params": p, layers.OVERWRITE: {"rule": s}}, x[0]) ** 2)
    return jax.grad(loss, (0, 1))(kernel, state)

def added(*arguments):
    return jax.lax.psum(gradients(*arguments), "d")

mesh = Mesh(jax.devices(), "d")
shard = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(), P("d")), out_specs=P())
for step in (shard(gradients), shard(added, check_vma=False)):  # added by shard_map, and by hand
    new, step = state, jax.jit(step)
    for batch in x:
        slope, new = step(kernel, new, batch)
    assert len(jax.devices()) == x.shape[1] == new["uses"], new
    whole = gradients(kernel, state, x[-1].reshape(1, -1, x.shape[-1]))[0]
    np.testing.assert_allclose(slope["kernel"], whole["kernel"], rtol=1e-4)
    np.testing.assert_allclose(slope["bias"], whole["bias"], rtol=1e-4)
    np.savez(sys.argv[3] + step.__name__, *jax.tree.leaves(new))
"""


def test_gradients_added_over_devices_carry_joint_means(tmp_path):
    np.save(tmp_path / "x.npy", X)
    env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={USES}", "JAX_PLATFORMS": "cpu"}
    arguments = [str(tmp_path / "x.npy"), RULE, str(tmp_path / "state")]
    subprocess.run([sys.executable, "-c", DEVICES, *arguments], env=env, check=True)
    layer = layers.Dense(WIDTH, rules.compile(RULE))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), X[0, 0])[layers.OVERWRITE]["rule"]
    for way in ("gradients", "added"):
        with np.load(tmp_path / f"state{way}.npz") as arrays:
            assert_state(jax.tree.unflatten(jax.tree.structure(shapes), list(arrays.values())), X)
