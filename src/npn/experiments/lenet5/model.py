"""LeNet5-Caffe, and the number of its weights."""

from torch import Tensor, nn
from torch.nn import functional as F

FULL = (20, 50, 500)  # channels, channels, hidden units: where sparsify starts, and the most that expand may reach
PLAIN = (8, 10, 18)  # proportions of the plain nets that are trained from scratch for comparison


class LeNet5(nn.Module):
    """Conv 5x5 - pool - conv 5x5 - pool - linear - linear, ReLU between, on (B, 1, 28, 28).

    Args:
        first: channels of the first convolution.
        second: channels of the second convolution.
        hidden: hidden units.
    """

    def __init__(self, first: int = FULL[0], second: int = FULL[1], hidden: int = FULL[2]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.fc1 = nn.Linear(16 * second, hidden)
        self.fc2 = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, 10).

        Args:
            x: (B, 1, 28, 28) images.
        """
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


def count_weights(first: int, second: int, features: int, hidden: int) -> int:
    """Count the weights of the four layers, without biases.

    Args:
        first: channels of the first convolution.
        second: channels of the second convolution.
        features: inputs of the first linear layer.
        hidden: hidden units.

    Example:
        >>> count_weights(20, 50, 800, 500)
        430500
    """
    return 25 * first + 25 * first * second + features * hidden + 10 * hidden
