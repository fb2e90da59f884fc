"""The code of docs/methods.md runs, and its table names every method."""

import re
from pathlib import Path

import npn
from npn import methods

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


def test_the_loop_trains_to_the_budget_and_exports_a_plain_model():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, object] = {}
    exec(code, scope)
    x, y, small = scope["x"], scope["y"], scope["small"]
    full = 8 * 64 + 64 + 64 * 32 + 32 + 32 * 2 + 2
    assert npn.count_params(small) < 0.35 * full
    assert (small(x).argmax(1) == y).float().mean() > 0.9


def test_every_method_has_a_row():
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert rows == set(methods.__all__) - {"Method", "DualRestarts"}
