"""Precision, memory layout and compiler change how a model is called, not what it is."""

from functools import partial

import pytest
import torch
from torch import nn

from npn.errors import ConfigurationError
from npn.experiments.data.splits import Data, Split
from npn.experiments.engine import execution, runner
from npn.experiments.engine.options import Options
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.stopping import Interrupted
from npn.experiments.resnet import recipe as resnet56
from npn.experiments.resnet.options import ResNetOptions

from .test_resnet56 import UNDRAWN, Disturbed, images, same

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_logits_are_float32_whatever_the_precision_inside(precision):
    seen = []
    model = nn.Linear(4, 2)
    model.register_forward_hook(lambda module, x, out: seen.append(out.dtype))
    logits = execution.forward(model, execution.autocast(precision, CPU))(model, torch.randn(3, 4))
    assert logits.dtype == torch.float32
    assert seen == [execution.PRECISIONS[precision] or torch.float32]
    assert (execution.grad_scaler(precision, CPU) is not None) == (precision == "fp16")


def test_another_precision_is_refused():
    with pytest.raises(ConfigurationError) as error:
        execution.autocast("fp8", CPU)
    assert str(error.value) == "precision must be one of 'fp32', 'bf16', 'fp16', got 'fp8'"


def test_a_compiled_model_is_compiled_anew_only_after_a_resize():
    compiled = []

    def backend(graph, example):
        compiled.append(graph)
        return graph.forward

    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4)
    call = execution.forward(model, compiled=True, backend=backend)
    for width in range(20, 0, -1):  # more often than the compiler keeps versions
        model[0].weight.data, model[0].bias.data = torch.randn(width, 4), torch.randn(width)
        model[2].weight.data = torch.randn(2, width)
        before = len(compiled)
        for _ in range(3):
            torch.testing.assert_close(call(model, x), model(x))
        assert len(compiled) == before + 1
    other = nn.Linear(4, 2)
    assert torch.equal(call(other, x), other(x)) and len(compiled) == 20


def test_a_run_is_compiled_once_for_training_and_once_for_evaluation_per_size(tmp_path, monkeypatch):
    compiled = []

    def backend(graph, example):
        compiled.append(torch.is_grad_enabled())
        return graph.forward

    class Counting(Disturbed):
        def epoch(self, row, epochs):
            super().epoch(row, epochs)
            counts.append((row["units"], row["loss"], sorted(compiled)))
            compiled.clear()

    monkeypatch.setattr(resnet56, "cifar", images)
    monkeypatch.setattr(resnet56, "BATCH_SIZE", 16)
    monkeypatch.setattr(resnet56, "GATE_LEARNING_RATE", 0.5)
    monkeypatch.setattr(execution, "forward", partial(execution.forward, backend=backend))
    losses = {}
    for name in (True, False):
        counts = []
        options = ResNetOptions(depth=8, epochs="1,3,1", budget=0.3, compile=name)
        runner.run(UNDRAWN, options, RunDirectory(tmp_path / str(name)), Counting())
        losses[name] = [loss for _, loss, _ in counts]
        if name:
            sizes = [units for units, _, _ in counts]
            assert sizes[0] != sizes[1] == sizes[2] == sizes[3], "one resize, at the end of the second epoch"
            # the graph for training under masks is the one without; after the resize evaluation comes first
            assert [made for _, _, made in counts] == [[False, True], [False], [True], [], []]
    assert losses[True] == pytest.approx(losses[False])


@pytest.mark.parametrize(
    ("precision", "channels_last"), [("bf16", True), ("fp16", False), ("fp32", True)], ids=lambda v: str(v)
)
def test_a_run_resumes_to_the_same_bits(tmp_path, monkeypatch, precision, channels_last):
    few = images()  # fp16 is slow on a CPU
    train, held_out = (Split(part.x[:count], part.y[:count]) for part, count in ((few.train, 8), (few.validation, 4)))
    few = Data(train, held_out, Split(few.test.x[:4], few.test.y[:4]), few.classes)
    monkeypatch.setattr(resnet56, "cifar", lambda *_: few)
    monkeypatch.setattr(resnet56, "BATCH_SIZE", 16)
    monkeypatch.setattr(resnet56, "GATE_LEARNING_RATE", 0.5)
    options = ResNetOptions(depth=8, epochs="1,2,1", budget=0.3, precision=precision, channels_last=channels_last)
    observer, whole, path = Disturbed(1), tmp_path / "whole", tmp_path / "stopped"
    result = runner.run(UNDRAWN, options, RunDirectory(whole), Disturbed()).result
    assert result["params"] < result["base"]["zero_padding"]["params"]
    with pytest.raises(Interrupted):
        runner.run(UNDRAWN, options, RunDirectory(path), observer)
    torch.manual_seed(999)
    runner.run(UNDRAWN, Options(), RunDirectory(path), observer, resume=True)
    same(whole, path)
