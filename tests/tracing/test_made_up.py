"""Values that leave the forward pass for a log or a check: let through where nothing depends on them."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import npn
from npn.errors import TraceError

from ..zoo.checks import check_resizes

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers, and what a function does with the units between them."""

    def __init__(self, code):
        super().__init__()
        self.a, self.b, self.log = nn.Linear(6, 8), nn.Linear(8, 2), []
        self.code = code

    def forward(self, x):
        h = torch.tanh(self.a(x))
        found = self.code(self, h)
        return self.b(h if found is None else found)


LINE = f"{Path(__file__).name}:{Net.forward.__code__.co_firstlineno + 2}"


def item(net, h):
    net.log.append({"mean": h.detach().mean().item(), "most": float(h.abs().max()), "place": int(h.argmax())})


def printed(net, h):
    net.log.append(f"{h.std().item():.3f}")


def histogram(net, h):
    net.log.append(h.detach().numpy().sum())


def asserted(net, h):
    assert not torch.isnan(h).any()
    assert torch.isfinite(h).all() and h.abs().max() <= 1


def raised(net, h):
    if torch.isnan(h).any():
        raise ValueError("not a number")
    elif not (h.mean() < 9):
        raise ValueError("a large number")


def counted(net, h):
    net.log.append((h > 0).sum().item())


@pytest.mark.parametrize("code", [item, printed, histogram, asserted, raised, counted], ids=lambda f: f.__name__)
def test_logs_and_checks_are_let_through(code):
    message = (
        f"values that the model computes leave its forward pass at {LINE}, as for a log or a check: several made-up "
        "ones were tried, and changed nothing in what is computed. What was found holds as long as no other value does"
    )

    def attached():
        torch.manual_seed(0)
        net = Net(code).double()
        with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as caught:
            plastic = npn.attach(net, X.double())
        assert len(caught) == 1 and caught[0].filename == __file__
        assert plastic.sizes() == {"a": 8} and net.log == []
        return plastic, X.double()

    check_resizes(attached)
    assert npn.count_macs(attached()[0].model, X.double()) == 4 * 8 * (6 + 2)


DEPENDS = {
    "factor": lambda net, h: h * h.mean().item(),
    "constant": lambda net, h: h + torch.tensor([h.mean().item()] * 8),
    "filled": lambda net, h: h / torch.full((8,), float(h.norm())),
    "if": lambda net, h: h.cumsum(0) if h.mean() > 0 else h,
    "if number": lambda net, h: h.cumsum(0) if h.mean().item() > 0 else h,
    "one in another": lambda net, h: (h.cumsum(0) if h.sum() > 3 else h) if h.mean() > 0 else h,
    "loop": lambda net, h: sum((h for _ in range(h.argmax().item())), h),
    "place": lambda net, h: (h, h.cumsum(0))[int(h.mean() > 0)],
    "checked and used": lambda net, h: asserted(net, h) or h * float(h.max()),
}


@pytest.mark.parametrize("name", DEPENDS)
def test_values_that_anything_depends_on_are_refused_with_the_way_out(name):
    message = "torch.where instead of if, tensors instead of .item() and float(), move logs and checks out of forward"
    with pytest.raises(TraceError, match=f"decides by the value of a tensor at .*{re.escape(message)}"):
        npn.attach(Net(DEPENDS[name]), X)


def test_a_failure_of_another_kind_is_none_of_the_code():
    """A made-up answer may lead into code that fails: nothing is known of what it would compute."""

    def fails(net, h):
        return h if h.mean() > 0 else h[:, ["no", "index"]]

    with pytest.raises(TraceError, match="decides by the value of a tensor"):
        npn.attach(Net(fails), X)
