"""Registering components of one's own: afterwards everything that reads the tables knows them."""

import contextlib
import dataclasses
import keyword

import jax
import jax.numpy as jnp
import numpy as np

from bpevo.rules import components
from bpevo.rules.components import BINARIES, OPERANDS, STATISTICS, UNARIES, Binary, Component, Operand, Statistic, Unary
from bpevo.rules.expression import OperandNode, UnaryNode
from bpevo.rules.named import NAMED
from bpevo.rules.text import read
from bpevo.rules.types import WEIGHTS

_RESERVED = ("identity", "all")  # the genome's name for no function; the search space's for every component


def register(*new: Component) -> contextlib.ExitStack:
    """Adds operands, statistics, unary and binary functions to the language.

    They are parsed, printed, typed, trained and searched as the package's own; a search space holds them if it is asked
    to (`SearchSpace(unaries=["all"])`). Programs that were assembled before are refused afterwards: assemble again.

    Args:
        *new: Components with names of their own. An operand has a `formula`, or a `base` and a `draw`.

    Returns:
        A context manager that forgets them at its end; without `with` they stay.

    Raises:
        ValueError: What is wrong with a component; then none is registered.

    >>> from bpevo.rules import compile, Unary
    >>> softsign = Unary("softsign", "softsign({x})", r"\\\\operatorname{{softsign}}\\\\left({x}\\\\right)", "x / (1 + |x|)",
    ...                  fn=lambda x, c: x / (1 + jnp.abs(x)))
    >>> with register(softsign):
    ...     print(compile("softsign(g) * dh"))
    softsign(g) * dh
    """
    with contextlib.ExitStack() as stack:
        for component in new:
            checked = _checked(component)
            components.add(checked)
            stack.callback(components.remove, checked)
        return stack.pop_all()


def _checked(component: Component) -> Component:
    """The component as it enters its table, or ValueError."""
    name = component.name
    what = f"the {type(component).__name__.lower()} {name!r}"
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
        raise ValueError(f"{what} cannot be written in an equation: a name is letters, digits and _")
    taken = (*OPERANDS, *STATISTICS, *UNARIES, *BINARIES, *NAMED, *_RESERVED)
    if name in taken:
        raise ValueError(f"{what} needs another name: {name!r} is taken")
    match component:
        case Operand():
            return _operand(component, what)
        case Statistic():
            _exactly_one(component, what, ("average", "divisor"))
            _latex(component, what, x="x")
            _elementwise(component.average or component.divisor, what, 2)
        case Unary():
            _unary(component, what)
        case Binary():
            _spelling(component, what, (f"{name}({{x}}, {{y}})",))
            _latex(component, what, x="x", y="y")
            if component.fn is None or component.structure:
                raise ValueError(f"{what} needs fn=(x, y) -> array")
            _elementwise(component.fn, what, 2)
    return component


def _operand(operand: Operand, what: str) -> Operand:
    if bool(operand.formula) == (operand.draw is not None):
        raise ValueError(f"{what} needs a formula of other operands, or a draw of a constant array")
    if operand.draw:
        if operand.base not in WEIGHTS:
            raise ValueError(f"{what} is a constant: its base is K [I, O] or F [C, I], not {operand.base!r}")
        draw = operand.draw
        for shape in ((2, 3), (2, 2, 2, 3)):
            _expect(lambda x: draw(x, 0.5), [jax.ShapeDtypeStruct(shape, jnp.float32)], what, "draw")
        return operand
    try:
        node = read(operand.formula)
        kind = node.type
    except ValueError as error:
        raise ValueError(f"the formula of {what} is no feasible expression: {error}") from None
    for n in node.walk():
        noisy = isinstance(n, UnaryNode) and (UNARIES[n.name].noisy or UNARIES[n.name].statistic)
        if noisy or (isinstance(n, OperandNode) and n.statistic):
            raise ValueError(f"the formula of {what} holds {n}: it may neither draw noise nor keep statistics")
    if kind.transposed:
        raise ValueError(f"the formula of {what} is transposed, {kind}: add .T")
    if operand.base not in ("", kind.base):
        raise ValueError(f"the formula of {what} has the type {kind.base}, not {operand.base}")
    return dataclasses.replace(operand, base=kind.base)


def _unary(unary: Unary, what: str) -> None:
    name = unary.name
    _exactly_one(unary, what, ("fn", "affine", "norm", "statistic"))
    _spelling(unary, what, (f"{name}({{x}})", f"{name}({{x}}, {{c}})"))
    _latex(unary, what, x="x", c="1.0")
    if unary.takes_constant != bool(unary.constants):
        raise ValueError(f"{what} needs constants if and only if its spelling has {{c}}, not {unary.constants}")
    for c in unary.constants:
        unary.rounded(c)
    if unary.noisy and not unary.fn:
        raise ValueError(f"{what} is noisy: it needs fn=(x, c, uniform) -> array")
    if unary.norm and not (
        unary.norm[0] in ["0", "1", "2", "ninf", "inf"] and unary.norm[1] in ["elem", "col", "row", "mat"]
    ):
        raise ValueError(f"{what} has no such norm: {unary.norm}")
    if unary.statistic and not unary.statistic.divisor:
        raise ValueError(f"{what} needs a statistic with a divisor")
    if unary.affine and len(tuple(unary.affine(0.5))) != len(components.Affine._fields):
        raise ValueError(f"{what}: affine(c) must return an Affine")
    if unary.fn:
        fn, c = unary.fn, jnp.float32(unary.constants[0] if unary.constants else 0.0)
        if unary.noisy:
            _elementwise(lambda x, uniform: fn(x, c, uniform), what, 2)
        else:
            _elementwise(lambda x: fn(x, c), what, 1)
    if unary.statistic:
        _elementwise(unary.statistic.divisor, what, 2)


def _exactly_one(component: Component, what: str, fields: tuple[str, ...]) -> None:
    if sum(bool(getattr(component, f)) for f in fields) != 1 or getattr(component, "structure", None):
        raise ValueError(f"{what} needs exactly one of {', '.join(fields)}")


def _spelling(component: Unary | Binary, what: str, forms: tuple[str, ...]) -> None:
    if component.spelling not in forms:
        raise ValueError(f"{what} must be spelled {' or '.join(map(repr, forms))}, not {component.spelling!r}")


def _latex(component: Component, what: str, **arguments: str) -> None:
    try:
        formatted = component.latex.format(**arguments)
    except (KeyError, IndexError, ValueError):
        formatted = ""
    if "x" not in formatted:
        raise ValueError(f"the latex of {what} must hold {{x}}, and double every other brace: {component.latex!r}")


def _expect(call, arguments: list[jax.ShapeDtypeStruct], what: str, field: str) -> None:
    """Raises ValueError unless `call` gives float32 of its argument's shape."""
    try:
        result = jax.eval_shape(call, *arguments)
        fits = (result.shape, result.dtype) == (arguments[0].shape, arguments[0].dtype)
    except Exception as error:  # a function of the user's
        raise ValueError(f"{what} cannot be computed: {field} raises {type(error).__name__}: {error}") from error
    if not fits:
        raise ValueError(
            f"{what} must keep the shape of its argument: {field} makes {result.dtype}{list(result.shape)} "
            f"of float32{list(arguments[0].shape)}"
        )


def _elementwise(fn, what: str, arguments: int) -> None:
    """Raises ValueError unless `fn` maps arrays to their shape, element by element."""
    for shape in ((6,), (2, 3)):
        _expect(fn, [jax.ShapeDtypeStruct(shape, jnp.float32)] * arguments, what, "the function")
    x = [np.linspace(lo, 1.0, 6, dtype=np.float32) for lo in (-1.5, 0.0)[:arguments]]
    whole, single = fn(*x), np.concatenate([fn(*(v[i : i + 1] for v in x)) for i in range(6)])
    if not np.allclose(whole, single, 1e-5, 1e-6, equal_nan=True):
        raise ValueError(f"{what} must act element by element: here an element of the result depends on others")
