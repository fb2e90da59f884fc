"""The compatibility sweep itself: its list, its limits, resuming, and the page that it writes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
FAKE = {"fake": "fake_models"}


def record(model: str = "a", **values: Any) -> dict[str, Any]:
    whole = {
        "library": "fake", "model": model, "family": "f", "versions": {"npn": "1"}, "commit": "abc",
        "date": "2030-01-02",
        "failed": {}, "stage": "done", "params": 1000, "seconds": 2.0, "wall": 2.5,
        "attached": True, "groups": 3, "share": 0.5,
        "errors": {"export": 1e-15, "compact": 2e-15, "grow": 1e-15}, "precision": "float64", "moved": True,
        "frozen": {"it is the model's output": 2},
    }  # fmt: skip
    return whole | values


def test_the_list_is_long_distinct_and_fixed_and_imports_no_library() -> None:
    code = (
        "import sys; from compat.entries import entries; found = entries(); "
        "assert found == entries(); "
        "print(len(found), len({e.key for e in found}), len({e.library for e in found}), "
        "any(name in sys.modules for name in ('torch', 'timm', 'torchvision', 'transformers', 'diffusers', 'monai')))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tools", capture_output=True, text=True, check=True)
    total, distinct, libraries, imported = run.stdout.split()
    assert int(total) == int(distinct) >= 300
    assert (libraries, imported) == ("6", "False")


def test_first_variants_of_all_families_come_first() -> None:
    from compat.entries import entries

    variants = [entry.variant for entry in entries()]
    assert variants == sorted(variants)
    assert len({entry.library for entry in entries()[:6]}) == 6
    assert [entry.name for entry in entries(FAKE)] == ["mlp", "broken", "endless", "broken_too"]


def test_a_resumed_sweep_tries_only_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from compat import records, sweep

    out = tmp_path / "found.json"
    options = ["--match", "broken*", "--out", str(out)]
    assert sweep.main([*options, "--first", "1"], FAKE) == 0
    assert "1 of 4 models" in capsys.readouterr().out
    first = records.read(out)["fake", "broken"]
    assert "no weights for broken" in first["failed"]["build"]["error"]
    assert records.status(first) == "unusable"
    sweep.main(options, FAKE)
    assert "1 of 4 models" in capsys.readouterr().out
    assert list(records.read(out)) == [("fake", "broken"), ("fake", "broken_too")]
    assert records.read(out)["fake", "broken"] == first
    json.loads(out.read_text())

    records.put(out, first | {"versions": first["versions"] | {"torch": "1.0"}})
    sweep.main(options, FAKE)
    assert "1 of 4 models" in capsys.readouterr().out, "another version of torch"
    sweep.main([*options, "--again"], FAKE)
    assert "2 of 4 models" in capsys.readouterr().out


def test_a_model_that_hangs_is_ended_by_the_limit(tmp_path: Path) -> None:
    from compat import records, sweep

    out = tmp_path / "found.jsonl"
    sweep.main(["--match", "endless", "--out", str(out), "--limit-seconds", "1"], FAKE)
    found = records.read(out)["fake", "endless"]
    assert (found["ended"], found["stage"]) == ("time", "build")


def test_a_sound_model_is_measured_as_exact(tmp_path: Path) -> None:
    from compat import measure, records

    report = measure.Report(str(tmp_path / "record.json"))
    measure.measure("fake_models", "mlp", report, onnx=False)
    report.put(stage="done")
    found = json.loads((tmp_path / "record.json").read_text())
    assert records.status(found) == "exact"
    assert (found["groups"], found["precision"], found["moved"]) == (2, "float64", True)
    assert found["params"] == 9 * 5 + 6 * 10 + 2 * 7
    assert found["share"] == round(1 - (5 + 2 + 4) / found["params"], 4)
    assert set(found["errors"]) == {"export", "compact", "grow"}


def test_a_model_in_which_only_a_stream_can_go_is_tried_with_streams(tmp_path: Path) -> None:
    from compat import measure, page, records

    report = measure.Report(str(tmp_path / "record.json"))
    measure.measure("fake_models", "normed", report, onnx=False)
    report.put(stage="done")
    found = json.loads((tmp_path / "record.json").read_text())
    assert records.status(found) == "exact" and found["groups"] == 1
    assert page.remark(found) == "with streams=True"


def test_an_unequal_answer_is_an_error() -> None:
    from compat import numbers

    a = torch.tensor([[4.0, -2.0]])
    assert numbers.relative_error([a], [a + torch.tensor([[0.0, 1.0]])]) == 0.25
    assert numbers.relative_error([a], [a[:, :1]]) == float("inf")
    assert numbers.relative_error([a], [a * float("nan")]) == float("inf")


def test_code_that_makes_single_precision_is_compared_in_double() -> None:
    from compat import measure, numbers

    class Single(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.float() + torch.zeros(3))

    x = torch.randn(2, 3)
    context, inputs = measure._precision(model := Single(3, 2), x)
    with context:
        (found,) = numbers.outputs(model, inputs)
    assert found.dtype == torch.float64
    assert x.double().float().dtype == torch.get_default_dtype() == torch.float32, "as before afterwards"


def test_perturbed_weights_are_no_longer_constant() -> None:
    from compat import numbers

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.LayerNorm(4))
    before = model[0].weight.clone()
    numbers.perturb(model)
    assert torch.equal(model[0].weight, before)
    for tensor in (model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var, model[2].weight):
        assert tensor.unique().numel() == 4
    assert bool((model[1].running_var > 0).all())


def test_status_of_a_record() -> None:
    from compat.records import status

    refused = {"attach": {"error": "TraceError: no", "raised": "a.py:1", "began": "b.py:2"}}
    assert status(record()) == "exact"
    assert status(record(errors={"export": 1e-3})) == "wrong"
    assert status(record(failed=refused)) == "refused"
    assert status(record(failed={"attach": refused["attach"] | {"error": "KeyError: 'a'"}})) == "failed"
    assert status(record(ended="memory", stage="grow")) == "memory"


def test_the_page_counts_and_explains(tmp_path: Path) -> None:
    from compat import records, sweep

    place = {"raised": "tracing/grouping/walk.py:9", "began": "zoo.py:3"}
    found = [
        record("plain"),
        record("slow", seconds=31.0, peer={"runs": True, "left": 0.3, "error": 0.2, "failed": {}, "version": "1.6.1"}),
        record("wrong", errors={"export": 0.5}, peer={"runs": False, "left": 0.3, "error": None, "failed": {}}),
        {k: v for k, v in record("no", failed={"attach": {"error": "TraceError: a | b", **place}}).items()
         if k not in ("attached", "groups", "share", "errors")},
        record("if", failed={"attach": {"error": "TraceError: decides at a.py:7, which no graph can", **place}}),
        record("else", failed={"attach": {"error": "TraceError: decides at b.py:8, which no graph can", **place}}),
        record("gone", failed={"build": {"error": "ImportError: x", **place}}),
    ]  # fmt: skip
    for folder in ("docs", "results"):
        (tmp_path / folder).mkdir()
    records.write(tmp_path / "found.jsonl", found)
    assert sweep.write_docs(tmp_path / "found.jsonl", tmp_path) == 0
    text = (tmp_path / "docs" / "compatibility.md").read_text()
    assert "| fake | 6 | 5 | 4 | 5 | 2.0 | 2.5 | 1 | 1 |" in text
    assert "- attach: TraceError: decides, which no graph can: fake if (`a.py:7`), fake else (`b.py:8`)" in text
    assert "- attach: TraceError: a \\| b (`zoo.py:3`): fake no" in text
    assert "| it is the model's output | its size is the task's: the model's output | 7 | 14 |" in text
    assert "| slow | 1,000 | 3 | 50% | 31.0 | 2.5 | 2e-15 | 30% left, differs by 2e-01 |  |" in text
    assert "1 of 2 run afterwards" in text
    assert json.loads((tmp_path / "results" / "compat.json").read_text()) == found
    assert sweep.write_docs(tmp_path / "nothing.json", tmp_path) == 1


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("mean mixes every unit of the axis at vit.py:12", "mean mixes every unit of the axis"),
        ("the product at attention.py:7 mixes every unit", "the product mixes every unit"),
        ("no rule for aten.foo, called at a.py:3 (forward)", "no rule for aten.foo"),
        ("the code fixes this size at a.py:3: shape '[2, 5]' is invalid", "the code fixes this size"),
        ("it shares the attribute n of a.b with 3 other group(s)", "it shares an integer attribute with other groups"),
    ],
)  # fmt: skip
def test_reasons_count_together(reason: str, expected: str) -> None:
    from compat.measure import plain

    assert plain(reason) == expected
