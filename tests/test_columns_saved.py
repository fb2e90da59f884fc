"""A layer that selects its inputs by index, in files: exported formats and checkpoints."""

import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import npn
from npn.errors import CheckpointError
from npn.export import write_model

from .test_columns import Net, make, units
from .zoo.checks import elsewhere

pytestmark = pytest.mark.usefixtures("traces_are_shared")


def test_export_formats_know_the_selection(tmp_path: object) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x, plastic = make()
    model.eval()
    plastic.close("fc.columns", [0, 3, 9, 10])
    small = plastic.export()
    expected = small(x)
    path = write_model(small, x, f"{tmp_path}/small.onnx", "onnx")
    session = onnxruntime.InferenceSession(str(path))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)
    for other in elsewhere(small, x):
        assert torch.allclose(other(x), expected, atol=1e-6)
    assert b"npn" not in pickle.dumps(small.fc)


def test_checkpoints(tmp_path: object) -> None:
    def fresh() -> tuple[Net, Tensor, npn.Plasticity, torch.optim.Optimizer]:
        model, x, plastic = make()
        adam = torch.optim.Adam(plastic.weights(), lr=1e-2)
        plastic.track(adam)
        return model, x, plastic, adam

    def advance(model: Net, x: Tensor, plastic: npn.Plasticity, adam: torch.optim.Optimizer) -> None:
        for _ in range(3):
            adam.zero_grad()
            plastic.backward(lambda: model(x).square().mean())
            adam.step()

    model, x, plastic, adam = fresh()
    plastic.k = 5.0
    advance(model, x, plastic, adam)
    plastic.close("fc.columns", [0, 3, 4, 5, 6, 7])
    plastic.compact()
    plastic.grow({"conv": 1})
    plastic.close("fc.columns", [1])
    plastic.close("conv", [2])
    npn.save(f"{tmp_path}/plastic", plastic)
    npn.save(f"{tmp_path}/model", plastic.export())
    advance(model, x, plastic, adam)
    resumed = fresh()
    npn.load(f"{tmp_path}/plastic", resumed[2])
    assert units(resumed[2]) == units(plastic)
    advance(resumed[0], x, *resumed[2:])
    for (name, p), q in zip(model.named_parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(p, q), name

    _, _, before, _ = fresh()
    npn.load(f"{tmp_path}/plastic", before)
    expected = before.model.eval()(x)
    muted = npn.load(f"{tmp_path}/plastic", Net()).eval()
    assert torch.allclose(muted(x), expected, atol=1e-6)
    small = npn.load(f"{tmp_path}/model", Net()).eval()
    assert torch.allclose(small(x), expected, atol=1e-6)
    assert npn.count_params(small) == npn.count_params(before.export())
    twice = npn.load(f"{tmp_path}/model", npn.load(f"{tmp_path}/model", Net())).eval()
    assert torch.allclose(twice(x), expected, atol=1e-6)
    buffer = io.BytesIO()
    torch.save(small.state_dict(), buffer)

    class Other(Net):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Bilinear(1, 1, 1)  # type: ignore[assignment]

    with pytest.raises(CheckpointError, match="a linear or convolution layer 'fc' that selects its inputs, the mo"):
        npn.load(f"{tmp_path}/model", Other())
