"""The network of the two moons."""

import torch
from torch import Tensor, nn

FULL = (100, 80)  # features and hidden units that sparsify starts with, and the most that expand may reach


class MoonsNet(nn.Module):
    """A fixed random projection of the plane to `features`, then Linear-ReLU-Linear.

    In the paper, the projection prepares the data: it is not trained, and its weights are not counted.

    Args:
        features: width of the projection.
        hidden: hidden units.
    """

    def __init__(self, features: int = FULL[0], hidden: int = FULL[1]) -> None:
        super().__init__()
        self.projection = nn.Linear(2, features, bias=False).requires_grad_(False)
        self.hidden = nn.Linear(features, hidden)
        self.output = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, 2).

        Args:
            x: (B, 2) points.
        """
        logits: Tensor = self.output(torch.relu(self.hidden(self.projection(x))))
        return logits


def sizes(features: int, hidden: int) -> dict[str, int]:
    """Count the parameters of a network.

    Args:
        features: width of the projection.
        hidden: hidden units.

    Returns:
        `params`: weights of the two trained layers without biases, as the paper counts; `params_with_biases`: those
        with biases; `params_total`: all parameters, projection and biases included, as penalty and budget count.

    Example:
        >>> sizes(100, 80)
        {'params': 8160, 'params_with_biases': 8242, 'params_total': 8442}
    """
    weights = features * hidden + hidden * 2
    trained = weights + hidden + 2
    return {"params": weights, "params_with_biases": trained, "params_total": trained + 2 * features}
