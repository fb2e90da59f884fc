"""Seeds, spreads and tables."""

import sys

import pytest

from npn.errors import ConfigurationError
from npn.experiments.engine.options import parse_seeds
from npn.experiments.report import provenance, tables


@pytest.mark.parametrize(("text", "seeds"), [("0-4", [0, 1, 2, 3, 4]), ("3", [3]), ("0, 5-6,9", [0, 5, 6, 9])])
def test_seeds_are_numbers_and_ranges(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "4-2"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="seed"):
        parse_seeds(text)


def result(seed: int, accuracy: float, params: int) -> dict[str, object]:
    return {
        "seed": seed,
        "accuracy": accuracy,
        "params": params,
        "params_with_biases": params + 7,
        "macs": params,
        "architecture": "3-5-2",
        "seconds": 2.0 * seed,
    }


def test_a_summary_holds_mean_and_spread_of_the_seeds() -> None:
    entry = tables.summarise([result(0, 0.99, 20), result(1, 1.0, 30)])
    assert entry["runs"] == 2
    assert entry["accuracy"]["mean"] == pytest.approx(0.995)
    assert entry["params"] == {"mean": 25.0, "std": pytest.approx(50**0.5), "min": 20, "max": 30}
    assert [seed["params_with_biases"] for seed in entry["seeds"]] == [27, 37]
    assert tables.summarise([result(0, 0.99, 20)])["params"]["std"] == 0.0


def test_the_table_shows_each_seed_and_the_mean() -> None:
    table = tables.seeds_table({"expand": tables.summarise([result(0, 0.99, 20), result(1, 1.0, 30)])})
    lines = table.splitlines()
    assert len(lines) == 5
    assert "| expand | 0 | 99.00% | 20 |" in lines[2]
    assert "**99.50%** ± 0.71" in lines[4] and "**25.0** ± 7.1" in lines[4]


def test_the_ratio_is_that_of_the_larger_to_the_smaller() -> None:
    assert tables.ratio(10.0, 15.0) == tables.ratio(15.0, 10.0) == 1.5


def test_the_command_is_as_a_user_types_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/npn", "run", "moons", "--out", "a b"])
    assert provenance.command_line() == "npn run moons --out 'a b'"
    monkeypatch.setattr(sys, "argv", ["/somewhere/npn/__main__.py", "run", "moons"])
    assert provenance.command_line() == "npn run moons"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert provenance.command_line() == "OMP_NUM_THREADS=2 npn run moons"


def test_the_environment_names_what_a_number_depends_on() -> None:
    assert {"python", "npn", "torch", "numpy", "scikit-learn"} <= set(provenance.versions())
    machine = provenance.machine()
    assert machine["cores"] >= 1 and machine["processor"] and machine["device"] == "cpu"
