"""Threads: one traces at a time, and models that others serve meanwhile do not notice."""

import threading
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn


class Calling(nn.Module):
    """Calls a function in each forward pass."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self.first, self.second, self.function = nn.Linear(4, 8), nn.Linear(8, 2), [function]

    def forward(self, x: Tensor) -> Tensor:
        self.function[0]()
        return self.second(self.first(x).relu())


def in_thread(function: Callable[[], None]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_served_models_run_while_another_thread_traces() -> None:
    served = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plastic = npn.attach(served, torch.randn(3, 4))
    plastic.close("0", [1])
    x, table = torch.randn(3, 4), torch.full((3, 8), 2.0)
    expected, found = served(x), list[Tensor | bool | float]()

    def serve() -> None:
        found.append(torch.equal(served(x), expected))
        found.append(torch.compiler.is_exporting() or torch.compiler.is_compiling())
        rows = table.clone()
        F.embedding(torch.tensor([1]), rows, max_norm=1.0)
        found.append(float(rows[1].norm()) < 1.01)

    npn.attach(Calling(lambda: in_thread(serve)), torch.randn(3, 4))
    assert len(found) >= 3
    assert found == [True, False, True] * (len(found) // 3)


def test_two_threads_that_attach_leave_everything_as_it_was() -> None:
    names = ("tolist", "numpy", "requires_grad_")
    before = {name: vars(Tensor).get(name) for name in names}
    inside, over = threading.Event(), threading.Event()
    other = threading.Thread(
        target=lambda: npn.attach(Calling(lambda: (inside.set(), over.wait(0.5))[0]), torch.randn(3, 4))
    )
    begin = [other.start]

    def during() -> None:
        """The other thread gets as far as it can; then the first of both is over."""
        if begin:
            begin.pop()()
            inside.wait(0.5)

    npn.attach(Calling(during), torch.randn(3, 4))
    over.set()
    other.join()
    assert inside.is_set()
    assert {name: vars(Tensor).get(name) for name in names} == before
    assert not torch.compiler.is_exporting()
    assert torch.backends.mha.get_fastpath_enabled()
