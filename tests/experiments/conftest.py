"""A short run of each mode, made once."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from npn.experiments.data.splits import Data, Split
from npn.experiments.engine import runner
from npn.experiments.engine.options import Options
from npn.experiments.engine.recipe import Outcome, Row
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.moons import recipe as moons
from npn.experiments.report import figures

EPOCHS = "3,12,3"


class Recorder:
    """An observer that only remembers."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.stages: list[str] = []

    def epoch(self, row: Row, epochs: int) -> None:
        self.epochs.append(row["epoch"])

    def stage(self, entry: Row) -> None:
        self.stages.append(entry["stage"])


def squares(train: int, others: int) -> Data:
    """Three classes of bright squares, in so many images, that a small net learns at once."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Split:
        y = torch.arange(count) % 3
        x = 0.1 * torch.randn(count, 1, 28, 28, generator=generator)
        for i, label in enumerate(y.tolist()):
            x[i, 0, 8 * label : 8 * label + 8, 4:20] += 2.0
        return Split(x, y)

    return Data(draw(train), draw(others), draw(others), classes=10)


@contextmanager
def unrendered(*but: str) -> Iterator[None]:
    """Figures are put together, but only those of these names rendered: it takes longer than a short training."""
    render = figures.save

    def save(figure: Figure, path: Path) -> Path:
        if path.name in but:
            return render(figure, path)
        path.write_bytes(b"-")
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", save)
        yield


def short_run(mode: str, path: Path) -> tuple[Outcome, RunDirectory]:
    directory = RunDirectory(path)
    # a high price, so that units go within the few epochs of a test
    options = Options(mode=mode, seed=1, epochs=EPOCHS, penalty=5e-3)
    return runner.run(moons.EXPERIMENT, options, directory, Recorder()), directory


@pytest.fixture(scope="module", autouse=True)
def traces_once(traces_are_shared: None) -> None:
    """Every run attaches one of the same few models."""


@pytest.fixture(scope="session", params=["sparsify", "expand"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, RunDirectory]:
    return short_run(request.param, tmp_path_factory.mktemp(request.param))
