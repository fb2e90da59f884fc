"""Activation checkpoints in calls outside of a step, while units are closed: gradients are those without them."""

import threading
from functools import partial

import pytest
import torch
import torch.utils.checkpoint as checkpoints
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import npn
from npn.errors import ConfigurationError


class Blocks(nn.Module):
    """Two layers in a checkpoint between others; a batch norm and dropout, whose draws repeat."""

    def __init__(self, reentrant: bool | None, around: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.reentrant, self.around = nn.Linear(4, 8), nn.Linear(8, 2), reentrant, around
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 8), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu()
        h = checkpoint(self.inner, h, use_reentrant=True) if self.around else self.inner(h)
        return self.last(h)

    def inner(self, h: torch.Tensor) -> torch.Tensor:
        return self.block(h) if self.reentrant is None else checkpoint(self.block, h, use_reentrant=self.reentrant)


def attached(reentrant: bool | None, around: bool = False) -> tuple[Blocks, npn.Plasticity, torch.Tensor]:
    torch.manual_seed(0)
    model, x = Blocks(reentrant, around), torch.randn(6, 4)
    plastic = npn.attach(model, x)
    plastic.close("first", [1, 2])
    plastic.close("block.0", [0, 5])
    plastic.close("block.3", [3])
    return model, plastic, x


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    model(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_computed_again_is_masked(reentrant: bool) -> None:
    expected = gradients(*attached(None)[::2])
    model, _, x = attached(reentrant)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    torch.testing.assert_close(gradients(model, x), expected, rtol=0, atol=0)
    assert all(map(torch.equal, model.parameters(), weights))
    torch.testing.assert_close(gradients(model, x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_inside_another_is_masked(reentrant: bool) -> None:
    expected = gradients(*attached(None)[::2])
    model, _, x = attached(reentrant, around=True)
    torch.testing.assert_close(gradients(model, x), expected, rtol=0, atol=0)


def test_a_selective_checkpoint_does_not_see_the_masks() -> None:
    ops = [torch.ops.aten.addmm.default]
    contexts = partial(checkpoints.create_selective_checkpoint_contexts, ops)  # type: ignore[attr-defined]
    expected = gradients(*attached(None)[::2])
    model, _, x = attached(None)
    block = model.block.forward
    model.block.forward = lambda h: checkpoint(block, h, use_reentrant=False, context_fn=contexts)
    torch.testing.assert_close(gradients(model, x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_a_call_without_gradients_before_the_backward_pass_changes_nothing(reentrant: bool | None) -> None:
    expected = gradients(*attached(None)[::2])
    model, _, x = attached(reentrant)
    torch.manual_seed(1)
    loss = model(x).square().sum()
    with torch.no_grad():
        model(x)
    loss.backward()
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], expected, rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_inside_masked_it_is_so_too(reentrant: bool) -> None:
    expected = gradients(*attached(None)[::2])
    model, plastic, x = attached(reentrant)
    with npn.masked(plastic):
        torch.testing.assert_close(gradients(model, x), expected, rtol=0, atol=0)


def test_a_sequence_of_checkpoints_and_a_second_backward_pass() -> None:
    torch.manual_seed(0)
    layers, x = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(4, 4), nn.Tanh()))), torch.randn(5, 4)

    class Model(nn.Module):
        def __init__(self, on: bool) -> None:
            super().__init__()
            self.layers, self.on = layers, on

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint_sequential(self.layers, 2, x, use_reentrant=False) if self.on else self.layers(x)

    found = []
    for on in (False, True):
        model = Model(on)
        plastic = npn.attach(model, x)
        plastic.close("layers.0", [1]), plastic.close("layers.4", [0, 2])
        model.zero_grad()
        loss = model(x).square().sum()
        loss.backward(retain_graph=True), loss.backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
        plastic.detach()
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_have_been_replaced_since_cannot_be_computed_again(reentrant: bool) -> None:
    model, _, x = attached(reentrant)
    loss = model(x).square().sum()
    model.block[0].weight = nn.Parameter(model.block[0].weight.detach().clone())
    with pytest.raises(ConfigurationError, match=r"^the model was resized, moved or loaded between"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_another_mask_is_on_in_a_step(reentrant: bool) -> None:
    model, plastic, x = attached(reentrant)
    plastic.k = 7.0
    before = model(x).square().sum()
    with pytest.raises(ConfigurationError, match=r"^masks are on the weights"):
        plastic.backward(lambda: model(x).square().sum() + before)


def test_an_error_in_the_backward_pass_leaves_no_mask() -> None:
    model, _, x = attached(False)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    loss = model(x).square().sum()

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.block[3].register_forward_pre_hook(fails)
    with pytest.raises(KeyboardInterrupt):
        loss.backward()
    handle.remove()
    assert all(map(torch.equal, model.parameters(), weights))


def test_an_interrupted_swap_in_the_backward_pass_leaves_no_mask(monkeypatch) -> None:
    """Ctrl-C after the first weight has been replaced once more."""
    model, _, x = attached(False)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    loss, real, count = model(x).square().sum(), torch.Tensor.data, 0

    def interrupted(self, value) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        real.__set__(self, value)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Parameter, "data", property(real.__get__, interrupted), raising=False)
        with pytest.raises(KeyboardInterrupt):
            loss.backward()
    assert count > 2 and all(map(torch.equal, model.parameters(), weights))


def test_nothing_of_torch_stays_replaced_and_threads_have_their_own_masks() -> None:
    before = vars(checkpoints).copy(), dict(vars(checkpoints.CheckpointFunction))
    expected = gradients(*attached(None)[::2])
    made = [attached(reentrant) for reentrant in (False, True, False)]
    inside, found = threading.Barrier(len(made)), dict[int, list[torch.Tensor]]()
    for model, *_ in made:
        model.block[1].register_forward_hook(lambda *_: print(inside.wait(30)))  # all are in the forward pass at once

    def run(number: int) -> None:
        model, _, x = made[number]
        model.eval()
        found[number] = gradients(model, x)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(made))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    plain, _, x = attached(None)
    expected = gradients(plain.eval(), x)
    for each in found.values():
        torch.testing.assert_close(each, expected, rtol=0, atol=0)
    assert (
        len(found) == 3 and vars(checkpoints) == before[0] and dict(vars(checkpoints.CheckpointFunction)) == before[1]
    )
