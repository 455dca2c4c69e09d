"""Float64 NumPy oracle for the backward equations of "Backprop Evolution" (arXiv 1808.02822).

Written from the paper and the pinned semantics alone: it shares no code with the package that it checks, not even
the parser. Every value is a real 2-D matrix; activations are [B, H*W*C], kernels [kh*kw*I, O], R_L [C, H*W*I]. A
convolution inside an equation is a product with its dense matrix. Slow on purpose; meant for small units.

It reads a superset of the language (it does not police text length, nesting or the spelling of numbers) and refuses
the noise functions, whose values depend on a random generator.
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

EPSILON = 1e-8
DECAY = 0.9


def same_padding(size, kernel, stride):
    """SAME padding as XLA and TensorFlow choose it: (low, high) for one axis, a tuple of them for sequences."""
    if np.ndim(size):
        return tuple(same_padding(*axis) for axis in zip(size, kernel, stride, strict=True))
    output = -(-size // stride)
    total = max((output - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _output_size(in_shape, kernel_shape, strides, padding):
    """The spatial shape (H', W') of a convolution's output."""
    return tuple((in_shape[i] + sum(padding[i]) - kernel_shape[i]) // strides[i] + 1 for i in range(2))


def _im2col(x, kernel_shape, strides, padding):
    """The patches [B, H', W', kh*kw*I] under each output position, in the entry order of a kernel's matrix."""
    kh, kw = kernel_shape[:2]
    (sh, sw), (oh, ow) = strides, _output_size(x.shape[1:], kernel_shape, strides, padding)
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    taps = [
        padded[:, i : i + sh * (oh - 1) + 1 : sh, j : j + sw * (ow - 1) + 1 : sw] for i in range(kh) for j in range(kw)
    ]
    return np.concatenate(taps, axis=-1)


def conv(x, w, strides, padding):
    """NHWC convolution (cross-correlation) with an HWIO kernel and explicit padding ((t, b), (l, r))."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    return _im2col(x, w.shape, strides, padding) @ w.reshape(-1, w.shape[-1])


def conv_dense_matrix(w, in_shape, strides, padding):
    """The matrix [H*W*I, H'*W'*O] that equals the convolution on flattened activations; in_shape is (H, W, I).

    Filled tap by tap, so that it does not depend on the im2col path.
    """
    w = np.asarray(w, np.float64)
    (kh, kw, inputs, outputs), (height, width) = w.shape, in_shape[:2]
    oh, ow = _output_size(in_shape, w.shape, strides, padding)
    matrix = np.zeros((height, width, inputs, oh, ow, outputs))
    for p, q, i, j in np.ndindex(oh, ow, kh, kw):
        row, column = p * strides[0] + i - padding[0][0], q * strides[1] + j - padding[1][0]
        if 0 <= row < height and 0 <= column < width:
            matrix[row, column, :, p, q, :] = w[i, j]
    return matrix.reshape(height * width * inputs, oh * ow * outputs)


def conv_input_gradient(b, w, in_shape, strides, padding):
    """The cotangent [B, H, W, I] of a convolution's input, given the cotangent b of its output."""
    b = np.asarray(b, np.float64)
    matrix = conv_dense_matrix(w, in_shape, strides, padding)
    return (b.reshape(len(b), -1) @ matrix.T).reshape(len(b), *in_shape)


def conv_weight_gradient(x, b, kernel_shape, strides, padding):
    """The cotangent [kh, kw, I, O] of a convolution's kernel, given its input x and the cotangent b of its output."""
    x, b = np.asarray(x, np.float64), np.asarray(b, np.float64)
    patches = _im2col(x, kernel_shape, strides, padding)
    return (patches.reshape(-1, patches.shape[-1]).T @ b.reshape(-1, b.shape[-1])).reshape(kernel_shape)


@dataclass
class Unit:
    """Forward and backward values of one unit [activation, linear map].

    hp, h, dh: [B, I] or [B, H, W, I]. W, R, S: [I, O] or [kh, kw, I, O]. R_L: [C, I] or [C, H, W, I].
    hp_next, b_next: [B, O] or [B, H', W', O]. b_L: [B, C]. strides and padding are None for a dense unit.
    """

    hp: np.ndarray
    h: np.ndarray
    dh: np.ndarray
    W: np.ndarray
    R: np.ndarray
    S: np.ndarray
    R_L: np.ndarray
    hp_next: np.ndarray
    b_next: np.ndarray
    b_L: np.ndarray  # noqa: N815 (the paper's name)
    strides: tuple[int, int] | None = None
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None

    def linear(self, kernel):
        """The matrix that maps flattened h to flattened hp_next when the weight's matrix form is `kernel`."""
        if self.strides is None:
            return kernel
        return conv_dense_matrix(kernel.reshape(np.shape(self.W)), np.shape(self.hp)[1:], self.strides, self.padding)

    def operand(self, name):
        """An operand in its matrix form, float64."""
        if name == "sgn_W":
            return np.sign(self.operand("W"))
        if name == "gh":
            return self.operand("b_next") @ self.linear(self.operand("W")).T
        if name == "fah":
            return self.operand("b_next") @ self.linear(self.operand("R")).T
        if name == "dfah":
            return self.operand("b_L") @ self.operand("R_L")
        if name in ("g", "fa", "dfa"):
            return self.operand(name + "h") * self.operand("dh")
        value = np.asarray(getattr(self, name), np.float64)
        return value.reshape(-1, value.shape[-1]) if name in ("W", "R", "S") else value.reshape(len(value), -1)


def _divide(x, y):
    """x / y, and 0 where y is 0."""
    return x * y / (y * y + EPSILON**2)


def _vector_norm(order, axis):
    """A function giving the vector norm of that order over an axis (None: over all entries), kept broadcastable."""
    if order == "2":
        return lambda x: np.sqrt(np.sum(x * x, axis=axis, keepdims=True))
    if order == "0":
        return lambda x: np.sum(x != 0, axis=axis, keepdims=True).astype(np.float64)
    reduce = {"1": np.sum, "ninf": np.min, "inf": np.max}[order]
    return lambda x: reduce(np.abs(x), axis=axis, keepdims=True)


def _unit(norm):
    """The function x / norm(x)."""
    return lambda x: x / (norm(x) + EPSILON)


UNARIES: dict[str, Callable] = {
    "inv": lambda x: _divide(np.ones_like(x), x),
    "abs": np.abs,
    "step": lambda x: (x > 0).astype(np.float64),
    "relu": lambda x: np.maximum(x, 0),
    "sgn": np.sign,
    "sqrt": lambda x: np.sqrt(np.abs(x)),
    "ssqrt": lambda x: np.sign(x) * np.sqrt(np.abs(x)),
    "sq": lambda x: x * x,
    "ssq": lambda x: np.sign(x) * x * x,
    "cube": lambda x: x * x * x,
    "unit_fro": _unit(lambda x: np.sqrt(np.sum(x * x))),
    "unit_mat1": _unit(lambda x: np.max(np.sum(np.abs(x), axis=0))),
    "unit_mat_inf": _unit(lambda x: np.max(np.sum(np.abs(x), axis=1))),
    "unit_mat_ninf": _unit(lambda x: np.min(np.sum(np.abs(x), axis=1))),
}
for _name, _axis in (("elem", None), ("col", 0), ("row", 1)):
    for _suffix in ("0", "1", "2", "_ninf", "_inf"):
        UNARIES[f"unit_{_name}{_suffix}"] = _unit(_vector_norm(_suffix.strip("_"), _axis))

BINARIES: dict[str | type, Callable] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: _divide,
    "min": np.minimum,
    "max": np.maximum,
}
NOISES = ("add_noise", "mul_noise", "drop")
# Base types: X [B, I], Y [B, O], Z [B, C], their sample averages x, y, z [1, .], K [I, O], F [C, I].
KINDS = dict.fromkeys(("hp", "h", "dh", "gh", "g", "fah", "fa", "dfah", "dfa"), "X") | {
    "W": "K",
    "sgn_W": "K",
    "R": "K",
    "S": "K",
    "R_L": "F",
    "hp_next": "Y",
    "b_next": "Y",
    "b_L": "Z",
}
# (activation, weight, is the weight transposed) -> the product's type; the transposed mirrors follow from it.
PRODUCTS = {("X", "K", False): "Y", ("Y", "K", True): "X", ("Z", "F", False): "X", ("X", "F", True): "Z"}


class _Statistics:
    """Bias-corrected running averages of E[x] and E[x^2] at one position of an equation."""

    def __init__(self, kind, flip):
        self.axis = None if kind in "KF" else int(flip)  # the sample axis; weights have none
        self.reset()

    def reset(self):
        """Forget all steps."""
        self.steps, self.m, self.v = 0, 0.0, 0.0

    def update(self, x):
        """Take in one step and return the corrected (m, v), which already include it."""
        first, second = x, x * x
        if self.axis is not None:
            first, second = (np.mean(value, axis=self.axis, keepdims=True) for value in (first, second))
        self.steps += 1
        self.m = DECAY * self.m + (1 - DECAY) * first
        self.v = DECAY * self.v + (1 - DECAY) * second
        correction = 1 - DECAY**self.steps
        return self.m / correction, self.v / correction


@dataclass
class _Node:
    """A typed expression: base type, transposed or not, and the function that gives its matrix on a unit."""

    kind: str
    flip: bool
    matrix: Callable[[Unit], np.ndarray]

    def __str__(self):
        return self.kind + (".T" if self.flip else "")

    def then(self, function):
        """The node with an element-wise function or a norm applied to its matrix."""
        return _Node(self.kind, self.flip, lambda unit: function(self.matrix(unit)))


def _number(tree):
    """The value of a literal, rounded to float32 as the language pins it, or None if the tree is no literal."""
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        value = _number(tree.operand)
        return None if value is None else -value
    if not isinstance(tree, ast.Constant):
        return None
    if type(tree.value) not in (int, float) or not abs(tree.value) <= 1e6:
        raise ValueError(f"not a number of the language: {tree.value!r}")
    return float(np.float32(tree.value))


class Rule:
    """An equation for b_i^p. Call it with a unit to get the signal; it keeps its running statistics between calls."""

    def __init__(self, text):
        self.text = text
        self._statistics: list[_Statistics] = []
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"not an expression: {text!r}") from error
        self._root = self._build(tree)
        if (self._root.kind, self._root.flip) != ("X", False):
            raise ValueError(f"the result of {text!r} is {self._root}, not X")

    def __call__(self, unit):
        """One step: the evolved signal, float64, with the shape of unit.hp."""
        return self._root.matrix(unit).reshape(np.shape(unit.hp))

    def reset(self):
        """Forget the running statistics."""
        for statistics in self._statistics:
            statistics.reset()

    def _build(self, tree):
        """The typed node of a syntax tree; ValueError where the language has none."""
        match tree:
            case ast.Name(id=name) if name in KINDS:
                return _Node(KINDS[name], False, lambda unit: unit.operand(name))
            case ast.Attribute(value=value, attr="T"):
                inner = self._build(value)
                return _Node(inner.kind, not inner.flip, lambda unit: inner.matrix(unit).T)
            case ast.UnaryOp(op=ast.USub(), operand=operand) if _number(operand) is None:
                return self._build(operand).then(np.negative)
            case ast.BinOp():
                return self._infix(tree)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(name, arguments)
        raise ValueError(f"not in the language: {ast.unparse(tree)!r} in {self.text!r}")

    def _infix(self, tree):
        """n*x, x*n, x+n, n+x, x-n as unaries; x@y; the element-wise binaries."""
        operation, left, right = type(tree.op), _number(tree.left), _number(tree.right)
        if left is not None or right is not None:
            constant, other = (left, tree.right) if right is None else (right, tree.left)
            if operation is ast.Mult:
                return self._build(other).then(lambda x: constant * x)
            if operation is ast.Add:
                return self._build(other).then(lambda x: x + constant)
            if operation is ast.Sub and right is not None:
                return self._build(other).then(lambda x: x - constant)
        elif operation is ast.MatMult:
            return self._product(self._build(tree.left), self._build(tree.right))
        elif operation in BINARIES:
            return self._elementwise(BINARIES[operation], self._build(tree.left), self._build(tree.right))
        raise ValueError(f"not in the language: {ast.unparse(tree)!r} in {self.text!r}")

    def _call(self, name, arguments):
        """A named function."""
        if name in NOISES:
            raise NotImplementedError(f"the oracle has no {name}")
        if name in ("mean", "std", "bn") and len(arguments) == 1 and isinstance(arguments[0], ast.Name):
            return self._running(name, self._build(arguments[0]))
        if name == "whiten" and len(arguments) == 1:
            return self._running(name, self._build(arguments[0]))
        if name in UNARIES and len(arguments) == 1:
            return self._build(arguments[0]).then(UNARIES[name])
        if name == "clip" and len(arguments) == 2:
            limit = _number(arguments[1])
            if limit is not None and limit > 0:
                return self._build(arguments[0]).then(lambda x: np.clip(x, -limit, limit))
        if name in ("min", "max", "left") and len(arguments) == 2:
            first, second = (self._build(argument) for argument in arguments)
            return first if name == "left" else self._elementwise(BINARIES[name], first, second)
        raise ValueError(f"not in the language: a call of {name} with {len(arguments)} arguments in {self.text!r}")

    def _running(self, name, inner):
        """mean, std, bn or whiten of a node, with statistics of its own."""
        statistics = _Statistics(inner.kind, inner.flip)
        self._statistics.append(statistics)

        def matrix(unit):
            x = inner.matrix(unit)
            m, v = statistics.update(x)
            std = np.sqrt(np.maximum(v - m * m, 0))
            if name in ("mean", "std"):
                return m if name == "mean" else std
            return (x - m) / (std + EPSILON if name == "bn" else np.sqrt(v + EPSILON))

        averaged = name in ("mean", "std") and inner.kind in "XYZ"
        return _Node(inner.kind.lower() if averaged else inner.kind, inner.flip, matrix)

    def _elementwise(self, function, first, second):
        """A binary function of two like matrices; a sample average broadcasts against its own activations."""
        if first.kind.upper() != second.kind.upper() or first.flip != second.flip:
            raise ValueError(f"{first} and {second} do not match in {self.text!r}")
        kind = min(first.kind, second.kind)  # capitals sort first: X with x is X
        return _Node(kind, first.flip, lambda unit: function(first.matrix(unit), second.matrix(unit)))

    def _product(self, first, second):
        """A matrix product of activations and a weight; a kernel acts as the unit's linear map."""
        weight_last = second.kind in "KF"
        rows, weight = (first, second) if weight_last else (second, first)
        flip = not weight_last  # the mirror: (rows @ weight).T == weight.T @ rows.T
        kind = PRODUCTS.get((rows.kind.upper(), weight.kind, weight.flip != flip))
        if kind is None or rows.flip != flip:
            raise ValueError(f"no product {first} @ {second} in {self.text!r}")

        def operator(unit):
            matrix = weight.matrix(unit)
            if weight.kind == "F":
                return matrix
            return unit.linear(matrix.T).T if weight.flip else unit.linear(matrix)

        def matrix(unit):
            if weight_last:
                return rows.matrix(unit) @ operator(unit)
            return operator(unit) @ rows.matrix(unit)

        return _Node(kind.lower() if rows.kind.islower() else kind, flip, matrix)


ACTIVATIONS: dict[str, tuple[Callable, Callable]] = {
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(np.float64)),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "identity": (lambda x: x, np.ones_like),
}


def mlp_gradients(params, x, labels, rules, feedback, activation="relu"):
    """Parameter updates of an MLP whose hidden signals come from equations; returns (list of (dW, db), loss).

    params: list of (W, b). The first Dense is a plain layer, every later one closes a unit [activation, Dense] and
    the last gives the logits. rules: one text, or one Rule (or text) for each unit, from the bottom up; Rule objects
    keep their statistics between calls. feedback: dicts with R, S and R_L, aligned with params[1:]. The loss is the
    mean softmax cross-entropy of integer labels.
    """
    params = [tuple(np.asarray(value, np.float64) for value in layer) for layer in params]
    rules = [rules] * (len(params) - 1) if isinstance(rules, str) else rules
    if not isinstance(rules, Sequence) or not len(rules) == len(feedback) == len(params) - 1:
        raise ValueError("one rule and one feedback for each layer after the first")
    rules = [Rule(rule) if isinstance(rule, str) else rule for rule in rules]
    function, derivative = ACTIVATIONS[activation]

    x = np.asarray(x, np.float64)
    inputs, outputs = [x], [x @ params[0][0] + params[0][1]]  # of each Dense
    for w, b in params[1:]:
        inputs.append(function(outputs[-1]))
        outputs.append(inputs[-1] @ w + b)

    shifted = outputs[-1] - outputs[-1].max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
    one_hot = np.eye(shifted.shape[1])[np.asarray(labels)]
    loss = -np.mean(np.sum(one_hot * log_probabilities, axis=1))
    b_top = (np.exp(log_probabilities) - one_hot) / len(x)

    gradients, signal = [], b_top
    for i in reversed(range(len(params))):
        gradients.append((inputs[i].T @ signal, signal.sum(axis=0)))
        if i > 0:
            unit = Unit(
                hp=outputs[i - 1],
                h=inputs[i],
                dh=derivative(outputs[i - 1]),
                W=params[i][0],
                hp_next=outputs[i],
                b_next=signal,
                b_L=b_top,
                **feedback[i - 1],
            )
            signal = rules[i - 1](unit)
    return gradients[::-1], loss
