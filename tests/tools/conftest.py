"""The tools are no package of the distribution: their folder, and that of the fake library, join the path."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FOLDERS = (HERE.parents[1] / "tools", HERE)


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
