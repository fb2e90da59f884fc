"""CIFAR: the official binary layout, what is refused, and the statistics."""

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from npn.errors import ConfigurationError
from npn.experiments.data import cifar

COUNTS = {"cifar10": (4, 3), "cifar100": (20, 3)}  # images per file of the two parts


@pytest.fixture
def small(monkeypatch):
    """The official sources with few images per file."""
    for name, (train, test) in COUNTS.items():
        source = cifar.SOURCES[name]
        fewer = replace(source, train=dict.fromkeys(source.train, train), test=dict.fromkeys(source.test, test))
        monkeypatch.setitem(cifar.SOURCES, name, fewer)
    monkeypatch.delenv("NPN_DATA", raising=False)
    return cifar.SOURCES


def write(folder: Path, source: cifar.Source) -> dict[str, np.ndarray]:
    """Files of that source with random content; file name -> records."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    written = {}
    for file, count in (source.train | source.test).items():
        labels = rng.integers(0, source.classes, (count, source.labels))
        pixels = rng.integers(0, 256, (count, cifar.PIXELS))
        written[file] = np.concatenate([labels, pixels], axis=1).astype(np.uint8)
        written[file].tofile(folder / file)
    return written


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("where", [".", "folder", "name", "name/folder"])
def test_every_image_is_where_it_belongs(tmp_path, small, name, where):
    source = small[name]
    inside = tmp_path / where.replace("folder", source.folder).replace("name", name)
    records = write(inside, source)
    data = cifar.cifar(name, tmp_path, validation=6)
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 6, 3) and data.classes == source.classes
    assert data.train.x.dtype == torch.uint8
    for records_of, splits in (
        (np.concatenate([records[file] for file in source.train]), [data.train, data.validation]),
        (records[next(iter(source.test))], [data.test]),
    ):
        found = {x.numpy().tobytes(): int(y) for split in splits for x, y in zip(split.x, split.y, strict=True)}
        expected = {row[source.labels :].tobytes(): int(row[source.labels - 1]) for row in records_of}
        assert found == expected
    last = records[next(iter(source.test))][-1]  # red, green and blue planes, row by row
    assert int(data.test.x[-1, 2, 5, 7]) == last[source.labels + 2 * 1024 + 5 * 32 + 7]


def test_the_validation_images_are_always_the_same(tmp_path, small):
    write(tmp_path, small["cifar10"])
    torch.manual_seed(1)
    first = cifar.cifar("cifar10", tmp_path, validation=6)
    torch.manual_seed(2)
    assert torch.equal(first.validation.x, cifar.cifar("cifar10", tmp_path, validation=6).validation.x)


def test_the_environment_names_the_folder(tmp_path, small, monkeypatch):
    write(tmp_path, small["cifar10"])
    monkeypatch.setenv("NPN_DATA", str(tmp_path))
    assert len(cifar.cifar("cifar10", validation=6).test) == 3


def test_without_a_folder_the_archive_is_fetched_with_its_checksum(tmp_path, small, monkeypatch):
    pooch = pytest.importorskip("pooch")
    source = small["cifar100"]
    write(tmp_path / source.folder, source)
    with tarfile.open(tmp_path / source.archive, "w:gz") as archive:
        archive.add(tmp_path / source.folder, source.folder)
    asked = []

    def retrieve(url, known_hash, fname, path, processor):
        asked.append((url, known_hash))
        return processor(str(tmp_path / fname), "download", None)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert len(cifar.cifar("cifar100", validation=6).test) == 3
    assert asked == [
        ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "md5:03b5dce01913d631647c71ecec9e9cb8")
    ]


def test_what_is_refused(tmp_path, small):
    with pytest.raises(ConfigurationError) as error:
        cifar.cifar("cifar1000", tmp_path)
    assert str(error.value) == "dataset must be one of 'cifar10', 'cifar100', got 'cifar1000'"
    with pytest.raises(ConfigurationError) as error:
        cifar.cifar("cifar100", tmp_path)
    assert str(error.value) == (
        f"expected the binary version of cifar100 (train.bin, test.bin) in {tmp_path} or its folder cifar-100-binary "
        "or cifar100; name the folder with --data or NPN_DATA, or leave both out to download cifar-100-binary.tar.gz"
    )
    write(tmp_path, small["cifar100"])
    whole = (tmp_path / "test.bin").read_bytes()
    (tmp_path / "test.bin").write_bytes(whole[:-1])
    with pytest.raises(ConfigurationError) as error:
        cifar.cifar("cifar100", tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'test.bin'} is not the official file: expected 9,222 bytes (3 images of 3,074), got 9,221; "
        "get it anew, in the binary version"
    )
    (tmp_path / "test.bin").write_bytes(b"\x00\xff" + whole[2:])
    with pytest.raises(ConfigurationError) as error:
        cifar.cifar("cifar100", tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'test.bin'} is not the official file: expected classes 0 to 99, got 255; "
        "get it anew, in the binary version"
    )


def test_the_official_sizes():
    """An image is 3,073 bytes in CIFAR-10 and 3,074 in CIFAR-100; 50,000 and 10,000 of them."""
    for source, labels in ((cifar.SOURCES["cifar10"], 1), (cifar.SOURCES["cifar100"], 2)):
        assert source.labels == labels
        assert (sum(source.train.values()), sum(source.test.values())) == (50_000, 10_000)


def test_statistics_and_normalisation():
    images = torch.randint(0, 256, (1500, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 3
    mean, std = cifar.statistics(images)
    reference = images.double() / 255
    torch.testing.assert_close(mean.double(), reference.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(std.double(), reference.std((0, 2, 3), correction=0), rtol=1e-5, atol=0)
    out = cifar.normalised(images, mean, std)
    assert out.dtype == torch.float32 and images.dtype == torch.uint8
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(3), rtol=1e-3, atol=0)
