"""Everything else: recurrent, shared, several inputs and outputs, weights that are functions of parameters."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .entry import Entry, randn, tokens


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase], **options: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 5)
        self.rnn = cell(5, 6, 2, batch_first=True, **options)
        self.fc1, self.fc2 = nn.Linear(12 if options.get("bidirectional") else 6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.rnn(torch.tanh(self.embed(x)))[0][:, -1])))


class Siamese(nn.Module):
    """One encoder for two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))
        self.head = nn.Linear(12, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.encoder(a), self.encoder(b)
        return self.head(torch.cat([(a - b).abs(), a * b], 1))


class TwoInputs(nn.Module):
    """An image and a table, a dict of keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table, self.head = nn.Conv2d(1, 4, 3), nn.Linear(6, 5), nn.Linear(9, 7)
        self.out = nn.Linear(7, 2)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        h = torch.cat([F.relu(self.conv(image)).mean((2, 3)), F.relu(self.table(table))], 1)
        return self.out(F.relu(self.head(h)))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(8, 2)
        self.c = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        h = F.relu(self.trunk(x))
        features = F.relu(self.a(h))
        return {"features": features, "scores": [self.b(h), self.c(features)]}


class Autoencoder(nn.Module):
    """Decoder weights are the encoder's, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(10, 7) * 0.4), nn.Parameter(torch.randn(4, 10) * 0.4)
        self.b1, self.b2, self.c1, self.c2 = (nn.Parameter(torch.randn(n)) for n in (10, 4, 10, 7))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(F.linear(x, self.w1, self.b1))
        z = torch.tanh(F.linear(h, self.w2, self.b2))
        h = torch.tanh(F.linear(z, self.w2.t(), self.c1))
        return F.linear(h, self.w1.t(), self.c2)


def frozen_backbone() -> nn.Module:
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
    backbone.requires_grad_(False)
    return nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 3))


class Functional(nn.Module):
    """Weights are bare parameters; products are written as einsum, matmul and F.linear."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(5, 8) * 0.4), nn.Parameter(torch.randn(6, 8) * 0.4)
        self.w3, self.w4 = nn.Parameter(torch.randn(6, 7) * 0.4), nn.Parameter(torch.randn(3, 7) * 0.4)
        self.slope = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        h = F.prelu(x @ self.w1, self.slope)
        h = torch.tanh(h @ self.w2.t())
        return F.linear(torch.tanh(torch.einsum("bi,io->bo", h, self.w3)), self.w4)


class Parametrised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Linear(4, 8))
        self.b = parametrizations.weight_norm(nn.Linear(8, 6))
        self.c = parametrizations.spectral_norm(nn.Linear(6, 6))
        self.d, self.e = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        return self.e(F.relu(self.d(h)))


class Moe(nn.Module):
    """Three experts, mixed by a softmax gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(5, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(3))
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([expert(x) for expert in self.experts], 1)
        return self.out((self.gate(x).softmax(1)[:, :, None] * y).sum(1))


class Lora(nn.Module):
    """A frozen weight plus a low-rank update."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.base, self.head = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.base.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, 8) * 0.3), nn.Parameter(torch.randn(6, 2) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        return self.head(F.relu(F.linear(h, self.base.weight + self.up @ self.down, self.base.bias)))


class Bag(nn.Module):
    """Words: an embedding, the mean over positions, a recommender's product of two towers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc, self.item = nn.Embedding(20, 8, padding_idx=0), nn.Linear(8, 6), nn.Embedding(9, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, i: Tensor) -> Tensor:
        return self.out(F.relu(self.fc(self.words(i).mean(1))) * self.item(i[:, 0] % 9))


MISC = {
    "lstm": Entry(
        lambda: Recurrent(nn.LSTM),
        randn(3, 2, 4),
        {"embed": 5, "rnn": 6, "fc1": 7},
        {"fc2.weight[0]": "it is the model's output", "embed.weight[1]": "it reads an input of fixed size"},
    ),
    "gru": Entry(
        lambda: Recurrent(nn.GRU),
        randn(3, 2, 4),
        {"embed": 5, "rnn": 6, "fc1": 7},
        {"fc2.weight[0]": "it is the model's output", "embed.weight[1]": "it reads an input of fixed size"},
    ),
    "lstm_bidirectional": Entry(
        lambda: Recurrent(nn.LSTM, bidirectional=True),
        randn(3, 2, 4),
        {"embed": 5, "rnn": 6, "fc1": 7},
        {"fc2.weight[0]": "it is the model's output", "embed.weight[1]": "it reads an input of fixed size"},
    ),
    "siamese": Entry(
        Siamese,
        lambda: (torch.randn(4, 5), torch.randn(4, 5)),
        {"encoder.0": 8, "encoder.3": 6},
        {"head.weight[0]": "it is the model's output", "encoder.0.weight[1]": "it reads an input of fixed size"},
    ),
    "two_inputs": Entry(
        TwoInputs,
        lambda: {"image": torch.randn(3, 1, 6, 6), "table": torch.randn(3, 6)},
        {"conv": 4, "table": 5, "head": 7},
        {"out.weight[0]": "it is the model's output", "table.weight[1]": "it reads an input of fixed size"},
    ),
    "two_outputs": Entry(
        TwoOutputs,
        randn(4, 5),
        {"trunk": 8},
        {
            "a.weight[0]": "it is the model's output",
            "b.weight[0]": "it is the model's output",
            "c.weight[0]": "it is the model's output",
            "trunk.weight[1]": "it reads an input of fixed size",
        },
    ),
    "autoencoder_tied": Entry(
        Autoencoder,
        randn(4, 7),
        {"w1": 10, "w2": 4},
        {"w1[1]": "it reads an input of fixed size"},
    ),
    "frozen_backbone": Entry(
        frozen_backbone,
        randn(3, 3, 8, 8),
        {"0.0": 6, "0.3": 8, "3": 10},
        {"5.weight[0]": "it is the model's output", "0.0.weight[1]": "it reads an input of fixed size"},
    ),
    "functional_weights": Entry(
        Functional,
        randn(4, 5),
        {"w1": 8, "w2": 6, "w3": 7},
        {"w4[0]": "it is the model's output", "w1[0]": "it reads an input of fixed size"},
    ),
    "parametrised": Entry(
        Parametrised,
        randn(4, 4),
        {"a.parametrizations.weight": 8, "b.parametrizations.weight": 6, "d": 5},
        {
            "e.weight[0]": "it is the model's output",
            "c.parametrizations.weight.original[0]": "6 channels into one unit, which has to stay: linalg_vector_norm",
            "a.parametrizations.weight.original1[1]": "it reads an input of fixed size",
        },
    ),
    "mixture_of_experts": Entry(
        Moe,
        randn(4, 5),
        {"experts.0.0": 6, "experts.0.2": 4, "experts.1.0": 6, "experts.2.0": 6},
        {
            "gate.weight[0]": "_softmax mixes every unit of the axis",
            "out.weight[0]": "it is the model's output",
            "gate.weight[1]": "it reads an input of fixed size",
            "experts.0.0.weight[1]": "it reads an input of fixed size",
            "experts.1.0.weight[1]": "it reads an input of fixed size",
            "experts.2.0.weight[1]": "it reads an input of fixed size",
        },
    ),
    "lora": Entry(
        Lora,
        randn(4, 5),
        {"stem": 8, "base": 6},
        {
            "head.weight[0]": "it is the model's output",
            "down[0]": "no layer of the model produces it",
            "stem.weight[1]": "it reads an input of fixed size",
        },
    ),
    "embedding": Entry(
        Bag,
        tokens(4, 5),
        {"words": 8, "fc": 6},
        {
            "out.weight[0]": "it is the model's output",
            "words.weight[0]": "rows of the embedding",
            "item.weight[0]": "rows of the embedding",
        },
    ),
}
