"""Tables on a terminal and in a notebook: like layers share a line, text is escaped, sizes are those of the model."""

import io
import re
from itertools import pairwise

import pytest
import torch
from rich.console import Console
from torch import nn

import npn
from npn._utils.display import html_table, text_table
from npn._utils.naming import joined
from npn.experiments.report.console import ProgressDisplay, sparkline


class Block(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, hidden), nn.Linear(hidden, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Deep(nn.Module):
    def __init__(self, hidden=(16,) * 12):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(map(Block, hidden)), nn.Linear(8, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_twelve_like_layers_fit_a_screen():
    found = npn.inspect(Deep(), torch.zeros(1, 8))
    text = str(found)
    (line,) = [line for line in text.splitlines() if line.startswith("blocks")][:1]
    assert re.match(r"blocks\.0-11\.up +12 x 16 +12 x 272 +12 x 256 +blocks\.0-11\.down\.weight\[1\]", line)
    assert len(text.splitlines()) < 24
    everything = found.table(everything=True)
    assert all(re.search(rf"^blocks\.{i}\.up +16 ", everything, re.MULTILINE) for i in range(12))
    assert text.endswith(everything.splitlines()[-1])


def test_layers_of_other_sizes_have_lines_of_their_own():
    text = npn.inspect(Deep((16, 4, 16)), torch.zeros(1, 8)).table("net", width=200)
    rows = [re.split(r"  +", line)[:2] for line in text.splitlines() if line.startswith("blocks.")]
    assert rows[:2] == [["blocks.0,2.up", "2 x 16"], ["blocks.1.up", "4"]]
    assert text.startswith("net: ")


@pytest.mark.parametrize(("names", "name"), [
    (["0", "1", "2"], "0-2"),
    (["a.3.b"], "a.3.b"),
    (["l.1.c.0", "l.1.c.1"], "l.1.c.0-1"),
    (["l.1.c.0", "l.2.c.1"], "l.*.c.*"),
    (["h.0.w[1]", "h.9.w[1]", "h.10.w[1]"], "h.0,9-10.w[1]"),
])  # fmt: skip
def test_names_that_differ_in_a_number(names, name):
    assert joined(names) == name


def test_the_last_column_is_folded_to_the_terminal():
    text = text_table(("t", ["a", "n>", "why"], [["x", "1", "one two three four five six seven"]]), 32)
    assert max(map(len, text.splitlines())) <= 32
    assert text.splitlines()[3:] == ["x  1  one two three four five", "      six seven"]


def test_a_handle_and_a_resize_in_a_notebook():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("<b>", nn.Linear(4, 6))
            self.out = nn.Linear(6, 2)

        def forward(self, x):
            return self.out(torch.relu(self.get_submodule("<b>")(x)))

    plastic = npn.attach(Odd(), torch.zeros(1, 4))
    plastic.close("<b>", [1, 4])
    page = plastic._repr_html_()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    assert cells[:3] == ["&lt;b&gt;", "6", "4"] and "<b>" not in page
    assert "44 of 44 parameters at attach" in page and "out.weight[0]" in page and "output" in page
    report = plastic.compact()._repr_html_()
    assert re.findall(r"<td[^>]*>([^<]*)</td>", report) == ["&lt;b&gt;", "6", "4", "2", "0"]
    assert "44 -&gt; 30 parameters" in report
    assert "nothing changed" in plastic.compact()._repr_html_()
    inspected = npn.inspect(plastic.export(), torch.zeros(1, 4))._repr_html_()
    assert "&lt;b&gt;" in inspected and "<b>" not in inspected and "1 groups" in inspected


def test_html_is_balanced():
    text = html_table(("t", ["a", "b>"], [["1", "2"], ["3", "4"]]))
    for tag in ("table", "caption", "thead", "tbody", "tr", "th", "td"):
        assert len(re.findall(f"<{tag}[ >]", text)) == text.count(f"</{tag}>") > 0
    assert all(a < b for a, b in pairwise(text.index(f">{i}<") for i in "1234"))


def test_a_run_on_a_terminal_draws_size_and_accuracy():
    row = {"stage": "plastic", "k": 7.0, "architecture": "5-4-2"}
    shown = {}
    for terminal in (True, False):
        text = io.StringIO()
        with ProgressDisplay(Console(file=text, force_terminal=terminal, width=160), "moons") as display:
            for epoch, (params, accuracy) in enumerate([(90, 0.5), (50, 0.75), (10, 1.0)]):
                display.epoch({**row, "epoch": epoch, "params": params, "accuracy": accuracy}, 3)
        shown[terminal] = text.getvalue()
    assert "size █▅▁  accuracy ▁▅█" in shown[True] and "▅" not in shown[False]
    assert sparkline([]) == ""
