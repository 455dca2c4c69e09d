"""Networks as their authors write them train with a rule: Flax's MNIST example in Linen and NNX, a transformer."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from test_evolve import FAST

from bpevo.layers import OVERWRITE
from bpevo.layers.evolve import evolve

BATCH, STEPS = 32, 120


@pytest.fixture(scope="module")
def digits():
    """Batches of images [STEPS, BATCH, 8, 8, 1] and labels, and a test set that none of them holds."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = jnp.asarray(images[order].reshape(-1, 8, 8, 1) / 16, jnp.float32), jnp.asarray(labels[order])
    picks = np.random.default_rng(1).integers(0, 1400, (STEPS, BATCH))
    return images[picks], labels[picks], images[1400:], labels[1400:]


class CNN(nn.Module):
    """The network of Flax's MNIST example."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(features=32, kernel_size=(3, 3))(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.Conv(features=64, kernel_size=(3, 3))(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.Dense(features=256)(x)
        x = nn.relu(x)
        return nn.Dense(features=10)(x)


class NnxCNN(nnx.Module):
    """The network of Flax's NNX tutorial."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 32, kernel_size=(3, 3), rngs=rngs)
        self.batch_norm1 = nnx.BatchNorm(32, rngs=rngs)
        self.dropout1 = nnx.Dropout(rate=0.025, rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, kernel_size=(3, 3), rngs=rngs)
        self.batch_norm2 = nnx.BatchNorm(64, rngs=rngs)
        self.avg_pool = functools.partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.linear1 = nnx.Linear(256, 256, rngs=rngs)
        self.dropout2 = nnx.Dropout(rate=0.025, rngs=rngs)
        self.linear2 = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        x = self.avg_pool(nnx.relu(self.batch_norm1(self.dropout1(self.conv1(x)))))
        x = self.avg_pool(nnx.relu(self.batch_norm2(self.conv2(x))))
        x = x.reshape(x.shape[0], -1)
        x = nnx.relu(self.dropout2(self.linear1(x)))
        return self.linear2(x)


class Transformer(nn.Module):
    """Reads an image as a sequence of its rows."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16)(x[..., 0])
        x = x + self.param("positions", nn.initializers.normal(0.1), x.shape[1:])
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))
        return nn.Dense(10)(x.mean(1))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def assert_gradients_agree(actual, expected):
    """Arrays whose exact gradient is 0, such as biases below a batch norm, hold rounding alone: compared with the largest."""
    largest = max(float(jnp.abs(e).max()) for e in jax.tree.leaves(expected))
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=max(1e-5 * float(jnp.abs(e).max()), 1e-6 * largest))


def train_linen(module, rule, digits, tx):
    """Trains with TrainState; returns the losses, the test accuracy and the network."""
    images, labels, test_images, test_labels = digits
    params = jax.jit(module.init)(jax.random.key(0), images[0])["params"]
    net = evolve(lambda params, x: module.apply({"params": params}, x), rule)
    rule_state = net.init(jax.random.key(1), params, images[0])
    state = TrainState.create(apply_fn=net, params={"params": params, OVERWRITE: rule_state}, tx=tx)

    def step(state, batch):
        x, y = batch

        def loss(params):
            return cross_entropy(state.apply_fn(params["params"], params[OVERWRITE], x), y)

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    state, losses = jax.jit(lambda state: jax.lax.scan(step, state, (images, labels)), compiler_options=FAST)(state)
    logits = module.apply({"params": state.params["params"]}, test_images)
    return losses, float((logits.argmax(-1) == test_labels).mean()), net, state


def test_the_linen_example_has_its_own_gradients_with_backprop_as_a_rule(digits):
    x, y = digits[0][0], digits[1][0]
    params = CNN().init(jax.random.key(0), x)
    net = evolve(CNN().apply, "backprop")
    state = net.init(jax.random.key(1), params, x)
    ours = jax.jit(jax.grad(lambda p: cross_entropy(net(p, state, x), y)))(params)
    assert_gradients_agree(ours, jax.jit(jax.grad(lambda p: cross_entropy(CNN().apply(p, x), y)))(params))


def test_the_linen_example_trains_with_feedback_alignment_and_a_train_state(digits):
    losses, accuracy, net, state = train_linen(CNN(), "feedback_alignment", digits, optax.adam(0.003))
    assert [(u.path, u.activation) for u in net.last] == [
        ("Conv_1/kernel", "relu"),  # its average pooling belongs to the linear map
        ("Dense_0/kernel", "relu"),
        ("Dense_1/kernel", "relu"),
    ]
    assert losses[-5:].mean() < 0.5 * losses[0] and accuracy > 0.6
    assert state.step == STEPS and set(state.params) == {"params", OVERWRITE}


def test_the_nnx_example_has_its_own_gradients_and_trains_with_feedback_alignment(digits):
    images, labels, test_images, test_labels = digits
    model = NnxCNN(nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def apply(params, rest, x):
        model = nnx.merge(graph, params, rest)
        return model(x), nnx.state(model, nnx.Not(nnx.Param))

    def loss_of(network, y):
        def loss(*args):
            logits, rest = network(*args)
            return cross_entropy(logits, y), rest

        return loss

    x, y = images[0], labels[0]
    net = evolve(apply, "backprop")
    state = net.init(jax.random.key(1), params, rest, x)
    ours, updated = jax.jit(jax.grad(loss_of(net, y), has_aux=True))(params, state, rest, x)
    expected, wanted = jax.jit(jax.grad(loss_of(jax.jit(apply), y), has_aux=True))(params, rest, x)
    assert_gradients_agree(ours, expected)
    assert jax.tree.structure(updated) == jax.tree.structure(wanted)

    net, tx = evolve(apply, "feedback_alignment"), optax.adam(0.003)
    state = net.init(jax.random.key(1), params, rest, x)
    assert [u.path for u in net.last] == ["conv2/kernel", "linear1/kernel", "linear2/kernel"]

    def step(carry, batch):
        params, state, rest, optimizer = carry
        x, y = batch
        gradient = jax.value_and_grad(loss_of(net, y), (0, 1), has_aux=True)
        (value, rest), (grads, state) = gradient(params, state, rest, x)
        updates, optimizer = tx.update(grads, optimizer, params)
        return (optax.apply_updates(params, updates), state, rest, optimizer), value

    start = params, state, rest, tx.init(params)
    (params, _, rest, _), losses = jax.jit(lambda c: jax.lax.scan(step, c, (images, labels)), compiler_options=FAST)(
        start
    )
    nnx.update(model, params, rest)
    model.eval()
    assert losses[-5:].mean() < 0.5 * losses[0]
    assert (model(test_images).argmax(-1) == test_labels).mean() > 0.6


@pytest.mark.parametrize("rule", ["unit_elem2(g)", "g / (std(g) + 0.1)"])
def test_a_transformer_trains_with_a_rule_and_lists_its_units(digits, rule):
    losses, accuracy, net, _ = train_linen(Transformer(), rule, digits, optax.adam(0.01))
    attention = "MultiHeadDotProductAttention_0"
    assert [u.path for u in net.last] == [
        *(f"{attention}/{name}/kernel" for name in ("query", "key", "value", "out")),
        *(f"{name}/kernel" for name in ("Dense_2", "Dense_1", "Dense_3")),  # as Flax numbers nested calls
    ]
    listed = [line.split()[0] for line in str(net).splitlines()[2:]]
    assert listed[:7] == [u.path for u in net.last] and listed[7] == "left"
    why = [why for _, why in net.last.left_alone]
    assert why == ["nothing with parameters lies below it", *["a product of two activations"] * 2]
    assert losses[-5:].mean() < 0.5 * losses[0] and accuracy > 0.7
