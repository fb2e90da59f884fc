"""`write_model`: every format gives back the same outputs."""

import pytest
import torch
from torch import nn

import npn
from npn.errors import ConfigurationError
from npn.export import write_model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = Net()
    plastic = npn.attach(model, torch.zeros(2, 1, 6, 6))
    for _ in range(3):
        model(torch.randn(8, 1, 6, 6))
    plastic.close("conv", [1, 4])
    return plastic.export()


def test_onnx_runs_elsewhere_with_any_batch(small, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    x = torch.randn(2, 1, 6, 6)
    path = write_model(small, x, tmp_path / "deep" / "model.onnx", "onnx")
    session = runtime.InferenceSession(str(path))
    for batch in (x, torch.randn(5, 1, 6, 6)):
        (out,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), small.eval()(batch).detach(), atol=1e-4, rtol=1e-4)


def test_pt2_loads_with_any_batch(small, tmp_path):
    path = write_model(small, torch.randn(2, 1, 6, 6), tmp_path / "model.pt2", "pt2")
    loaded = torch.export.load(path).module()
    x = torch.randn(7, 1, 6, 6)
    torch.testing.assert_close(loaded(x), small.eval()(x))


def test_safetensors_hold_the_weights(small, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = write_model(small, torch.randn(2, 1, 6, 6), tmp_path / "model.safetensors", "safetensors")
    saved = safetensors.load_file(path)
    assert saved["conv.weight"].shape == (4, 1, 3, 3)
    assert all(torch.equal(saved[name], value) for name, value in small.state_dict().items())


def test_the_mode_is_as_before_and_formats_are_checked(small, tmp_path):
    small.train()
    small.norm.eval()  # as where its statistics are frozen
    write_model(small, torch.randn(2, 1, 6, 6), tmp_path / "model.pt2", "pt2")
    assert small.training and small.conv.training and not small.norm.training
    with pytest.raises(ConfigurationError, match=r"format must be one of 'onnx', 'pt2', 'safetensors', got 'tflite'"):
        write_model(small, torch.zeros(1, 1, 6, 6), tmp_path / "x", "tflite")
