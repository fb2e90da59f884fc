"""What a call of `npn.importance` leaves behind, which is nothing; what it refuses; and several processes."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import npn
from npn.errors import ConfigurationError, NonFiniteLossError

from .processes import together
from .test_importance import CASES, cross_entropy

pytestmark = pytest.mark.usefixtures("traces_are_shared")


class Counting(nn.Module):
    """Dropout, BatchNorm, a counter that is no buffer, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
        self.body[4].requires_grad_(False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.body(x + 0 * random.random() + 0 * float(np.random.rand()))


def bits(model: nn.Module, plastic: npn.Plasticity) -> list[Any]:
    tensors = [*model.state_dict().values(), *plastic.logits(), torch.get_rng_state()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    plain = [
        random.getstate(),
        tuple(np.random.get_state()[1]),
        plastic.k,
        [p.requires_grad for p in model.parameters()],
    ]
    return [*(t.detach().clone() for t in tensors), *grads, [m.training for m in model.modules()], *plain]


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "fisher", "random"])
@pytest.mark.parametrize("k", [float("inf"), 7.0])
def test_all_is_as_before_afterwards(criterion: str, k: float) -> None:
    torch.manual_seed(0)
    model = Counting()
    plastic = npn.attach(model, torch.zeros(2, 3))
    plastic.k = k
    data = torch.utils.data.TensorDataset(torch.randn(16, 3), torch.randint(2, (16,)))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    plastic.backward(lambda: cross_entropy(model, data[:]))  # gradients that are there already
    model.body[0].eval()
    before, calls = bits(model, plastic), model.calls

    def loss(model: nn.Module, batch: Any) -> Tensor:
        model.train()
        return cross_entropy(model, batch)

    scores = npn.importance(plastic, criterion, loader, loss)
    after = bits(model, plastic)
    assert model.calls == calls
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(before, after, strict=True))
    again = npn.importance(plastic, criterion, loader, loss)
    assert torch.equal(scores["body.0"], again["body.0"])
    assert scores["body.0"].abs().sum() > 0  # read by a frozen layer alone


def test_all_is_as_before_after_an_error() -> None:
    torch.manual_seed(0)
    model = Counting()
    plastic = npn.attach(model, torch.zeros(2, 3))
    batches = [torch.randn(4, 3)]
    before = bits(model, plastic)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        model(batch)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        npn.importance(plastic, "taylor", batches, loss)
    after = bits(model, plastic)
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(before, after, strict=True))


def test_under_no_grad_and_inference_mode() -> None:
    _, plastic, batches = CASES["conv"].build()
    expected = npn.importance(plastic, "taylor", batches, cross_entropy)["0"]
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(npn.importance(plastic, "taylor", batches, cross_entropy)["0"], expected)
            assert torch.isfinite(npn.importance(plastic, "magnitude", per="macs")["0"]).all()


def test_gradients_that_the_loss_takes_itself_do_not_count() -> None:
    _, plastic, batches = CASES["mlp"].build()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        value = cross_entropy(model, batch)
        torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        return value

    found, expected = (npn.importance(plastic, "taylor", batches, f)["0"] for f in (loss, cross_entropy))
    assert torch.equal(found, expected)


# -- errors


def test_errors() -> None:
    _, plastic, batches = CASES["mlp"].build()
    loss = cross_entropy

    def fails(message: str, *args: Any, **options: Any) -> None:
        with pytest.raises(ConfigurationError) as error:
            npn.importance(plastic, *args, **options)
        assert str(error.value) == message

    names = "'magnitude', 'taylor', 'fisher', 'bn_scale', 'random'"
    fails(f"criterion must be one of {names}, got 'l1'", "l1")
    fails("per must be one of 'unit', 'params', 'macs', got 'flops'", "random", per="flops")
    needs = (
        "needs data: give batches= and loss=(model, batch) -> scalar; {} missing. "
        '"magnitude", "bn_scale" and "random" need none'
    )
    fails("criterion 'taylor' " + needs.format("batches and loss"), "taylor")
    fails("criterion 'fisher' " + needs.format("loss"), "fisher", batches)
    fails("batches must be an iterable of what loss takes, got int", "taylor", 3, loss)
    fails("loss must be callable as loss(model, batch), got float", "taylor", batches, 0.1)
    fails(
        "batches is empty; give at least one batch (an iterator is used up by its first reader: give a list or a "
        "DataLoader)", "taylor", [], loss,
    )  # fmt: skip
    scalar = "loss(model, batch) must return a scalar tensor, got {}; {}"
    fails(scalar.format("shape (6, 2)", "reduce it with .mean()"), "taylor", batches, lambda m, b: m(b[0]))
    number = scalar.format("float", "return the tensor itself, without .item() or float()")
    fails(number, "taylor", batches, lambda m, b: m(b[0]).sum().item())
    independent = (
        "the loss does not depend on the model's weights; compute it from the model that loss(model, batch) is given, "
        "with gradients enabled"
    )
    other = nn.Linear(3, 2).double()
    fails(independent, "taylor", batches, lambda m, b: loss(other, b))
    fails(independent, "taylor", batches, lambda m, b: loss(m, b).detach())
    fails(
        "bn_scale needs a BatchNorm with a scale on every unit, but there is none in '0', '2'; leave that out with "
        "skip= when attaching or pruning, or take another criterion", "bn_scale",
    )  # fmt: skip
    with pytest.raises(NonFiniteLossError, match=r"^the loss of batch 2 is nan, and its gradient is not finite"):
        npn.importance(plastic, "taylor", [batches[0], (batches[0][0] * float("nan"), batches[0][1])], loss)


# -- several processes


def scored(criterion: str) -> list[float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    plastic = npn.attach(model, torch.zeros(1, 3))
    rank, count = npn.distributed.rank(), npn.distributed.size()
    batches = [torch.full((2, 3), float(i + 1)) for i in range(4)][rank::count]
    torch.manual_seed(rank)
    found: list[float] = npn.importance(plastic, criterion, batches, lambda m, x: m(x).square().mean())["0"].tolist()
    return found


@pytest.mark.parametrize("criterion", ["taylor", "random"])
def test_processes_share_their_scores(criterion: str) -> None:
    one, two = together(2, scored, criterion)
    assert one == two
    assert one == pytest.approx(scored(criterion))


def test_batches_may_be_an_iterator() -> None:
    _, plastic, batches = CASES["mlp"].build()

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches

    expected = npn.importance(plastic, "fisher", batches, cross_entropy)["0"]
    assert torch.equal(npn.importance(plastic, "fisher", stream(), cross_entropy)["0"], expected)
