"""Networks and data of a user, named on command lines of the tests as own_networks:NAME."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class GELU(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x, deterministic: bool):
        x = nn.Dense(6)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=deterministic)(x)
        x = nn.gelu(nn.Dense(5)(nn.gelu(x)))
        return nn.Dense(self.classes)(nn.Dropout(0.1, deterministic=deterministic)(x))


def gelu(classes):
    return GELU(classes)


class MLP(nn.Module):
    """models.MLP((6, 6)) in plain Flax."""

    classes: int

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        for i, features in enumerate((6, 6, self.classes)):
            x = nn.Dense(features, kernel_init=nn.initializers.normal((2 / x.shape[-1]) ** 0.5))(nn.relu(x) if i else x)
        return x


def he(fan_in):
    return nn.initializers.normal((2 / fan_in) ** 0.5)


class WRN(nn.Module):
    """models.WideResNet(10, 1) in plain Flax."""

    classes: int

    @nn.compact
    def __call__(self, x, train):
        def conv(x, features, kernel, stride):
            init = he(kernel * kernel * x.shape[-1])
            return nn.Conv(features, (kernel, kernel), stride, use_bias=False, kernel_init=init)(x)

        def activated(x):
            return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))

        x = conv(x, 16, 3, 1)
        for features, stride in ((16, 1), (32, 2), (64, 2)):
            first = activated(x)
            y = conv(activated(conv(first, features, 3, stride)), features, 3, 1)
            x = (x if x.shape[-1] == features else conv(first, features, 1, stride)) + y
        return nn.Dense(self.classes, kernel_init=he(x.shape[-1]))(activated(x).mean((1, 2)))


class NNX(nnx.Module):
    def __init__(self, classes, rngs, dropout=0.2):
        self.first, self.last = nnx.Linear(16, 6, rngs=rngs), nnx.Linear(6, classes, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(6, rngs=rngs), nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.gelu(self.norm(self.first(x.reshape(x.shape[0], -1))))))


def steady(classes, rngs):
    return NNX(classes, rngs, dropout=0.0)


class Net(nn.Module):
    """Does to its input, or to a hidden layer's result, what it is told."""

    what: str

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(3)(x.reshape(x.shape[0], -1)))
        if self.what == "numpy":
            x = jnp.asarray(np.maximum(x, 0))
        if self.what == "integers":
            x = x + self.param("shift", lambda key: jnp.arange(3))
        y = nn.Dense(4)(x)
        return y.sum() if self.what == "scalar" else nn.Dense(7)(y) if self.what == "features" else y


def numpy():
    return Net("numpy")


def integers():
    return Net("integers")


def scalar():
    return Net("scalar")


def wide():
    """R_L of its last layer would have 84 million entries."""
    return nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(21 * 10**6), nn.Dense(4)])


def features():
    return Net("features")


def raises():
    raise RuntimeError("no weights found")


def nothing():
    return 3


def unseeded():
    return nnx.Linear(2, 2, rngs=nnx.Rngs(0))


def one_layer():
    return nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(4)])


instance = GELU(3)


class Told(nn.Module):
    """Logits from what it is told of training."""

    @nn.compact
    def __call__(self, x, train, is_training, deterministic, use_running_average):
        self.sow("intermediates", "seen", x)
        told = jnp.array([train, is_training, deterministic, use_running_average], jnp.float32)
        return told + 0 * nn.Dense(4)(x.reshape(x.shape[0], -1))


class ToldNNX(nnx.Module):
    """The same; and its mode, which dropout of everything shows."""

    def __init__(self, rngs):
        self.last, self.dropout = nnx.Linear(16, 4, rngs=rngs), nnx.Dropout(0.999999, rngs=rngs)

    def __call__(self, x, training, deterministic):
        told = jnp.array([training, deterministic, 0, 1], jnp.float32)
        return told * self.dropout(jnp.ones((x.shape[0], 4))) + 0 * self.last(x.reshape(x.shape[0], -1))


class Growing(nn.Module):
    @nn.compact
    def __call__(self, x):
        seen = self.variable("batch_stats", "seen", jnp.zeros, (1,))
        if self.is_mutable_collection("batch_stats"):
            seen.value = jnp.append(seen.value, 0.0)
        return nn.Dense(4)(x.reshape(x.shape[0], -1))


def typed(classes, dtype):
    return nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(classes, dtype=dtype)])


def whole():
    return nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(4), lambda y: y.astype(jnp.int32)])


def pair():
    return nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(4), lambda y: (y, y)])


def blobs():
    """Floats [N, 5]: three clusters."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 120)
    x = np.eye(3, 5)[labels] * 3 + random.normal(size=(120, 5))
    return {"x_train": x[:90], "y_train": labels[:90], "x_test": x[90:], "y_test": labels[90:]}


def number():
    return jax.numpy.ones(3)
