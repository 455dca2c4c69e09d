"""Networks of rule-driven layers: Wide ResNet and MLP, also by name (`wrn-16-2`, `mlp-64-64`)."""

import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from bpevo.models.mlp import MLP
from bpevo.models.wide_resnet import WideResNet

__all__ = ["MLP", "WideResNet", "by_name"]


def by_name(name: str, classes: int = 10, rule: Any = None, dtype: Any = jnp.float32) -> nn.Module:
    """The network that `name` spells: wrn-DEPTH-WIDTH or mlp-HIDDEN-HIDDEN-…; raises ValueError."""
    if match := re.fullmatch(r"wrn-(\d{1,3})-(\d{1,3})", name):
        depth, width = map(int, match.groups())
        if depth >= 10 and (depth - 4) % 6 == 0 and width:
            return WideResNet(depth, width, classes, rule, dtype)
    elif re.fullmatch(r"mlp(-[1-9]\d{0,4})+", name):
        return MLP(tuple(int(n) for n in name.split("-")[1:]), classes, rule, dtype)
    raise ValueError(
        f"no model {name!r}: write wrn-DEPTH-WIDTH with depth 6n + 4 (wrn-16-2) or mlp-HIDDEN-… (mlp-64-64)"
    )
