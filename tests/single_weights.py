"""What the tests of gates on single weights share: small models, data, gates apart, a training."""

import torch
import torch.nn.functional as F
from torch import nn

K = 1.5


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


class Net(nn.Module):
    """Units on both axes of a weight, a convolution, flattened channels with gated columns, and a branch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, (1, 2))
        self.mix, self.head = nn.Linear(2, 2, bias=False), nn.Linear(4, 1)

    def forward(self, x):
        h = self.conv(x)[:, :, 0].transpose(1, 2)
        return self.head((h + self.mix(h)).transpose(1, 2).flatten(1))


def data(features=5, classes=3, n=16):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, features, generator=generator), torch.randint(classes, (n,), generator=generator)


def set_pi(plastic, seed=0):
    """Different keep probabilities for all gates; returns them."""
    plastic.k = K
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for logits in plastic.logits():
            logits.copy_(torch.logit(0.2 + 0.7 * torch.rand(logits.shape, generator=generator)) / K)
    return plastic.gates.keep_probability().detach().double()


def optimizers(plastic, momentum=0.9, decay=1e-2, adam=False):
    kind = torch.optim.Adam if adam else torch.optim.SGD
    options = {"weight_decay": decay} if adam else {"weight_decay": decay, "momentum": momentum}
    weights = kind(plastic.weights(), lr=0.05, **options)
    gates = torch.optim.Adam(plastic.logits(), lr=0.05)
    plastic.track(weights, gates)
    return weights, gates


def train(plastic, steps, both, seed=None):
    x, y = data()
    for _ in range(steps):
        for optimizer in both:
            optimizer.zero_grad()
        plastic.backward(lambda: F.cross_entropy(plastic.model(x), y))
        for optimizer in both:
            optimizer.step()
