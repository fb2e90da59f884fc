"""CIFAR-10 and CIFAR-100 from their official binary files: in a folder that the user names, else downloaded."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npn.errors import ConfigurationError
from npn.experiments.data.files import download, named_folder
from npn.experiments.data.splits import Data, Split, split_off

URL = "https://www.cs.toronto.edu/~kriz/"
PIXELS = 3 * 32 * 32
VALIDATION = 5000  # of the 50,000 training images
VALIDATION_SEED = 0  # the same images for every run


@dataclass(frozen=True)
class Source:
    """The official files of one data set.

    Attributes:
        train: file name -> number of images in it.
        test: file name -> number of images in it.
        folder: name of the folder in the archive.
        labels: number of label bytes before each image; the last of them is the class.
        classes: number of classes.
        archive: file name at `URL`.
        md5: checksum of the archive, as published with it.
    """

    train: Mapping[str, int]
    test: Mapping[str, int]
    folder: str
    labels: int
    classes: int
    archive: str
    md5: str


SOURCES = {
    "cifar10": Source(
        {f"data_batch_{i}.bin": 10_000 for i in range(1, 6)}, {"test_batch.bin": 10_000}, "cifar-10-batches-bin",
        1, 10, "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530",
    ),
    "cifar100": Source(
        {"train.bin": 50_000}, {"test.bin": 10_000}, "cifar-100-binary",
        2, 100, "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8",
    ),
}  # fmt: skip


def cifar(name: str = "cifar10", folder: str | os.PathLike[str] | None = None, validation: int = VALIDATION) -> Data:
    """Read the 50,000 + 10,000 images.

    Args:
        name: "cifar10" or "cifar100".
        folder: holds the official binary files, itself or in a folder of the archive's or the data set's name; the
            environment variable NPN_DATA if not given. Without either, the archive is downloaded to the user's cache
            and checked.
        validation: number of training images that are set aside, the same ones each time.

    Returns:
        Images (n, 3, 32, 32), uint8; `statistics` and `normalised` turn them into floats.

    Raises:
        ConfigurationError: an unknown data set, a folder without the official files, or a download that failed.
    """
    if name not in SOURCES:
        raise ConfigurationError(f"dataset must be one of {', '.join(map(repr, SOURCES))}, got {name!r}")
    source = SOURCES[name]
    named = named_folder(folder)
    place = _local(named, name, source) if named else _download(source)
    train, test = (
        _joined([_read(place / file, count, source) for file, count in files.items()])
        for files in (source.train, source.test)
    )
    rest, aside = split_off(train, validation, VALIDATION_SEED)
    return Data(rest, aside, test, source.classes)


def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean and standard deviation of each channel, on a scale of 0 to 1.

    Args:
        images: uint8 (n, channels, height, width).

    Returns:
        Two float32 tensors (channels,), on the images' device.

    Example:
        >>> mean, std = statistics(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
        >>> float(mean), float(std)
        (0.5, 0.5)
    """
    total, squares = torch.zeros(2, images.shape[1], dtype=torch.int64, device=images.device)
    for part in images.split(1024):  # whole numbers: exact, and the same on every device
        total += part.sum((0, 2, 3), dtype=torch.int64)
        squares += part.int().square().sum((0, 2, 3), dtype=torch.int64)
    count = images.numel() // images.shape[1]
    mean = total.double() / count
    variance = squares.double() / count - mean.square()
    return (mean / 255).float(), (variance.sqrt() / 255).float()


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale images to zero mean and unit variance per channel.

    Args:
        images: (B, C, H, W), uint8.
        mean: (C,) as `statistics` gives it.
        std: (C,) as `statistics` gives it.

    Returns:
        (B, C, H, W), float32, on the images' device.
    """
    return images.float().div_(255).sub_(mean[:, None, None]).div_(std[:, None, None])


def _local(folder: Path, name: str, source: Source) -> Path:
    files = (*source.train, *source.test)
    places = [folder, folder / source.folder, folder / name, folder / name / source.folder]
    for place in places:
        if all((place / file).is_file() for file in files):
            return place
    raise ConfigurationError(
        f"expected the binary version of {name} ({', '.join(files)}) in {folder} or its folder {source.folder} or "
        f"{name}; name the folder with --data or NPN_DATA, or leave both out to download {source.archive}"
    )


def _download(source: Source) -> Path:
    import pooch  # only a download needs it

    unpacked = download(URL + source.archive, f"md5:{source.md5}", pooch.Untar())
    wanted = next(iter(source.test))
    return next(Path(file).parent for file in unpacked if Path(file).name == wanted)


def _read(path: Path, count: int, source: Source) -> Split:
    expected, found = count * (source.labels + PIXELS), path.stat().st_size
    if found != expected:
        raise ConfigurationError(
            f"{path} is not the official file: expected {expected:,} bytes ({count:,} images of "
            f"{source.labels + PIXELS:,}), got {found:,}; get it anew, in the binary version"
        )
    records = torch.from_numpy(np.fromfile(path, np.uint8)).view(count, source.labels + PIXELS)
    y = records[:, source.labels - 1].long()
    if int(y.max()) >= source.classes:
        raise ConfigurationError(
            f"{path} is not the official file: expected classes 0 to {source.classes - 1}, got {int(y.max())}; "
            "get it anew, in the binary version"
        )
    return Split(records[:, source.labels :].reshape(count, 3, 32, 32), y)


def _joined(parts: list[Split]) -> Split:
    return Split(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))
