"""Folders as runs of npn leave them, made without training."""

import json
from pathlib import Path
from typing import Any

BINS = 4
STAGES = (("pretrain", "inf"), ("plastic", 7.0), ("plastic", 7.0), ("finetune", "inf"))


def rows(layers: dict[str, int], stages: Any = STAGES) -> list[dict[str, Any]]:
    """Measurements of a run that halves its layers in each plastic epoch."""
    made, units = [], dict(layers)
    for epoch, (stage, k) in enumerate(stages):
        plastic = k != "inf"
        if plastic:
            units = {name: max(1, size // 2) for name, size in units.items()}
        params, low = 10 * sum(units.values()), {name: plastic * (size // 4) for name, size in units.items()}
        made.append(
            {
                "epoch": epoch, "stage": stage, "k": k, "loss": 1.0 / (epoch + 1), "validation_loss": 1.1 / (epoch + 1),
                "accuracy": 0.81 + 0.02 * epoch, "validation_accuracy": 0.8 + 0.02 * epoch,
                "params": params, "params_with_biases": params + 5, "architecture": "-".join(map(str, units.values())),
                "cost": float(params), "bound": 2.0 * params if plastic else None, "training_macs": 1000 * params,
                "units": dict(units),
                "keep": {name: [0, low[name], 0, size - low[name]] for name, size in units.items()},
            }
        )  # fmt: skip
    return made


def write_run(
    path: Path, *, finished: bool = True, layers: dict[str, int] | None = None, mode: str = "sparsify", **settings: Any
) -> Path:
    """Write a folder; `finished=False` leaves it as a killed process does, in the middle of a line."""
    path.mkdir(parents=True)
    options = {"mode": mode, "seed": 0, "k": 7.0, "budget": 30.0, "device": "cpu", **settings}
    measured = rows(layers or {"hidden": 16, "output": 8}, STAGES if mode != "dense" else (("train", "inf"),) * 4)
    (path / "options.json").write_text(json.dumps(options))
    lines = "".join(json.dumps(row) + "\n" for row in measured[: None if finished else 3])
    (path / "metrics.jsonl").write_text(lines if finished else lines + '{"epoch": 3, "acc')
    if finished:
        last = {key: measured[-1][key] for key in ("accuracy", "validation_accuracy", "params", "architecture")}
        result = {
            "experiment": "moons", "mode": mode, "seed": options["seed"], "processes": 1, **last,
            "macs": 2 * last["params"], "training_macs": sum(row["training_macs"] for row in measured),
            "seconds": 83.0, "stages": [],
            "command": "npn run moons --epochs 4", "options": options, "versions": {"torch": "2.13.0"},
            "machine": {"processor": "a processor", "cores": 2},
        }  # fmt: skip
        (path / "result.json").write_text(json.dumps(result))
    return path
