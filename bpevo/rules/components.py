"""The tables of components: what operands, statistics, unary and binary functions there are.

Parser, printer, LaTeX, types, sampler, both engines and the contract test read these tables and nothing else, whenever
they are asked, so that `bpevo.rules.register` can add to them. Source of the paper's components: arXiv 1808.02822,
section 3.1 and appendix A; `dh` from Table 1. All arithmetic is float32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EPSILON = 1e-8  # of every norm and running deviation; division uses its square
SMALLEST = 2.0**-126  # the smallest normal float32: devices take what is smaller for 0


@dataclasses.dataclass(frozen=True)
class Operand:
    """A value of the unit.

    What it is: computed by a `formula` of other operands; or an array that is drawn once per unit and run; or, for the
    package's own, a value that the layer has.

    Args:
        name: As it is written in an equation.
        latex: In the paper's notation.
        doc: What it is, a few words.
        base: Its type (bpevo.rules.types): X [B, I], Y [B, O], Z [B, C], K [I, O], F [C, I]. A formula implies it.
        formula: An expression of other operands, without noise and statistics, such as `"b_next @ W.T"`.
        draw: `(gaussian, deviation) -> array` for a constant of type K or F: gets N(0, 1) in the constant's shape and the
            standard deviation of the initial law of W; returns the constant, float32 in that shape.
        paper: Whether it belongs to the paper's search space.
    """

    name: str
    latex: str
    doc: str
    base: str = ""
    formula: str = ""
    draw: Callable[[jax.Array, float], jax.Array] | None = None
    paper: bool = False


@dataclasses.dataclass(frozen=True)
class Statistic:
    """What can be taken of an operand: a running average of it, or the operand normalised by its running moments.

    With m and var, the running mean and variance over samples (bpevo.rules.statistics), exactly one of these says what:

    Args:
        name: Written as a function of an operand, `name(g)`.
        latex: With {x} for the operand; braces of LaTeX are doubled.
        doc: What it is, a few words.
        average: `(m, var) -> array` of their shape; the result is this average, a [1, ·] row where the operand has samples.
        divisor: `(m, var) -> array` of their shape; the result is (x - m) / divisor, of the operand's type.
        paper: Whether it belongs to the paper's search space.
    """

    name: str
    latex: str
    doc: str
    average: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    divisor: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    paper: bool = False


class Affine(NamedTuple):
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
    """A unary function; exactly one of fn, affine, norm, statistic and structure says what it computes.

    Args:
        name: As it is written in an equation.
        spelling: The text form, with {x} for the argument and {c} for a constant: `"clip({x}, {c})"`.
        latex: With {x} and {c}; braces of LaTeX are doubled.
        doc: What it is, a few words.
        fn: `(x, c) -> array`, element by element; `(x, c, uniform) -> array` if `noisy`.
        affine: `c -> Affine`, cheaper to interpret than `fn`.
        constants: The search's choices of c; a text may use any legal one.
        legal: Smallest and largest legal c.
        noisy: `fn` takes U[0, 1) of the argument's shape, fresh each step.
        norm: (order, axis), to divide by that norm: order "0" "1" "2" "ninf" "inf"; axis "elem" "col" "row" "mat".
        statistic: A Statistic with a divisor, to normalise by running moments of the argument.
        structure: "transpose"; the package's own.
        paper: Whether it belongs to the paper's search space.
    """

    name: str
    spelling: str
    latex: str
    doc: str
    fn: Callable[..., jax.Array] | None = None
    affine: Callable[[Any], Affine] | None = None
    constants: tuple[float, ...] = ()
    legal: tuple[float, float] = (-1e6, 1e6)
    noisy: bool = False
    norm: tuple[str, str] | None = None
    statistic: Statistic | None = None
    structure: str = ""
    paper: bool = False

    @property
    def infix(self) -> bool:
        return self.name in ("neg", "scale", "shift")

    @property
    def takes_constant(self) -> bool:
        return "{c}" in self.spelling

    def rounded(self, constant: float) -> float:
        """The constant in float32. Raises ValueError if it is not legal."""
        low, high = self.legal
        with np.errstate(over="ignore"):  # beyond float32: too large anyway
            c = float(np.float32(constant)) + 0.0
        if not low <= c <= high:  # nor is nan
            raise ValueError(f"the constant of {self.name} must lie in [{low:.8g}, {high:.8g}]")
        if constant and abs(c) < SMALLEST:
            raise ValueError(
                f"the constant of {self.name} is too small, {constant:g}: devices take what is below {SMALLEST:.8g} for 0"
            )
        return c


@dataclasses.dataclass(frozen=True)
class Binary:
    """A binary function.

    Args:
        name: As it is written in an equation.
        spelling: The text form, with {x} and {y} for the arguments: `"min({x}, {y})"`.
        latex: With {x} and {y}; braces of LaTeX are doubled.
        doc: What it is, a few words.
        fn: `(x, y) -> array`, element by element.
        structure: "product" or "left" instead of `fn`; the package's own.
        commutative: Whether x and y may change places; only finds duplicates.
        paper: Whether it belongs to the paper's search space.
    """

    name: str
    spelling: str
    latex: str
    doc: str
    fn: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    structure: str = ""
    commutative: bool = False
    paper: bool = False

    @property
    def infix(self) -> bool:
        return "(" not in self.spelling

    @property
    def symbol(self) -> str:
        """`+` of `x + y`, or the name of what is written as a call."""
        return self.spelling.split()[1] if self.infix else self.name


Component = Operand | Statistic | Unary | Binary


def _paper(*components):
    """A table of the paper's components by name."""
    return {c.name: dataclasses.replace(c, paper=True) for c in components}


def _normal(uniform: jax.Array) -> jax.Array:
    """N(0, 1) by the inverse distribution function, from U[0, 1) of 23 bits."""
    return jnp.sqrt(2.0) * jax.lax.erf_inv(jnp.clip(2 * uniform - 1, -1 + 2**-23, 1 - 2**-23))


def _divide(x: jax.Array, y: jax.Array) -> jax.Array:
    return x * y / (y * y + EPSILON * EPSILON)


_DH = r"\frac{\partial h_i}{\partial h_i^p}"
_FAH, _DFAH = r"\left(b_{i+1}^p \cdot R_i\right)", r"\left(b_L^p \cdot R_{Li}\right)"

# Of W, R, S and R_L, whatever else is drawn: one generator makes R, S and R_L.
OPERANDS: dict[str, Operand] = _paper(
    Operand("W", "W_i", "the layer's weight", "K"),
    Operand("sgn_W", r"\operatorname{sgn}(W_i)", "sign of the weight, unscaled", "K", "sgn(W)"),
    Operand(
        "R",
        "R_i",
        "Gaussian random matrix with W's initial law, fixed per run",
        "K",
        draw=lambda gaussian, deviation: deviation * gaussian,
    ),
    Operand(
        "S",
        "S_i",
        "random signs times the deviation of W's initial law, fixed per run",
        "K",
        draw=lambda gaussian, deviation: jnp.where(gaussian < 0, -deviation, deviation),
    ),
    Operand(
        "R_L",
        "R_{Li}",
        "Gaussian random map from b_L to the signal, variance 1/C, fixed per run",
        "F",
        draw=lambda gaussian, _: gaussian.shape[0] ** -0.5 * gaussian,
    ),
    Operand("hp", "h_i^p", "the activation's input", "X"),
    Operand("h", "h_i", "the activation's output", "X"),
    Operand("hp_next", "h_{i+1}^p", "the linear map's output", "Y"),
    Operand("b_L", "b_L^p", "the loss gradient at the logits", "Z"),
    Operand("b_next", "b_{i+1}^p", "the evolved signal from above", "Y"),
    Operand(
        "gh",
        r"b_{i+1}^p \frac{\partial h_{i+1}^p}{\partial h_i}",
        "backprop before the derivative",
        "X",
        "b_next @ W.T",
    ),
    Operand("g", "g_i^p", "backprop: gh * dh", "X", "gh * dh"),
    Operand("fah", _FAH, "feedback alignment before the derivative", "X", "b_next @ R.T"),
    Operand("fa", rf"{_FAH} \odot {_DH}", "feedback alignment: fah * dh", "X", "fah * dh"),
    Operand("dfah", _DFAH, "direct feedback alignment before the derivative", "X", "b_L @ R_L"),
    Operand("dfa", rf"{_DFAH} \odot {_DH}", "direct feedback alignment: dfah * dh", "X", "dfah * dh"),
    Operand("dh", _DH, "the activation's derivative", "X"),
)

STATISTICS: dict[str, Statistic] = _paper(
    Statistic("mean", r"\hat m\left({x}\right)", "its running mean over samples", average=lambda m, var: m),
    Statistic("std", r"\hat s\left({x}\right)", "its running standard deviation", average=lambda m, var: jnp.sqrt(var)),
    Statistic(
        "bn",
        r"\operatorname{{bn}}\left({x}\right)",
        "(x - mean) / std, running",
        divisor=lambda m, var: jnp.sqrt(var) + EPSILON,
    ),
)

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


UNARIES: dict[str, Unary] = _paper(
    Unary("transpose", "{x}.T", r"{x}^\top", "transpose", structure="transpose"),
    Unary("inv", "inv({x})", r"\frac{{1}}{{{x}}}", "1/x, 0 at 0", lambda x, c: _divide(jnp.ones_like(x), x)),
    Unary("abs", "abs({x})", r"\left|{x}\right|", "|x|", affine=lambda c: Affine(absolute=True)),
    Unary("neg", "-{x}", r"-{x}", "-x", affine=lambda c: Affine(scale=-1.0)),
    Unary("step", "step({x})", r"\mathbb{{1}}_{{{x} > 0}}", "1 where x > 0", lambda x, c: (x > 0).astype(x.dtype)),
    Unary("relu", "relu({x})", r"\left({x}\right)^+", "max(x, 0)", affine=lambda c: Affine(low=0.0)),
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
    Unary("scale", "{c}*{x}", r"{c} \cdot {x}", "a x", affine=lambda c: Affine(scale=c), constants=(0.5, 2.0)),
    Unary(
        "shift",
        "{x} + {c}",
        r"{x} + {c}",
        "x + b",
        affine=lambda c: Affine(shift=c),
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
        affine=lambda c: Affine(low=-c, high=c),
        constants=(0.01, 0.1, 0.5, 1.0),
        legal=(SMALLEST, 1e6),
    ),
    Unary(
        "whiten",
        "whiten({x})",
        r"\frac{{{x} - \hat m\left({x}\right)}}{{\sqrt{{\hat s\left(\left({x}\right)^2\right)}}}}",
        "(x - mean) / sqrt(mean of squares), running",
        statistic=Statistic("whiten", "", "", divisor=lambda m, var: jnp.sqrt(var + m * m + EPSILON)),
    ),
    *(_norm(axis, order) for axis in _AXES for order in _ORDERS),
    _norm("elem", "fro"),
    *(_norm("mat", order) for order in ("1", "ninf", "inf")),
)

BINARIES: dict[str, Binary] = _paper(
    Binary("add", "{x} + {y}", "{x} + {y}", "sum", lambda x, y: x + y, commutative=True),
    Binary("sub", "{x} - {y}", "{x} - {y}", "difference", lambda x, y: x - y),
    Binary("mul", "{x} * {y}", r"{x} \odot {y}", "element-wise product", lambda x, y: x * y, commutative=True),
    Binary("div", "{x} / {y}", r"\frac{{{x}}}{{{y}}}", "element-wise quotient, 0 where y = 0", _divide),
    Binary("matmul", "{x} @ {y}", r"{x} \cdot {y}", "matrix product", structure="product"),
    Binary("left", "left({x}, {y})", r"\operatorname{{left}}\left({x}, {y}\right)", "keep x", structure="left"),
    Binary("min", "min({x}, {y})", r"\min\left({x}, {y}\right)", "smaller", jnp.minimum, commutative=True),
    Binary("max", "max({x}, {y})", r"\max\left({x}, {y}\right)", "larger", jnp.maximum, commutative=True),
)

TABLES: dict[type, dict[str, Any]] = {Operand: OPERANDS, Statistic: STATISTICS, Unary: UNARIES, Binary: BINARIES}
_EXTENSIONS: list[Component] = []  # what was registered, in order


def extensions() -> tuple[Component, ...]:
    """What is registered beyond the paper's components, in order: with it indices into the tables have a meaning."""
    return tuple(_EXTENSIONS)


def add(component: Component) -> None:
    """Appends a component to its table. Indices of the others stay."""
    TABLES[type(component)][component.name] = component
    _EXTENSIONS.append(component)


def remove(component: Component) -> None:
    """Takes the component away that was added last. Raises ValueError if it is another."""
    if not _EXTENSIONS or _EXTENSIONS[-1] is not component:
        raise ValueError(f"{component.name} was not registered last: undo registrations in reverse order")
    del TABLES[type(component)][_EXTENSIONS.pop().name]
