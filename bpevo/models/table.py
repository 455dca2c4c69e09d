"""Networks by name: an open table of families, and what a network must provide to be searched with."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Protocol

import jax.numpy as jnp

from bpevo.models.mlp import MLP
from bpevo.models.own import Own, own
from bpevo.models.wide_resnet import WideResNet
from bpevo.rules import Rule
from bpevo.rules.text import nearest


class Model(Protocol):
    """An extension point: what a network must provide to be trained by a search. A Flax module of `bpevo.layers` does.

    Collections: "params"; if it likes "batch_stats"; and what the layers keep, `layers.OVERWRITE` and `layers.FEEDBACK`.
    Hidden layers below a rule-driven one get its signal; a carrier goes through them and is added to the logits.
    """

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """`init({"params": key, "feedback": key}, x, train=False)`: variables, from images x [B, H, W, C] float32."""

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """`apply(variables, x, train=bool, rngs={"noise": key})`: logits [B, classes], float32; with
        `mutable=["batch_stats"]` the pair of logits and what changed, as in Flax."""


@dataclasses.dataclass(frozen=True)
class Family:
    """Networks whose names begin alike.

    Args:
        form: How a name is written, for messages: `"mlp-HIDDEN-… (mlp-64-64)"`.
        pattern: Regular expression of what follows the family's name and a dash; its groups are the arguments.
        build: `(groups, classes, rule, dtype) -> Model`; raises ValueError if the groups name no network.
    """

    form: str
    pattern: str
    build: Callable[[list[str], int, Rule | str | None, Any], Model]


def _wide_resnet(groups: list[str], classes: int, rule: Rule | str | None, dtype: Any) -> WideResNet:
    depth, width = map(int, groups)
    if depth < 10 or (depth - 4) % 6 or not width:
        raise ValueError(f"no Wide ResNet of depth {depth} and width {width}")
    return WideResNet(depth, width, classes, rule, dtype)


def _mlp(groups: list[str], classes: int, rule: Rule | str | None, dtype: Any) -> MLP:
    return MLP(tuple(int(n) for n in groups[0].split("-")), classes, rule, dtype)


# An extension point: a new family is one entry, `MODELS["cnn"] = Family("cnn-CHANNELS (cnn-8)", r"(\d{1,3})", build)`.
MODELS: dict[str, Family] = {
    "wrn": Family("wrn-DEPTH-WIDTH with depth 6n + 4 (wrn-16-2)", r"(\d{1,3})-(\d{1,3})", _wide_resnet),
    "mlp": Family("mlp-HIDDEN-… (mlp-64-64)", r"([1-9]\d{0,4}(?:-[1-9]\d{0,4})*)", _mlp),
}


def by_name(name: str, classes: int = 10, rule: Rule | str | None = None, dtype: Any = jnp.float32) -> Model:
    """The network that a name spells.

    Args:
        name: A family of MODELS and what its form says: `wrn-DEPTH-WIDTH`, `mlp-HIDDEN-HIDDEN-…`; or `package.module:factory`,
            a function that makes a Linen or NNX module (bpevo.models.own).
        classes: Number of logits.
        rule: Backward equation of its units: a Rule, a text or a name; None is standard backprop.
        dtype: Of the computation; parameters and logits are float32.

    Returns:
        The network.

    Raises:
        ValueError: No network is spelled so, names the forms; or a factory gives none.

    >>> by_name("mlp-64-32", classes=3).hidden
    (64, 32)
    """
    if ":" in name:
        return own(name, classes, rule, dtype)
    start, _, rest = name.partition("-")
    if start in MODELS and (match := re.fullmatch(MODELS[start].pattern, rest)):
        try:
            return MODELS[start].build(list(match.groups()), classes, rule, dtype)
        except ValueError as error:
            raise ValueError(f"no model {name!r}: {error}; write {_forms()}") from error
    near = nearest(start, MODELS)
    hint = f"; the nearest is '{near}-{rest}'" if near and re.fullmatch(MODELS[near].pattern, rest) else ""
    raise ValueError(f"no model {name!r}{hint}: write {_forms()}")


def fingerprint(name: str, classes: int, sample: tuple[int, ...]) -> dict[str, int]:
    """What tells a network of one's own from an edited one, by its parameters and its trace on samples of that shape; else
    nothing.

    Raises ValueError where it cannot be trained on them.
    """
    model = by_name(name, classes)
    return model.fingerprint(sample) if isinstance(model, Own) else {}


def _forms() -> str:
    return ", ".join(family.form for family in MODELS.values()) + " or package.module:factory"
