"""A dozen cheap models of each library: attached, shrunk, grown and trained on as the sweep does it."""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

TIMM = (
    "resnet18 resnet10t legacy_seresnet18 convnext_atto mixer_s32_224 regnetx_002 mobilenetv3_small_050 lcnet_035 "
    "tinynet_e starnet_s050 darknet17 vit_tiny_patch16_224"
)
TORCHVISION = (
    "resnet18 alexnet squeezenet1_0 squeezenet1_1 mobilenet_v2 mobilenet_v3_small mnasnet0_5 shufflenet_v2_x0_5"
)
TRANSFORMERS = (
    "bert gpt2 llama qwen3 mixtral falcon modernbert vit convnext clip_vision_model patchtst "
    "audio-spectrogram-transformer"
)


def check(module: str, name: str, folder: Path) -> dict[str, Any]:
    """Attach; masked = exported = compacted, growth keeps the function, a step has finite gradients."""
    from compat import measure, records

    report = measure.Report(str(folder / "record.json"))
    measure.measure(f"compat.{module}", name, report, onnx=False)
    report.put(stage="done")
    found: dict[str, Any] = json.loads((folder / "record.json").read_text())
    assert records.status(found, tolerance=1e-5) == "exact", found["failed"] or found["errors"]
    assert set(found["errors"]) == {"export", "compact", "grow"}
    assert found["moved"], "closed units change the function, or nothing is compared"
    return found


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("name", TIMM.split())
def test_timm(name: str, tmp_path: Path) -> None:
    assert check("timm_models", name, tmp_path)["share"] > 0.7


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
@pytest.mark.parametrize("name", TORCHVISION.split())
def test_torchvision(name: str, tmp_path: Path) -> None:
    import_module("compat.stubs").load_torchvision()
    assert check("torchvision_models", name, tmp_path)["share"] > 0.7


@pytest.mark.filterwarnings("ignore:new units have entries in frozen parameters")
@pytest.mark.parametrize("name", TRANSFORMERS.split())
def test_transformers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    assert check("transformers_models", name, tmp_path)["share"] > 0.4
