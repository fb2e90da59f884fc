"""`npn.masked`: the weights are those of the masked network, and nothing trains or resizes meanwhile."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import npn
from npn.errors import ConfigurationError, ResizeError
from npn.masking.messages import THREADS

from .test_left_whole import X, Y, net, parts, same, state

pytestmark = pytest.mark.usefixtures("traces_are_shared")


def test_masked_reaches_every_part_and_gives_the_weights_back() -> None:
    model, plastic = parts()
    before, small = state(model), plastic.export()
    assert not torch.allclose(model.loss(X, Y), small.loss(X, Y))
    with npn.masked(plastic), npn.masked(plastic):  # again inside itself
        torch.testing.assert_close(model.loss(X, Y), small.loss(X, Y))
        torch.testing.assert_close(model(X), small(X))
    assert same(model, before)
    with pytest.raises(ZeroDivisionError), npn.masked(plastic):
        1 / 0  # noqa: B018
    assert same(model, before)
    with npn.masked(plastic):
        loss = model.loss(X, Y)
    loss.backward()
    assert model[2].weight.grad[:, :5].eq(0).all() and model[2].weight.grad.abs().sum() > 0  # type: ignore[index, union-attr]


def test_nothing_trains_or_resizes_under_masked() -> None:
    model, plastic = parts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plastic.track(optimizer)
    model(X).sum().backward()
    before = state(model)
    with npn.masked(plastic):
        with pytest.raises(ResizeError, match=r"^a resize inside plastic.backward or npn.masked would change"):
            plastic.compact()
        with pytest.raises(ConfigurationError, match=r"^masks are on the weights; do this after"):
            plastic.backward(lambda: model.loss(X, Y))
        with pytest.raises(ConfigurationError, match=r"^2.weight was changed inside npn.masked"):
            optimizer.step()
    with pytest.raises(ResizeError, match=r"^a resize inside plastic.backward or npn.masked would change"):
        plastic.backward(lambda: (model(X).sum(), plastic.compact())[0])
    assert same(model, before) and plastic.compact().changes == {"0": (8, 3)}


def test_single_weights_are_not_removed_under_masked() -> None:
    model = net()
    plastic = npn.attach(model, X, skip="*", unstructured="0")
    plastic.close("0.weight", range(10))
    with (
        npn.masked(plastic),
        pytest.raises(ResizeError, match=r"^a resize inside plastic.backward or npn.masked would"),
    ):
        plastic.compact()
    assert not plastic.unstructured["0.weight"].removed.any()
    assert plastic.compact().weights == {"0.weight": 10}
    assert int((plastic.detach()[0].weight == 0).sum()) == 10  # type: ignore[index]


def test_a_copied_handle_is_guarded_as_the_original() -> None:
    _, original = parts()
    plastic = copy.deepcopy(original)
    optimizer = torch.optim.SGD(plastic.model.parameters(), lr=0.1)
    plastic.model(X).sum().backward()
    with (
        npn.masked(plastic),
        pytest.raises(ConfigurationError, match=r"^2.weight was changed inside npn.masked"),
    ):
        optimizer.step()
    plastic.detach()
    with pytest.raises(ConfigurationError, match=r"detached"):
        copy.deepcopy(plastic).backward(lambda: plastic.model(X).sum())


def test_threads_are_refused_or_share_masked() -> None:
    model, plastic = parts()
    before, expected = state(model), plastic.export()(X)
    inside, go, said = threading.Event(), threading.Event(), list[str]()

    def wait(*_: Any) -> None:
        inside.set()
        go.wait(10)

    def other() -> None:
        inside.wait(10)
        with pytest.raises(ConfigurationError) as refused:
            model(X)
        said.append(str(refused.value))
        go.set()

    handle, thread = model[1].register_forward_hook(wait), threading.Thread(target=other)
    thread.start()
    torch.testing.assert_close(model(X), expected)
    thread.join()
    handle.remove()
    assert same(model, before) and said == [THREADS]
    with npn.masked(plastic), ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: model(X), range(40)):
            torch.testing.assert_close(found, expected)
    assert same(model, before)


def test_files_and_states_hold_the_weights_not_masked_copies(tmp_path: Path) -> None:
    model, plastic = parts()
    before = state(model)
    with npn.masked(plastic):
        for refused in (
            lambda: npn.save(tmp_path / "f.npn", plastic),
            model.state_dict,
            lambda: model.load_state_dict(before),
            plastic.detach,
        ):
            with pytest.raises(
                ConfigurationError, match=r"^masks are on the weights; do this after plastic.backward or"
            ):
                refused()
    assert same(model, before) and not (tmp_path / "f.npn").exists()
    plastic.k = 7.0
    with pytest.raises(ConfigurationError, match=r"^masks are on the weights"):
        plastic.backward(lambda: F.cross_entropy(plastic.detach()(X), Y))
    assert same(model, before) and plastic.backward(lambda: F.cross_entropy(model(X), Y)) > 0


def test_a_change_in_place_under_masked_is_told() -> None:
    model, plastic = parts()
    before = state(model)
    with (
        pytest.raises(ConfigurationError, match=r"^2.weight was changed inside npn.masked, where it is a masked copy"),
        npn.masked(plastic),
        torch.no_grad(),
    ):
        model[2].weight.add_(1)
    assert same(model, before)


def test_copies_made_under_masks_have_the_weights() -> None:
    model, plastic = parts()
    expected, before = model(X).detach(), state(model)
    with npn.masked(plastic):
        copied, handle, small = copy.deepcopy(model), copy.deepcopy(plastic), plastic.export()
    inside: list[nn.Module] = []
    plastic.backward(lambda: (F.cross_entropy(model(X), Y), inside.append(copy.deepcopy(model)))[0])
    for each in (copied, handle.model, inside[0]):
        assert same(each, before)
        torch.testing.assert_close(each(X), expected)
    torch.testing.assert_close(small(X), expected)
    handle.open("0", range(8))
    torch.testing.assert_close(handle.model(X), net()(X))
