"""A warning names the user's line, whichever function of npn has led to it."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import npn

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.Linear(8, 2))

    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)
"""


class Deciding(nn.Module):
    """Decides by its inputs, and in train mode by what it computes, which cannot be traced."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.a(x)
        if x.sum() > 0:
            h = h.relu()
        return self.b(torch.from_numpy(h.detach().numpy()) if self.training else h)


def plain():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return model, npn.attach(model, torch.ones(1, 4))


def load(tmp_path):
    (_, smaller), (model, plastic) = plain(), plain()
    smaller.close("0", [0])
    smaller.compact()
    npn.save(tmp_path / "small.npn", smaller)
    average = plastic.follow(copy.deepcopy(model))
    npn.load(tmp_path / "small.npn", plastic)
    assert average[0].out_features == 8


def grow(tmp_path):
    model, plastic = plain()
    model.requires_grad_(False)
    npn.Growth(units=2, limit=20).step(1.0, plastic)


def export(tmp_path):
    model, plastic = plain()
    globals()["LAYER"] = model[0]
    model[2].register_forward_hook(lambda module, arguments, output: output + LAYER.bias.sum())  # noqa: F821
    plastic.export()


PROGRAMS = [
    load,
    grow,
    export,
    lambda tmp_path: plain()[1].close("0", range(8)),
    lambda tmp_path: npn.attach(Deciding().eval(), torch.ones(1, 4)),
    lambda tmp_path: npn.attach(Deciding().eval(), torch.ones(1, 4), columns="a"),
    lambda tmp_path: npn.inspect(Deciding().eval(), torch.ones(1, 4)),
    lambda tmp_path: npn.prune(Deciding().eval(), torch.ones(1, 4), target=0.5, criterion="magnitude"),
    lambda tmp_path: plain()[1].track(torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)),
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_warning_names_the_users_line(program, tmp_path):
    with pytest.warns(UserWarning) as seen:
        program(tmp_path)
    assert {warning.filename for warning in seen} == {__file__}


def test_installed_code_in_between_is_passed_over():
    """As that of a trainer, whose callbacks call npn; here of a file beside torch's."""
    _, plastic = plain()
    trainer = {}
    exec(compile("def fit(call): call('0', range(8))", str(Path(torch.__file__).with_name("fit.py")), "exec"), trainer)
    with pytest.warns(UserWarning) as seen:
        trainer["fit"](plastic.close)
    assert seen[0].filename == __file__


def test_the_command_line_has_no_line_to_name(tmp_path):
    (tmp_path / "deciding.py").write_text(NET)
    command = [sys.executable, "-m", "npn", "inspect", "deciding:Net", "--input", "2,4"]
    environment = os.environ | {"PYTHONPATH": str(Path(npn.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("warning: the forward pass decides by values of its inputs at deciding.py:")
    assert len(done.stderr.splitlines()) == 1


def test_no_other_warning_counts_frames():
    """A number of frames is right for one way to a warning alone."""
    sources = Path(npn.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if "warnings.warn(" in path.read_text()] == ["warning.py"]
