"""Pictures are written, are the same each time, and show what they say."""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib import image

from npn.experiments.report import figures


def rows(ks: list[float | str]) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "stage": "pretrain" if k == "inf" else "plastic",
            "k": k,
            "accuracy": 0.9,
            "validation_accuracy": 0.8,
            "params": 100 - epoch,
            "units": {"a": 5, "b": 7 - epoch},
            "keep": {"a": [1, 0, 4], "b": [2, 0, 5 - epoch]},
        }
        for epoch, k in enumerate(ks)
    ]


def test_stages_are_found_in_the_rows() -> None:
    assert figures.stages_of(rows(["inf", "inf", 7.0, 7.0, 7.0])) == [("pretrain", 0, 2), ("plastic", 2, 5)]


@pytest.mark.parametrize("draw", ["learning_curves", "keep_probabilities", "gate_functions"])
def test_a_picture_is_the_same_bytes_each_time(tmp_path: Path, draw: str) -> None:
    made = []
    for name in ("one.png", "two.png"):
        path = tmp_path / name
        if draw == "gate_functions":
            figures.gate_functions(path)
        else:
            getattr(figures, draw)(path, rows(["inf", 7.0, 7.0, 7.0]), "a title")
        made.append(path.read_bytes())
    assert made[0] == made[1]
    assert image.imread(tmp_path / "one.png").std() > 0.05  # not blank


def test_a_bound_is_drawn_beside_the_cost(tmp_path: Path) -> None:
    plain, bounded = rows(["inf", 7.0, 7.0]), rows(["inf", 7.0, 7.0])
    for row, bound in zip(bounded, (None, 95.0, 90.0), strict=True):
        row.update(cost=100.0, bound=bound)
    figures.learning_curves(tmp_path / "plain.png", plain, "a title")
    figures.learning_curves(tmp_path / "bounded.png", bounded, "a title")
    heights = [image.imread(tmp_path / name).shape[0] for name in ("plain.png", "bounded.png")]
    assert heights[1] > heights[0]  # one panel more


def test_drawing_leaves_the_users_style_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    figures.gate_functions(tmp_path / "gates.png")
    assert dict(mpl.rcParams) == before


def test_histograms_need_a_plastic_epoch(tmp_path: Path) -> None:
    assert figures.keep_probabilities(tmp_path / "keep.png", rows(["inf", "inf"]), "a title") is None
    assert not (tmp_path / "keep.png").exists()
    assert figures.keep_probabilities(tmp_path / "keep.png", rows(["inf", 7.0]), "a title") == tmp_path / "keep.png"


def test_curves_can_have_many_groups(tmp_path: Path) -> None:
    many = rows(["inf", 7.0])
    for row in many:
        row["units"] = {f"layer{index}": 3 for index in range(40)}
    assert figures.learning_curves(tmp_path / "curves.png", many, "a title").exists()


def test_gate_functions_take_any_sharpness(tmp_path: Path) -> None:
    assert figures.gate_functions(tmp_path / "gates.png", [0.0, 3.0, math.inf]).exists()
