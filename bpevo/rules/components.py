"""The table of components: the single place that defines operands, unary and binary functions.

Parser, printer, LaTeX, sampler, interpreter, documentation and the contract test all read it; adding a unary
function is one entry of `UNARIES`. Source: arXiv 1808.02822, section 3.1 and appendix A; `dh` from Table 1.
All arithmetic is float32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

EPSILON = 1e-8  # of every norm and running deviation; division uses its square


@dataclasses.dataclass(frozen=True)
class Operand:
    """A value of the unit. `base` is its type (bpevo.rules.types); `constant` values never change during a run."""

    name: str
    base: str
    latex: str
    doc: str
    constant: bool = False


class Line(NamedTuple):
    """clip(scale · (|x| if absolute else x) + shift, low, high). Its parameters may be data: many functions, one kernel."""

    absolute: Any = False
    scale: Any = 1.0
    shift: Any = 0.0
    low: Any = -jnp.inf
    high: Any = jnp.inf

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.where(self.absolute, jnp.abs(x), x)
        return jnp.clip(self.scale * x + self.shift, self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Unary:
    """A unary function.

    Exactly one of these says what it computes: `line(c)`; `fn(x, c)` element by element, `fn(x, c, uniform)` if
    `noisy`; `norm` = (order, axis), dividing by that norm; or `structure`, "transpose" or "whiten".
    """

    name: str
    spelling: str  # {x} argument, {c} constant
    latex: str
    doc: str
    fn: Callable[..., jax.Array] | None = None
    line: Callable[[Any], Line] | None = None  # for c, cheaper to interpret than fn
    constants: tuple[float, ...] = ()  # the search's choices; a text may use any legal constant
    legal: tuple[float, float] = (-1e6, 1e6)  # of the constant, inclusive
    noisy: bool = False  # fn takes U[0, 1) of x's shape, fresh each step
    norm: tuple[str, str] | None = None  # order "0" "1" "2" "ninf" "inf"; axis "elem" "col" "row" "mat"
    structure: str | None = None

    @property
    def infix(self) -> bool:
        return self.name in ("neg", "scale", "shift")

    @property
    def takes_constant(self) -> bool:
        return "{c}" in self.spelling


@dataclasses.dataclass(frozen=True)
class Binary:
    """A binary function: `fn(x, y)` element by element, or the structure "product" or "left"."""

    name: str
    spelling: str  # {x}, {y}
    latex: str
    doc: str
    fn: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    structure: str | None = None
    commutative: bool = False

    @property
    def infix(self) -> bool:
        return "(" not in self.spelling


def _normal(uniform: jax.Array) -> jax.Array:
    """N(0, 1) by the inverse distribution function, from U[0, 1) of 23 bits."""
    return jnp.sqrt(2.0) * jax.lax.erf_inv(jnp.clip(2 * uniform - 1, -1 + 2**-23, 1 - 2**-23))


def _divide(x: jax.Array, y: jax.Array) -> jax.Array:
    return x * y / (y * y + EPSILON * EPSILON)


OPERANDS: dict[str, Operand] = {
    o.name: o
    for o in (
        Operand("W", "K", r"W_i", "the layer's weight"),
        Operand("sgn_W", "K", r"\operatorname{sgn}(W_i)", "sign of the weight, unscaled"),
        Operand("R", "K", r"R_i", "Gaussian random matrix with W's initial law, fixed per run", True),
        Operand("S", "K", r"S_i", "random signs times the deviation of W's initial law, fixed per run", True),
        Operand("R_L", "F", r"R_{Li}", "Gaussian random map from b_L to the signal, variance 1/C, fixed per run", True),
        Operand("hp", "X", r"h_i^p", "the activation's input"),
        Operand("h", "X", r"h_i", "the activation's output"),
        Operand("hp_next", "Y", r"h_{i+1}^p", "the linear map's output"),
        Operand("b_L", "Z", r"b_L^p", "the loss gradient at the logits"),
        Operand("b_next", "Y", r"b_{i+1}^p", "the evolved signal from above"),
        Operand("gh", "X", r"b_{i+1}^p \frac{\partial h_{i+1}^p}{\partial h_i}", "backprop before the derivative"),
        Operand("g", "X", r"g_i^p", "backprop: gh * dh"),
        Operand("fah", "X", r"\left(b_{i+1}^p \cdot R_i\right)", "feedback alignment before the derivative"),
        Operand(
            "fa",
            "X",
            r"\left(b_{i+1}^p \cdot R_i\right) \odot \frac{\partial h_i}{\partial h_i^p}",
            "feedback alignment: fah * dh",
        ),
        Operand("dfah", "X", r"\left(b_L^p \cdot R_{Li}\right)", "direct feedback alignment before the derivative"),
        Operand(
            "dfa",
            "X",
            r"\left(b_L^p \cdot R_{Li}\right) \odot \frac{\partial h_i}{\partial h_i^p}",
            "direct feedback alignment: dfah * dh",
        ),
        Operand("dh", "X", r"\frac{\partial h_i}{\partial h_i^p}", "the activation's derivative"),
    )
}

# What can be taken of an operand; "" is the operand itself.
MODIFIERS: dict[str, tuple[str, str]] = {
    "": ("{x}", "the operand"),
    "mean": (r"\hat m\left({x}\right)", "its running mean over samples"),
    "std": (r"\hat s\left({x}\right)", "its running standard deviation"),
    "bn": (r"\operatorname{{bn}}\left({x}\right)", "(x - mean) / std, running"),
}

_AXES = {"elem": "of the flattened matrix", "col": "of each column (feature)", "row": "of each row (sample)"}
_ORDERS = {"0": "0", "1": "1", "2": "2", "ninf": r"-\infty", "inf": r"\infty"}


def _norm(axis: str, order: str) -> Unary:
    name = "unit_fro" if order == "fro" else f"unit_{axis}{'_' * order.endswith('inf')}{order}"
    sub = {"fro": r"\mathrm{{fro}}"}.get(
        order
    ) or rf"\mathrm{{{{{axis}}}}},{_ORDERS[order]}"  # braces doubled for format
    what = f"vector norm of order {order} {_AXES[axis]}" if axis in _AXES else f"matrix norm {order}"
    norm = ("2", "elem") if order == "fro" else (order, axis)
    return Unary(
        name,
        name + "({x})",
        r"\frac{{{x}}}{{\left\|{x}\right\|_{{SUB}}}}".replace("SUB", sub),
        f"x / {what}",
        norm=norm,
    )


UNARIES: dict[str, Unary] = {
    u.name: u
    for u in (
        Unary("transpose", "{x}.T", r"{x}^\top", "transpose", structure="transpose"),
        Unary("inv", "inv({x})", r"\frac{{1}}{{{x}}}", "1/x, 0 at 0", lambda x, c: _divide(jnp.ones_like(x), x)),
        Unary("abs", "abs({x})", r"\left|{x}\right|", "|x|", line=lambda c: Line(absolute=True)),
        Unary("neg", "-{x}", r"-{x}", "-x", line=lambda c: Line(scale=-1.0)),
        Unary("step", "step({x})", r"\mathbb{{1}}_{{{x} > 0}}", "1 where x > 0", lambda x, c: (x > 0).astype(x.dtype)),
        Unary("relu", "relu({x})", r"\left({x}\right)^+", "max(x, 0)", line=lambda c: Line(low=0.0)),
        Unary("sgn", "sgn({x})", r"\operatorname{{sgn}}\left({x}\right)", "sign", lambda x, c: jnp.sign(x)),
        Unary("sqrt", "sqrt({x})", r"\sqrt{{\left|{x}\right|}}", "√|x|", lambda x, c: jnp.sqrt(jnp.abs(x))),
        Unary(
            "ssqrt",
            "ssqrt({x})",
            r"\operatorname{{sgn}}\left({x}\right)\sqrt{{\left|{x}\right|}}",
            "sgn(x) √|x|",
            lambda x, c: jnp.sign(x) * jnp.sqrt(jnp.abs(x)),
        ),
        Unary("sq", "sq({x})", r"\left({x}\right)^2", "x²", lambda x, c: x * x),
        Unary(
            "ssq",
            "ssq({x})",
            r"\operatorname{{sgn}}\left({x}\right)\left({x}\right)^2",
            "sgn(x) x²",
            lambda x, c: x * jnp.abs(x),
        ),
        Unary("cube", "cube({x})", r"\left({x}\right)^3", "x³", lambda x, c: x * x * x),
        Unary("scale", "{c}*{x}", r"{c} \cdot {x}", "a x", line=lambda c: Line(scale=c), constants=(0.5, 2.0)),
        Unary(
            "shift",
            "{x} + {c}",
            r"{x} + {c}",
            "x + b",
            line=lambda c: Line(shift=c),
            constants=(0.01, 0.1, 2.0, -0.01, -0.5, -10.0),
        ),
        Unary(
            "add_noise",
            "add_noise({x}, {c})",
            r"{x} + \mathcal{{N}}\left(0, {c}^2\right)",
            "x + g N(0, 1), fresh each step",
            lambda x, c, uniform: x + c * _normal(uniform),
            constants=(0.01, 0.1, 0.5, 1.0),
            legal=(0.0, 1e6),
            noisy=True,
        ),
        Unary(
            "mul_noise",
            "mul_noise({x}, {c})",
            r"{x} \odot \left(1 + \mathcal{{N}}\left(0, {c}^2\right)\right)",
            "x (1 + g N(0, 1)), fresh each step",
            lambda x, c, uniform: x * (1 + c * _normal(uniform)),
            constants=(0.01, 0.1, 0.5, 1.0),
            legal=(0.0, 1e6),
            noisy=True,
        ),
        Unary(
            "drop",
            "drop({x}, {c})",
            r"\operatorname{{drop}}_{{{c}}}\left({x}\right)",
            "dropout with probability d, scaled by 1/(1-d)",
            lambda x, c, uniform: jnp.where(uniform < c, 0.0, x / (1 - c)),
            constants=(0.01, 0.1, 0.3),
            legal=(0.0, 1 - 2**-24),
            noisy=True,
        ),
        Unary(
            "clip",
            "clip({x}, {c})",
            r"\operatorname{{clip}}_{{{c}}}\left({x}\right)",
            "clip to [-c, c]",
            line=lambda c: Line(low=-c, high=c),
            constants=(0.01, 0.1, 0.5, 1.0),
            legal=(1e-45, 1e6),
        ),
        Unary(
            "whiten",
            "whiten({x})",
            r"\frac{{{x} - \hat m\left({x}\right)}}{{\sqrt{{\hat s\left(\left({x}\right)^2\right)}}}}",
            "(x - mean) / sqrt(mean of squares), running",
            structure="whiten",
        ),
        *(_norm(axis, order) for axis in _AXES for order in _ORDERS),
        _norm("elem", "fro"),
        *(_norm("mat", order) for order in ("1", "ninf", "inf")),
    )
}

BINARIES: dict[str, Binary] = {
    b.name: b
    for b in (
        Binary("add", "{x} + {y}", "{x} + {y}", "sum", lambda x, y: x + y, commutative=True),
        Binary("sub", "{x} - {y}", "{x} - {y}", "difference", lambda x, y: x - y),
        Binary("mul", "{x} * {y}", r"{x} \odot {y}", "element-wise product", lambda x, y: x * y, commutative=True),
        Binary("div", "{x} / {y}", r"\frac{{{x}}}{{{y}}}", "element-wise quotient, 0 where y = 0", _divide),
        Binary("matmul", "{x} @ {y}", r"{x} \cdot {y}", "matrix product", structure="product"),
        Binary("left", "left({x}, {y})", r"\operatorname{{left}}\left({x}, {y}\right)", "keep x", structure="left"),
        Binary("min", "min({x}, {y})", r"\min\left({x}, {y}\right)", "smaller", jnp.minimum, commutative=True),
        Binary("max", "max({x}, {y})", r"\max\left({x}, {y}\right)", "larger", jnp.maximum, commutative=True),
    )
}
