"""A LightningModule that knows nothing of npn, made small while a Trainer trains it.

Run: python examples/lightning_mnist_like.py (needs: pip install 'npn[lightning]'; synthetic digits, some seconds).
"""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import npn
from npn.integrations.lightning import PlasticityCallback


class Classifier(pl.LightningModule):
    """As anyone would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 32), nn.ReLU(),
            nn.Linear(32, 4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        x, y = batch
        scores = self(x)
        self.log("val_loss", F.cross_entropy(scores, y))
        self.log("val_accuracy", (scores.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def digits(count: int) -> TensorDataset:
    """Images of four kinds of bars, with noise."""
    y = torch.randint(4, (count,))
    x = 0.5 * torch.randn(count, 1, 12, 12)
    for kind, (rows, columns) in enumerate([(slice(2, 4), slice(None)), (slice(8, 10), slice(None)),
                                            (slice(None), slice(2, 4)), (slice(None), slice(8, 10))]):  # fmt: skip
        chosen = (y == kind).nonzero().reshape(-1)
        x[chosen, :, rows, columns] += 1.0
    return TensorDataset(x, y)


def main() -> tuple[float, int, int]:
    """Train, and return validation accuracy and parameters before and after."""
    pl.seed_everything(0)
    module = Classifier()
    plasticity = PlasticityCallback(
        npn.Schedule(npn.Stage("pretrain", 1), npn.Stage("plastic", 5, k=7.0), npn.Stage("finetune", 2)),
        penalty=npn.Penalty(cost="params", weight=5e-5),
        gate_lr=5e-2,
        target="net",
    )
    trainer = pl.Trainer(
        max_epochs=8, accelerator="cpu", callbacks=[plasticity], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    before = npn.count_params(module.net)
    trainer.fit(module, DataLoader(digits(512), 32, shuffle=True), DataLoader(digits(256), 256))
    accuracy = float(trainer.callback_metrics["val_accuracy"])
    small = plasticity.export()  # a plain nn.Sequential
    print(small)
    print(f"{before} parameters became {npn.count_params(small)}; validation accuracy {accuracy:.1%}")
    return accuracy, before, npn.count_params(small)


if __name__ == "__main__":
    main()
