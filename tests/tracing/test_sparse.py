"""Graph convolutions by a sparse matrix: their channels come and go, and the matrix stays what it is."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn


class Convolution(nn.Module):
    """Two graph convolutions; the normalised adjacency of six nodes is a sparse buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8, bias=False), nn.Linear(8, 3)
        self.register_buffer("adjacency", (torch.rand(6, 6) < 0.5).float().to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(torch.sparse.mm(self.adjacency, self.first(x)))
        return torch.sparse.mm(self.adjacency, self.second(h))


def test_it_trains_resizes_and_leaves_as_a_plain_model(tmp_path) -> None:
    torch.manual_seed(0)
    model, x, y = Convolution(), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    plastic = npn.attach(model, x)
    assert plastic.sizes() == {"first": 8}
    optimizer = torch.optim.Adam(plastic.weights(), lr=1e-2)
    plastic.track(optimizer)
    plastic.close("first", [1, 4, 6])
    for _ in range(3):
        optimizer.zero_grad()
        plastic.backward(lambda: F.cross_entropy(model(x), y))
        optimizer.step()
    before = model(x)
    assert plastic.compact().changes == {"first": (8, 5)}
    plastic.grow({"first": 2})
    torch.testing.assert_close(model(x), before)
    small = plastic.export()
    assert small.adjacency.is_sparse and small.second.in_features == 7
    torch.testing.assert_close(small(x), before)
    plastic.untrack(optimizer)
    npn.save(tmp_path / "plastic.npn", plastic)
    npn.save(tmp_path / "small.npn", small)
    resumed, plain = npn.attach(Convolution(), x), Convolution()
    npn.load(tmp_path / "plastic.npn", resumed)
    npn.load(tmp_path / "small.npn", plain)
    for other in (resumed.model, plain):
        torch.testing.assert_close(other(x), before)


def test_products_with_sparse_matrices_do_not_count() -> None:
    model, x = Convolution(), torch.randn(6, 4)
    assert npn.attach(model, x).full_cost("macs") == npn.count_macs(model, x) == 6 * (4 * 8 + 8 * 3)
