"""The pages of runs in a real browser, without a window: no errors, and everything answers to mouse and keyboard.

One start of Chromium for each scheme of colours shows both pages, one at the width of a telephone and one at that of a
desk, in frames that report to the page around them.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from npn.experiments.engine.pages import read_run, write_page

from .runs import write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HERE = Path(__file__).parent
SHOWN = {"light": {"run": 390, "all": 1440}, "dark": {"run": 1440, "all": 390}}  # page -> width
FRAMES = """<style>iframe { border: 0; }</style><body><script>
const found = {};
addEventListener("message", (event) => {
  const frame = [...document.querySelectorAll("iframe")].find((each) => each.contentWindow === event.source);
  found[frame.id] = JSON.parse(event.data);
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>%s<pre id="found">nothing</pre></body>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def watched(page: Path) -> None:
    """Let a page tell what goes wrong in it, and use itself."""
    text = page.read_text(encoding="utf-8")
    watch, check = (
        f"<script>{(HERE / name).read_text()}</script>" for name in ("browser_watch.js", "browser_check.js")
    )
    page.write_text(text.replace("<title>", f"{watch}<title>", 1).replace("</body>", f"{check}</body>", 1))


@pytest.fixture(scope="module", params=["light", "dark"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], str]:
    """Scheme of colours, what each frame has found, and what Chromium has logged."""
    folder: Path = tmp_path_factory.mktemp("pages")
    long = "a.layer.with.a.long.name.in.a.block.of.many"
    paths = [
        write_run(
            folder / "one", layers={long: 16, "output": 8}, data="</script><script>problems.push(1)</script>" + "x" * 90
        ),
        write_run(folder / "two", k=5.0),
    ]
    runs = [read_run(path) for path in (*paths, write_run(folder / "three", mode="dense", layers={"hidden": 40}))]
    write_page(folder / "run.html", runs[:1])
    write_page(folder / "all.html", runs)
    frames = ""
    for name, width in SHOWN[request.param].items():
        watched(folder / f"{name}.html")
        frames += f'<iframe id="{name}" src="{name}.html" width="{width}" height="900"></iframe>'
    (folder / "frames.html").write_text(FRAMES % frames)
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1500,4000", "--virtual-time-budget=20000",
        f"--blink-settings=preferredColorScheme={('dark', 'light').index(request.param)}",
        "--enable-logging=stderr", "--dump-dom", f"file://{folder / 'frames.html'}",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=180)
    dumped = re.search(r'<pre id="found">(.*?)</pre>', result.stdout, re.DOTALL)
    assert dumped is not None, result.stderr[-2000:]
    return request.param, json.loads(html.unescape(dumped[1])), result.stderr


def test_every_frame_works_without_an_error(seen: tuple[str, dict[str, Any], str]) -> None:
    _, found, log = seen
    assert sorted(found) == ["all", "run"]
    for name, each in found.items():
        assert each["problems"] == [] and each["resources"] == [], name
        assert each["drawn"] and each["tables"], name
    assert "CONSOLE" not in log


def test_pages_are_legible_at_both_widths_and_in_both_schemes(seen: tuple[str, dict[str, Any], str]) -> None:
    scheme, found, _ = seen
    for name, each in found.items():
        content, room, window = each["width"]
        assert content <= room <= window == SHOWN[scheme][name], name
        assert each["cut"] == [], name
        assert each["contrast"] >= 4.5, name  # WCAG AA
        light = int(re.findall(r"\d+", each["background"])[0]) > 127
        assert light == (scheme == "light")


def test_hovering_shows_the_same_epoch_in_every_chart(seen: tuple[str, dict[str, Any], str]) -> None:
    for name, each in seen[1].items():
        assert re.search(r"8[1357]", each["hover"]) and each["linked"], name
        assert each["focused"] and each["reading"].startswith("epoch 2: "), name
        assert "81" in each["keyed"], name  # the first epoch, by the key Home


def test_the_slider_moves_architecture_and_gates(seen: tuple[str, dict[str, Any], str]) -> None:
    each = seen[1]["run"]
    end, start, jumped, by_count = (each[key] for key in ("end", "start", "jumped", "byCount"))
    assert each["sliderFocused"]
    assert (end["widths"], start["widths"]) == (["25%", "25%"], ["100%", "100%"])
    assert (end["counts"], start["counts"]) == (["4 of 16", "2 of 8"], ["16 of 16", "8 of 8"])
    assert start["captions"] == 2 * ["epoch 1 of 4 · pretrain (k = ∞) · accuracy 81.00% · 240 parameters"]
    assert (start["values"], end["values"], jumped["values"]) == (["0"] * 2, ["3"] * 2, ["2"] * 2)
    assert (start["gone"], end["gone"], jumped["gone"]) == (0, 12, 12)
    assert by_count["widths"] == ["25%", "12.5%"]


def test_tables_are_sorted_and_the_frontier_takes_another_size(seen: tuple[str, dict[str, Any], str]) -> None:
    each = seen[1]["all"]
    assert each["rising"] == ["60", "60", "400"] and each["falling"] == ["400", "60", "60"]
    assert each["sort"] == "descending"
    assert each["xs"] == [60, 60] and each["over"] == [[120, 120], "MACs per example", 1]
