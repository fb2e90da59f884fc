"""The examples do what they say."""

import runpy
from pathlib import Path

import pytest

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
