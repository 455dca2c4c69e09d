"""The same network and step in PyTorch, where it is installed: what users come from."""

import torch
from torch import nn
from torch.nn import functional

from bpevo.bench.engines import Setting, Way


class _Block(nn.Module):
    def __init__(self, before: int, features: int, stride: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(before), nn.BatchNorm2d(features)])
        self.first = nn.Conv2d(before, features, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.shortcut = None if before == features else nn.Conv2d(before, features, 1, stride, bias=False)

    def forward(self, x):
        h = functional.relu(self.norms[0](x))
        y = self.second(functional.relu(self.norms[1](self.first(h))))
        return y + (x if self.shortcut is None else self.shortcut(h))


class _WideResNet(nn.Module):
    def __init__(self, depth: int, width: int, channels: int):
        super().__init__()
        blocks, before = [], 16
        for group, features in enumerate((16 * width, 32 * width, 64 * width)):
            for block in range((depth - 4) // 6):
                blocks.append(_Block(before, features, 2 if group and not block else 1))
                before = features
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.BatchNorm2d(before), nn.Linear(before, 10)

    def forward(self, x):
        return self.head(functional.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))


def way(setting: Setting) -> Way:
    """Backprop, SGD, in channels-last memory, no augmentation; on the GPU if torch sees one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    depth, width = map(int, setting.model.split("-")[1:])
    model = _WideResNet(depth, width, setting.channels).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 1e-6, weight_decay=1e-3)
    x = torch.randn(setting.batch, setting.channels, setting.size, setting.size, device=device)
    x, labels = x.to(memory_format=torch.channels_last), torch.arange(setting.batch, device=device) % 10

    def run():
        for _ in range(setting.steps):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    run()
    return Way(f"PyTorch {torch.__version__}, backprop", run, setting.steps, 0.0, 0)
