"""Networks of rule-driven layers: Wide ResNet and MLP, also by name (`wrn-16-2`, `mlp-64-64`); MODELS takes more.
Any other by `package.module:factory`."""

from bpevo.models.mlp import MLP
from bpevo.models.table import MODELS, Family, Model, by_name, fingerprint
from bpevo.models.wide_resnet import WideResNet

__all__ = ["MLP", "MODELS", "Family", "Model", "WideResNet", "by_name", "fingerprint"]
