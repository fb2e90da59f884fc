"""The bench of the GPT: which runs it makes, and what it writes of them."""

import json

import pytest

from npn.experiments.engine.options import in_one_stage
from npn.experiments.engine.rundir import RunDirectory, write_json
from npn.experiments.language import bench as language_bench
from npn.experiments.language import recipe as language
from npn.experiments.language.arms import COMPARED, LABELS, arms
from npn.experiments.language.options import LanguageOptions

WHOLE = 1000  # MACs of a window of the full net
PER_EPOCH = {"dense": 3000, "expand": 1500, "sparsify": 2000, "scratch": 1500}
LOSS = {"dense": 2.0, "expand": 1.9, "sparsify": 2.2, "scratch": 2.5}  # after the last epoch; 0.1 more an epoch before


def made_up(asked):
    """Trains nothing, but writes what a run would: each epoch takes a second."""

    def train(experiment, options, path, resume):
        asked.append((path.name, options))
        directory, mode = RunDirectory(path), options.mode
        directory.start(options)
        epochs = int(in_one_stage(options.epochs, (1, 1, 1)))
        for epoch in range(epochs):
            bits = LOSS[mode] + 0.1 * (epochs - 1 - epoch) + 0.01 * options.seed
            directory.append(
                {"validation_bits_per_byte": bits, "bits_per_byte": bits, "training_macs": PER_EPOCH[mode]}
            )
        last = {"validation_bits_per_byte": bits, "bits_per_byte": bits + 0.5, "architecture": "1(2)", "params": 7}
        sizes = {"macs": WHOLE if options.budget is None else options.budget * WHOLE, "params_with_biases": 8}
        text = {"folder": "f", "files": 3, "bytes": [90, 5, 5], "sha256": "ab"}
        common = {
            "versions": {"torch": "1"},
            "machine": dict.fromkeys(("processor", "cores", "threads", "device"), "m"),
        }
        write_json(
            directory.result_file,
            {
                **last, **sizes, **common, "experiment": "gpt-text", "mode": mode, "seed": options.seed, "context": 10,
                "base": {"macs": WHOLE}, "width": 32, "text": text, "training_macs": epochs * PER_EPOCH[mode],
                "seconds": float(epochs), "epochs_ended": [float(i + 1) for i in range(epochs)],
                "stages": [{"epochs": epochs}], "options": options.as_dict(),
            },
        )  # fmt: skip

    return train


@pytest.fixture
def written(tmp_path):
    def bench(names, seeds=(0, 1)):
        asked = []
        options = LanguageOptions(epochs="1,3,2", precision="bf16")
        files = language_bench.bench(tmp_path / "r", tmp_path / "runs", options, seeds, names, [0.5], made_up(asked))
        return files, asked, json.loads(files[0].read_text())

    return bench


def test_runs_that_cost_as_much_as_others_follow_them(written):
    files, asked, _ = written(["dense-macs", "scratch-macs", "found", "expand-pair"], seeds=[0])
    assert [name for name, _ in asked] == [
        "dense-0", "expand-0", "dense-macs-0", "scratch-0.5-0", "sparsify-0.5-0", "scratch-macs-0.5-0", "found-0.5-0",
        "expand-pair-0",
    ]  # fmt: skip
    settings = dict(asked)
    assert settings["dense-macs-0"].epochs == "3", "6 epochs at 1,500 MACs are 3 at 3,000"
    assert settings["scratch-macs-0.5-0"].epochs == "8", "6 epochs at 2,000 MACs are 8 at 1,500"
    assert settings["found-0.5-0"].like.endswith("sparsify-0.5-0")
    inits = {name: each.growth_init for name, each in asked}
    assert inits["expand-pair-0"] == "pair" and {inits[name] for name in inits if name != "expand-pair-0"} == {None}
    assert all(file.stat().st_size > 0 for file in files)


def test_what_the_files_say(written):
    files, _, summary = written(["dense", "expand", "dense-macs", "sparsify", "scratch"])
    assert [(point["mode"], point["budget"], point["runs"]) for point in summary["points"]] == [
        ("dense", None, 2), ("expand", None, 2), ("dense-macs", None, 2), ("sparsify", 0.5, 2), ("scratch", 0.5, 2)
    ]  # fmt: skip
    # growth is below 2.0 after its fifth epoch of six, at 1,500 MACs each, of the full net's 18,000; a short full net
    # of three epochs ends at the same loss by construction
    expected = {"expand": 5 * 1500 / 18000, "dense-macs": 3 * 3000 / 18000}
    for entry in summary["reached"]:
        share = expected.get(entry["mode"])  # smaller nets do not reach it
        assert entry["macs"] == ([None] * 2 if share is None else pytest.approx([share] * 2))
        assert entry["seeds"] == [0, 1]
    assert [(entry["mode"], entry["budget"]) for entry in summary["reached"]] == [
        ("expand", None), ("dense-macs", None), ("sparsify", 0.5), ("scratch", 0.5)
    ]  # fmt: skip
    assert summary["reached"][0]["seconds"] == pytest.approx([5 / 6] * 2)
    pairs = {(each["first"], each["second"]): each["bits_per_byte"] for each in summary["differences"]}
    assert pairs["expand", "dense"]["mean"] == pytest.approx(-0.1)
    assert pairs["sparsify", "scratch"]["mean"] == pytest.approx(-0.3)
    page = files[1].read_text()
    assert "| full net | 6 | 2 | 0.000 M | 100.0% | 0.00 T | 100.0% | **2.005** ± 0.007 | **2.505** ± 0.007 |" in page
    assert "| shrunk by npn, budget 0.5 | 0 of 2 |  |  |" in page
    assert "| grown by npn from a fifth | 2 of 2 | 0.42 ± 0.00 | 0.83 ± 0.00 |" in page
    assert "| expand - dense |  | 2 | -0.100 ± 0.000 | -0.100 ± 0.000 |" in page
    assert "| bits per byte | budget | seeds | test loss | validation loss |" in page
    assert "3 files, split by file into 90, 5, 5 bytes for training, validation and testing, sha256 `ab`" in page


def test_a_loss_that_is_never_reached(written, monkeypatch):
    monkeypatch.setitem(LOSS, "expand", 2.05)
    files, _, summary = written(["dense", "expand"])
    never = {"seeds": [0, 1], "macs": [None, None], "seconds": [None, None]}
    assert summary["reached"] == [{"mode": "expand", "budget": None, **never}]
    assert "| grown by npn from a fifth | 0 of 2 |  |  |" in files[1].read_text()


def test_every_arm_has_a_label_and_depends_on_arms_that_there_are():
    found = arms([0.5])
    assert set(LABELS) == set(found) and {name for pair in COMPARED for name in pair} <= set(found)
    assert {arm.mode for arm in found.values()} == set(language.STAGES)
    for arm in found.values():
        assert {arm.like, arm.macs_of, arm.base} - {None} <= set(found)
