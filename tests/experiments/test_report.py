"""The pages of runs: every part is there, nothing from elsewhere is needed, and names of any kind do no harm."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch
from plotly.offline import get_plotlyjs
from torch import nn
from typer.testing import CliRunner

import npn
from npn.cli import app
from npn.errors import CheckpointError
from npn.experiments.engine.options import Options
from npn.experiments.engine.pages import dense_run, read_run, write_page, write_report
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.report.html.charts import curves
from npn.experiments.report.html.moments import MOST, moments

from .runs import BINS, rows, write_run

EVIL = "</script><img src=x onerror=alert(1)>&amp;\"'$title"


class Page(HTMLParser):
    """What a browser makes of a page: elements, texts, and the content of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open = tag

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open == "script":
            self.scripts.append(data)
        elif data.strip():
            self.texts.append(data.strip())

    def having(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [own for kind, own in self.elements if kind == tag and wanted.items() <= own.items()]

    def ids(self, tag: str) -> list[str | None]:
        return [own["id"] for own in self.having(tag) if "id" in own]

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    return result.exit_code, result.output


def page_of(path: Path, **changes: Any) -> Page:
    out = write_page(path / "report.html", [replace(read_run(path), **changes)])
    return Page(out.read_text(encoding="utf-8"))


def figures(page: Page) -> dict[str, str]:
    """Title -> figure of each card."""
    start, end = page.texts.index("Test accuracy"), page.texts.index("Curves", page.texts.index("Test accuracy"))
    texts = page.texts[start:end]
    return {texts[i]: texts[i + 1] for i in range(len(texts) - 1)}


# -- one run


def test_every_part_is_there(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    sections = ["summary", "curves", "architecture", "gates", "layers", "settings", "environment", "command"]
    assert page.ids("section") == sections
    assert [each["id"] for each in page.data["charts"]] == ["score", "size", "cost", "units", "loss", "k"]
    for each in page.data["charts"]:
        assert page.having("div", id=f"chart-{each['id']}", tabindex="0")
    assert len(page.having("input", type="range")) == 2 and len(page.having("div", class_="chart histogram")) == 2
    shown = figures(page)
    assert (shown["Test accuracy"], shown["Parameters"], shown["MACs per example"]) == ("87.00%", "60", "120")
    assert (shown["MACs of the training"], shown["Time"], shown["Architecture"]) == ("480,000", "1 min 23 s", "4-2")
    assert "25% of 240 at the start" in page.texts and "from 16-8" in page.texts
    assert {"npn run moons --epochs 4", "a processor", "2.13.0", "budget"} <= set(page.texts)


def test_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    refers = [own.get(name) for _, own in page.elements for name in ("src", "href", "srcset", "action") if name in own]
    assert all(str(target).startswith(("#", "data:")) for target in refers)
    policy = page.having("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy is not None and policy.startswith("default-src 'none'; script-src 'unsafe-inline'; style-src")
    library, own = page.scripts[1:]
    assert library == get_plotlyjs() and "://" not in own
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8").replace(library, "")
    assert "://" not in text and "@import" not in text


def test_names_and_settings_are_text_wherever_they_stand(tmp_path: Path) -> None:
    name = EVIL.replace("/", "⁄")  # a folder's name has no slash
    run = write_run(tmp_path / name, layers={EVIL: 8, "b": 4}, data=EVIL)
    page = page_of(run, experiment=EVIL)
    assert not page.having("img") and len(page.scripts) == 3
    assert page.texts.count(name) == 2 and EVIL in page.texts  # title and heading; settings and layers
    assert [layer["name"] for layer in page.data["moments"]["layers"]] == [EVIL, "b"]
    out = tmp_path / "both.html"
    assert call(run, write_run(tmp_path / "other"), "--out", out)[0] == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert not page.having("img") and len(page.scripts) == 3 and EVIL in page.texts


def test_numbers_that_json_lacks_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    broken = [{**row, "loss": math.nan, "validation_loss": math.inf} for row in rows({"hidden": 16})]
    page = page_of(run, rows=broken)
    assert "loss" not in [each["id"] for each in page.data["charts"]]
    page = page_of(run, rows=[*broken[:-1], {**broken[-1], "loss": 0.5}])
    assert next(each for each in page.data["charts"] if each["id"] == "loss")["data"][0]["y"] == [None, None, None, 0.5]


def test_the_specifications_are_what_plotly_accepts(tmp_path: Path) -> None:
    def real(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: real(each) for key, each in value.items()}
        if isinstance(value, list):
            return [real(each) for each in value]
        return "#000000" if isinstance(value, str) and value.startswith("--") else value

    run = read_run(write_run(tmp_path / "run", layers={f"layer{i}": 8 for i in range(9)}))
    other = write_run(tmp_path / "other", mode="dense")
    out = write_page(tmp_path / "both.html", [run, read_run(other)])
    specs = [*curves(run), *Page(out.read_text(encoding="utf-8")).data["charts"]]
    assert len(specs) == 6 + 3
    for spec in specs:
        drawn = go.Figure(real(spec["data"]), real(spec["layout"]))  # raises for an unknown property or value
        assert len(drawn.data) == len(spec["data"]) > 0
    style = (tmp_path / "both.html").read_text(encoding="utf-8")
    for name in set(re.findall(r'"(--[a-z]+\d?)"', json.dumps(specs))):
        assert style.count(f" {name}: ") == 2, name  # light and dark


def test_moments_hold_the_ends_of_stages_and_what_is_gone() -> None:
    few = moments(rows({"hidden": 16}))
    assert few["epochs"] == [1, 2, 3, 4]
    assert few["jumps"] == [[0, "end of pretrain"], [2, "end of plastic"], [3, "end of finetune"]]
    layer = few["layers"][0]
    assert (layer["name"], layer["units"], layer["start"], layer["most"]) == ("hidden", [16, 8, 4, 4], 16, 16)
    assert few["keep"]["hidden"][1] == [0, 2, 0, 6] and few["absent"]["hidden"] == [0, 8, 12, 12]
    assert few["captions"][1] == "epoch 2 of 4 · plastic (k = 7) · accuracy 83.00% · 80 parameters"
    stages = (("pretrain", "inf"),) * 333 + (("plastic", 7.0),) * 667
    many = moments(rows({"hidden": 16}, stages))
    assert MOST <= len(many["epochs"]) <= MOST + 4 and {1, 333, 334, 1000} <= set(many["epochs"])
    assert all(len(counts) == BINS for counts in many["keep"]["hidden"])


def test_a_layer_may_leave_with_its_branch_and_gates_may_rest(tmp_path: Path) -> None:
    measured = rows({"a": 8, "b": 8})
    for row in measured[2:]:
        del row["units"]["b"], row["keep"]["b"]
    page = page_of(write_run(tmp_path / "run"), rows=measured)
    assert page.data["moments"]["layers"][1]["units"] == [8, 4, 0, 0]
    assert page.data["moments"]["absent"]["b"] == [0, 4, 8, 8]
    assert next(each for each in page.data["charts"] if each["id"] == "units")["data"][1]["y"] == [8, 4, None, None]
    page = page_of(write_run(tmp_path / "dense", mode="dense"))
    assert "No gate has moved: every epoch so far was one of k = ∞." in page.texts
    assert "k" not in [each["id"] for each in page.data["charts"]]


def test_many_layers_share_one_picture_of_their_gates(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", layers={f"layer{i}": 8 for i in range(13)}))
    assert page.having("div", id="all-gates") and not page.having("div", class_="chart histogram")


def test_tensors_and_pictures_of_the_folder_are_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    model = nn.Linear(3, 2)
    nn.init.ones_(model.weight)
    with torch.no_grad():
        model.weight[0] = 0.0
    npn.save(run / "model.pt", model)
    for name in ("boundary.png", "curves.png"):
        (run / name).write_bytes(b"a picture")
    page = page_of(run)
    position = page.texts.index("weight")
    assert page.texts[position + 1 : position + 5] == ["2 × 3", "6", "3", "75%"]
    assert [own["alt"] for own in page.having("img")] == ["boundary"]  # the page draws the other itself
    (run / "model.pt").write_bytes(b"of another version")
    assert "layers" in page_of(run).ids("section")


# -- against the dense run


def test_the_dense_run_beside_it_is_found(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sparsify-0")
    assert dense_run(read_run(run)) is None
    write_run(tmp_path / "dense-1", mode="dense", seed=1)
    write_run(tmp_path / "dense-0", mode="dense", finished=False)
    assert dense_run(read_run(run)) is None  # of another seed, or not finished
    dense = write_run(tmp_path / "dense-00", mode="dense", layers={"hidden": 32})
    found = dense_run(read_run(run))
    assert found is not None and found.path == dense
    assert dense_run(read_run(dense)) is None
    page = page_of(run, dense=found)
    assert "18.75% of 320 in the dense run" in page.texts
    assert (
        "+0.00 percentage points against the dense run" in page.texts
        and "100% of 1 min 23 s in the dense run" in page.texts
    )


def test_a_dense_run_that_the_settings_name_comes_first(tmp_path: Path) -> None:
    teacher = write_run(tmp_path / "elsewhere" / "teacher", mode="dense", seed=5)
    write_run(tmp_path / "dense-0", mode="dense")
    found = dense_run(read_run(write_run(tmp_path / "run", teacher=str(teacher))))
    assert found is not None and found.path == teacher


# -- the command


def test_the_command_writes_into_the_folder_or_where_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    code, output = call(run)
    assert code == 0 and (run / "report.html").is_file() and "report.html" in output
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    code, _ = call(run, "--out", tmp_path / "new" / "page.html", "--dense", write_run(tmp_path / "d", mode="dense"))
    page = Page((tmp_path / "new" / "page.html").read_text(encoding="utf-8"))
    assert code == 0 and "25% of 240 in the dense run" in page.texts
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


def test_a_run_that_was_killed_is_shown_as_far_as_it_came(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", finished=False)
    assert call(run)[0] == 0
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "Not finished:" in page.texts and f"npn run EXPERIMENT --resume --out {run}" in page.texts
    assert page.data["charts"][0]["data"][0]["x"] == [1, 2, 3]
    assert write_report(RunDirectory(run), "moons") == run / "report.html"
    assert f"npn run moons --resume --out {run}" in Page((run / "report.html").read_text(encoding="utf-8")).texts
    (run / "metrics.jsonl").unlink()  # before the first epoch
    page = page_of(run)
    assert page.ids("section") == ["summary", "settings", "environment", "command"] and "moments" not in page.data


def test_what_is_no_run_ends_in_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "a b")
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.mkdir()
    message = f"error: expected the folder of a run, but there is no folder {missing}; npn run makes one\n"
    assert call(missing) == call(run, missing) == (1, message)
    message = f"error: expected the folder of a run, but {empty} holds no options.json; npn run makes one\n"
    assert call(empty) == (1, message)
    message = f"error: {run.parent} is no run, but holds 1, such as {run}; to compare all: npn report {run.parent}/*\n"
    assert call(run.parent) == (1, message)
    message = "error: --dense is for the page of one run, got 2 runs; leave it out\n"
    assert call(run, empty, "--dense", run) == (1, message)
    assert call(run, "--out", empty)[1].startswith(f"error: {empty} is a folder; --out takes the path of a file")
    assert not (run / "report.html").exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]))
    with pytest.raises(CheckpointError, match=r"^line 2 of .*metrics\.jsonl is damaged: .*; start the run anew with"):
        read_run(run)
    (run / "options.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"options\.json is damaged: expected an object, got \[\]; start the run"):
        read_run(run)


def test_a_new_run_deletes_the_page_of_the_old_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert call(run)[0] == 0
    RunDirectory(run).start(Options())
    assert not (run / "report.html").exists()


# -- several runs


def test_runs_are_compared(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a" / "run")
    second = write_run(tmp_path / "b" / "run", layers={"hidden": 8}, k=5.0)
    killed = write_run(tmp_path / "b" / "killed", finished=False)
    assert call(second)[0] == 0  # has a page of its own
    out = tmp_path / "pages" / "all.html"
    assert call(first, second, killed, first, "--out", out)[0] == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert page.ids("section") == ["summary", "runs", "curves", "settings", "shared"]
    assert "3 runs compared" in page.texts and "Not finished: 1 of the runs. Their last epoch counts." in page.texts
    assert [own["href"] for own in page.having("a")] == ["#summary", "../b/run/report.html"]
    assert {"a/run", "b/run", "b/killed"} <= set(page.texts)  # two folders have the same name
    frontier, accuracy, params = page.data["charts"]
    line, points = frontier["choices"]["params"]["data"]
    assert line["x"] == [20]
    assert sorted(points["x"]) == [20, 60, 60] and set(frontier["choices"]) == {"params", "macs", "training", "seconds"}
    assert len(frontier["choices"]["seconds"]["data"][1]["x"]) == 2  # the killed run has no time
    assert [each["name"] for each in accuracy["data"]] == ["a/run", "b/run", "b/killed"] and len(params["data"]) == 3
    settings = page.texts[page.texts.index("Settings that differ", 12) :]
    assert settings[1:3] == ["run", "k"]


def test_experiments_that_differ_are_told_apart(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name) for name in ("a", "b")]
    result = json.loads((paths[1] / "result.json").read_text())
    (paths[1] / "result.json").write_text(json.dumps({**result, "experiment": "lenet5-mnist"}))
    assert call(*paths, "--out", tmp_path / "p.html")[0] == 0
    page = Page((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "These runs are of several experiments: their scores are of different data." in page.texts
    assert {"moons sparsify", "lenet5-mnist sparsify"} <= set(page.texts)


def test_a_score_may_be_better_where_it_is_lower(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b", layers={"hidden": 32})]
    for path, last in zip(paths, (1.5, 1.25), strict=True):
        for file in ("metrics.jsonl", "result.json"):
            text = (path / file).read_text().replace("accuracy", "bits_per_byte").replace("0.87", str(last))
            (path / file).write_text(text)
    page = page_of(paths[0], dense=read_run(paths[1]))
    assert {"Test bits per byte", "1.500", "+0.250 bits per byte against the dense run"} <= set(page.texts)
    assert page.data["charts"][0]["title"] == "Bits per byte" and page.data["charts"][0]["data"][0]["y"][
        -1
    ] == pytest.approx(1.5)
    assert page.data["moments"]["captions"][-1].endswith(" · 1.500 bits per byte · 60 parameters")
    out = write_page(tmp_path / "both.html", [read_run(path) for path in paths])
    line = Page(out.read_text(encoding="utf-8")).data["charts"][0]["data"][0]
    assert line["x"] == [60, 80] and line["y"] == pytest.approx([1.5, 1.25])
