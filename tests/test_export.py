"""`write_model`: every format gives back the same outputs."""

import warnings

import pytest
import torch
from torch import nn

import npn
from npn import sparse
from npn.errors import CheckpointError, ConfigurationError
from npn.export import FORMATS, chosen_format, read_bitmap, write_model


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


class Heads(nn.Module):
    """Two answers by name, and a flag before the second input."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x, twice=False, mask=None):
        h = self.head(x if mask is None else x * mask)
        return {"scores": 2 * h if twice else h, "sizes": (h.square(), None)}


def test_keywords_in_any_order_leave_the_batch_free(tmp_path):
    model = Heads().eval()
    inputs = {"twice": True, "x": torch.randn(3, 4), "mask": torch.ones(3, 4)}
    loaded = torch.export.load(write_model(model, inputs, tmp_path / "model.pt2")).module()
    other = {"twice": True, "x": torch.randn(5, 4), "mask": torch.rand(5, 4)}
    torch.testing.assert_close(loaded(**other)["scores"], model(**other)["scores"])


@pytest.mark.parametrize(("key", "names"), [("scores", ["scores", "sizes_0"]), ("x", None)])
def test_onnx_outputs_have_the_names_of_their_keys_unless_an_input_has_one(tmp_path, key, names):
    runtime = pytest.importorskip("onnxruntime")
    model = Heads().eval()
    forward = model.forward
    model.forward = lambda x: {key: (answer := forward(x))["scores"], "sizes": answer["sizes"]}
    x = torch.randn(2, 4)
    session = runtime.InferenceSession(str(write_model(model, x, tmp_path / "model.onnx")))
    found = [output.name for output in session.get_outputs()]
    assert found == names or (names is None and "x" not in found)
    scores, _ = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(scores), forward(x)["scores"], atol=1e-5, rtol=1e-4)


def test_an_example_of_one_row_leaves_the_batch_free(small, tmp_path):
    """PyTorch would fix a size of 1."""
    x = torch.randn(7, 1, 6, 6)
    loaded = torch.export.load(write_model(small, x[:1], tmp_path / "model.pt2", "pt2")).module()
    for rows in (1, 2, 7):
        torch.testing.assert_close(loaded(x[:rows]), small.eval()(x[:rows]))
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(write_model(small, x[:1], tmp_path / "model.onnx", "onnx")))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), small(x), atol=1e-4, rtol=1e-4)


class Single(nn.Module):
    """Counts its calls, and takes one row only, or computes something else for it."""

    def __init__(self, fails):
        super().__init__()
        self.layer, self.fails = nn.Linear(4, 3), fails
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        x = self.layer(x)
        if self.fails:
            return x.view(3)
        return x if len(x) == 1 else 2 * x


@pytest.mark.parametrize("fails", [True, False])
def test_what_takes_one_row_only_is_written_for_one_row(tmp_path, fails):
    model, x = Single(fails).eval(), torch.randn(1, 4)
    loaded = torch.export.load(write_model(model, x, tmp_path / "model.pt2", "pt2")).module()
    assert model.calls == 0
    torch.testing.assert_close(loaded(x), model(x))


class Branching(nn.Module):
    """Decides by its input, which no exporter can follow."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x if x.sum() > 0 else -x)


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_an_export_that_fails_leaves_the_old_file(tmp_path, format):
    path = tmp_path / f"small.{format}"
    path.write_text("earlier")
    with pytest.raises(Exception, match="data-dependent"):
        write_model(Branching(), torch.ones(2, 4), path)
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


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
    with pytest.raises(ConfigurationError, match=r"one of 'onnx', 'pt2', 'safetensors', 'bitmap', 'csr', got 'tflite'"):
        write_model(small, torch.zeros(1, 1, 6, 6), tmp_path / "x", "tflite")


def test_the_ending_of_the_path_says_the_format(small, tmp_path):
    x = torch.randn(2, 1, 6, 6)
    loaded = torch.export.load(write_model(small, x, tmp_path / "model.pt2")).module()
    torch.testing.assert_close(loaded(x), small.eval()(x))
    with warnings.catch_warnings(action="error", category=UserWarning):
        again = write_model(small, x, tmp_path / "model.bin", "pt2")
    torch.testing.assert_close(torch.export.load(again).module()(x), small(x))
    names = {"a.bitmap.safetensors": "bitmap", "A.SAFETENSORS": "safetensors", "a.csr.pt": "csr", "a.onnx": "onnx"}
    for name, format in names.items():
        if format != "csr":
            pytest.importorskip("onnxscript" if format == "onnx" else "safetensors")
        assert chosen_format(name, None, "pt2") == chosen_format(name, format) == format
        with pytest.raises(ConfigurationError, match=f"is 'pt2', but {name} ends like a file of '{format}'; leave out"):
            write_model(small, x, tmp_path / "new" / name, "pt2")
    assert chosen_format("a.safetensors", "bitmap") == "bitmap"
    with pytest.raises(
        ConfigurationError, match=r"format of a\.bin is not known; give format= as one of 'onnx', 'pt2'"
    ):
        write_model(small, x, tmp_path / "new" / "a.bin")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_closed_units_are_not_written_as_if_they_were_open(tmp_path, format):
    if format != "pt2":
        pytest.importorskip("safetensors" if format in ("safetensors", "bitmap") else "onnxscript")
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.zeros(2, 4)
    plastic = npn.attach(model, x)
    plastic.close("0", [1])
    for part in (model, nn.Sequential(model)):
        with pytest.raises(
            ConfigurationError, match=r"units of the model are closed, .*; write plastic\.export\(\) in"
        ):
            write_model(part, x, tmp_path / "new" / "model", format)
    assert not any(tmp_path.iterdir())
    write_model(plastic.export(), x, tmp_path / "model", format)


def test_what_cannot_be_written_is_said_before_an_export_begins(small, tmp_path, capfd):
    plastic = npn.attach(Net(), torch.zeros(2, 1, 6, 6))
    with pytest.raises(
        ConfigurationError, match=r"model must be a torch\.nn\.Module \(of a handle, plastic\.export\(\)\)"
    ):
        write_model(plastic, torch.zeros(2, 1, 6, 6), tmp_path / "new" / "a.pt2")
    for name in ("a.pt2", "a.csr.pt"):
        with pytest.raises(ConfigurationError, match=r"with the example inputs, of shape \(2, 2, 6, 6\): .*; give one"):
            write_model(small, torch.zeros(2, 2, 6, 6), tmp_path / "new" / name)
    assert capfd.readouterr() == ("", "") and not any(tmp_path.iterdir())


def with_zeros(share=0.98):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 20), nn.ReLU(), nn.Linear(20, 3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for i in (1, 3):
            model[i].weight.masked_fill_(torch.rand(model[i].weight.shape, generator=generator) < share, 0.0)
    return model


def test_bitmaps_are_small_and_load_back_equal(tmp_path):
    pytest.importorskip("safetensors")
    model = with_zeros()
    model.register_buffer("counts", torch.arange(3))
    path = write_model(model, torch.zeros(1, 784), tmp_path / "a", "bitmap")
    loaded = read_bitmap(path)
    state = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype for name, value in state.items())
    left = sum(int((p != 0).sum()) for p in model.parameters())
    bits = sum(model[i].weight.numel() for i in (1, 3)) / 8
    assert path.stat().st_size < bits + 4 * left + 2000 < 4 * npn.count_params(model) / 8
    dense = write_model(model, torch.zeros(1, 784), tmp_path / "b", "safetensors")
    with pytest.raises(CheckpointError, match="is no bitmap file of npn: write it with npn export --format bitmap"):
        read_bitmap(dense)
    (tmp_path / "text").write_text("no tensors")
    for other in ("text", "absent"):
        with pytest.raises(CheckpointError, match=f"{other} cannot be read as a bitmap file of npn: "):
            read_bitmap(tmp_path / other)


def test_linear_layers_become_sparse_where_that_is_faster(tmp_path, monkeypatch):
    model = with_zeros()
    seconds = iter([1.0, 2.0, 3.0, 2.5])  # sparse, then dense, of both layers with zeros
    monkeypatch.setattr(sparse, "_seconds", lambda call, device: (call(), next(seconds))[1])
    x = torch.randn(5, 1, 28, 28)
    small, times = sparse.to_csr(model, x[:2], batch=7)
    assert [(t.name, t.batch, t.chosen) for t in times] == [("1", 7, True), ("3", 7, False)]
    assert small[1].weight.layout == torch.sparse_csr and small[3].weight.layout == torch.strided
    assert model[1].weight.layout == torch.strided and type(small[1]) is nn.Linear
    torch.testing.assert_close(small(x), model(x))
    npn.save(tmp_path / "small.pt", small)
    again = npn.load(tmp_path / "small.pt", with_zeros(0.0))
    assert again[1].weight.layout == torch.sparse_csr and again[3].weight.layout == torch.strided
    assert torch.equal(again(x), small(x))
    assert (tmp_path / "small.pt").stat().st_size < 4 * npn.count_params(model) / 4
    gated = npn.attach(with_zeros(0.0), x[:2], unstructured="*")
    with pytest.raises(CheckpointError, match="holds a plain model without gates"):
        npn.load(tmp_path / "small.pt", gated)


def test_a_kind_of_number_without_a_sparse_kernel_stays_dense():
    """Times are measured here; a bfloat16 layer is either timed in both forms or left as it is."""
    model = with_zeros().to(torch.bfloat16)
    x = torch.randn(2, 784, dtype=torch.bfloat16)
    small, times = sparse.to_csr(model, x, batch=2)
    assert all(t.dense > 0 and t.sparse > 0 for t in times)
    torch.testing.assert_close(small(x), model(x), rtol=2e-2, atol=2e-2)


def test_a_file_of_sparse_layers_is_written_and_read(tmp_path):
    model = with_zeros(0.999)
    path = write_model(model, torch.zeros(2, 784), tmp_path / "a" / "model.csr.pt", "csr")
    x = torch.randn(4, 784)
    torch.testing.assert_close(npn.load(path, with_zeros(0.0))(x), model(x))
