"""MNIST from its official IDX files: in a folder that the user names, else downloaded with checksums."""

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npn.errors import ConfigurationError
from npn.experiments.data.files import download, named_folder
from npn.experiments.data.splits import Data, Split

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
VALIDATION = 5000  # of the 60,000 training images
MEAN, STD = 0.1307, 0.3081  # of the training images


def mnist(folder: str | os.PathLike[str] | None = None) -> Data:
    """Read the 60,000 + 10,000 digits.

    The last 5,000 training images are the validation data.

    Args:
        folder: holds the four official `.gz` files, itself or in a folder `mnist`; the environment variable NPN_DATA if
            not given. Without either, the files are downloaded to the user's cache and checked.

    Returns:
        Images (n, 1, 28, 28), float32, the training images of zero mean and unit variance.

    Raises:
        ConfigurationError: the folder lacks a file, one is not the official file, or the download failed.
    """
    place = named_folder(folder)
    files = {name: _local(place, name) if place else _download(name) for name in SHA256}
    train, test = (
        Split(_images(files[f"{part}-images-idx3-ubyte.gz"]), _labels(files[f"{part}-labels-idx1-ubyte.gz"]))
        for part in ("train", "t10k")
    )
    rest, aside = (Split(train.x[part], train.y[part]) for part in (slice(-VALIDATION), slice(-VALIDATION, None)))
    return Data(rest, aside, test, classes=10)


def _local(folder: Path, name: str) -> Path:
    for place in (folder, folder / "mnist"):
        if (place / name).is_file():
            if hashlib.sha256((place / name).read_bytes()).hexdigest() != SHA256[name]:
                raise ConfigurationError(f"{place / name} is not the official file: its SHA-256 differs; get it anew")
            return place / name
    raise ConfigurationError(
        f"expected MNIST's {name} in {folder} or {folder / 'mnist'}; name the folder with --data or NPN_DATA, or leave "
        "both out to download the files"
    )


def _download(name: str) -> Path:
    return Path(download(URL + name, f"sha256:{SHA256[name]}"))


def _images(path: Path) -> Tensor:
    pixels = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return torch.from_numpy(pixels.astype(np.float32)).div_(255).sub_(MEAN).div_(STD)


def _labels(path: Path) -> Tensor:
    return torch.from_numpy(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=8).astype(np.int64))
