"""The two moons: two interleaved half circles in the plane."""

import torch

from npn.experiments.data.splits import Data, Split, split_off


def moons(seed: int, *, train: int = 500, validation: int = 100, test: int = 500, noise: float = 0.1) -> Data:
    """Draw two interleaved half circles, the data of the paper's section VI-A.

    Args:
        seed: draws the points and the split.
        train: number of training points, validation points included.
        validation: number of training points that are set aside.
        test: number of test points, drawn independently.
        noise: standard deviation of the Gaussian noise on each coordinate.

    Returns:
        Points (n, 2), float32, of the classes 0 and 1.
    """
    from sklearn.datasets import make_moons  # takes a second to import

    def draw(count: int, stream: int) -> Split:
        x, y = make_moons(n_samples=count, noise=noise, random_state=2 * seed + stream)
        return Split(torch.from_numpy(x).float(), torch.from_numpy(y).long())

    rest, aside = split_off(draw(train, 0), validation, seed)
    return Data(rest, aside, draw(test, 1), classes=2)
