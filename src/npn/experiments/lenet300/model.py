"""LeNet-300-100."""

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (300, 100)
WEIGHTS = 784 * WIDTHS[0] + WIDTHS[0] * WIDTHS[1] + WIDTHS[1] * 10  # 266,200, without biases


class LeNet300(nn.Module):
    """Three linear layers, ReLU between, on (B, 1, 28, 28).

    Args:
        first: units of the first layer.
        second: units of the second layer.
    """

    def __init__(self, first: int = WIDTHS[0], second: int = WIDTHS[1]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, 10).

        Args:
            x: (B, 1, 28, 28) images.
        """
        logits: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))
        return logits
