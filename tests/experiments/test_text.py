"""Text as windows of bytes: split by file, the same on every call, refused where there is too little."""

import hashlib
import sysconfig
from pathlib import Path

import pytest
import torch

from npn.errors import ConfigurationError
from npn.experiments.data.text import text


def write(folder, count=40, length=100):
    """Each file holds its own byte only."""
    for i in range(count):
        file = folder / f"part{i % 3}" / f"{i}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes([65 + i]) * length)
    return folder


def read(folder, **more):
    return text(folder, **{"context": 10, "drawn": 7, "held_out": 5} | more)


def test_files_are_split_and_windows_are_followed_by_their_next_byte(tmp_path):
    data, about = read(write(tmp_path))
    assert about["files"] == 40 and about["bytes"] == [36 * 101, 2 * 101, 2 * 101]
    parts = [set(split.x.unique().tolist()) - {0} for split in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [36, 2, 2] and len(set.union(*parts)) == 40
    for split in (data.train, data.validation, data.test):
        assert split.x.dtype == split.y.dtype == torch.int64 and split.x.shape == split.y.shape
        assert torch.equal(split.x[:, 1:], split.y[:, :-1])
    assert len(data.train) == 36 * 101 - 10 and data.epoch == 7
    assert torch.equal(data.train.x[1:, 0], data.train.y[:-1, 0])
    assert data.train.x.untyped_storage().nbytes() == 8 * 36 * 101, "views, no copies"


def test_held_out_windows_do_not_overlap(tmp_path):
    write(tmp_path)
    few, all_of_them = (read(tmp_path, held_out=count)[0].validation for count in (5, 1000))
    assert len(few) == 5 and len(all_of_them) == (202 - 1) // 10
    whole = torch.cat([all_of_them.x.flatten(), all_of_them.y[-1, -1:]])
    starts = [next(i for i in range(len(all_of_them)) if torch.equal(row, all_of_them.x[i])) for row in few.x]
    assert starts == sorted(starts) and torch.equal(whole[1:], all_of_them.y.flatten())
    two = text(tmp_path, context=3, drawn=7, held_out=4)[0].validation.x
    assert len(two) == 4


def test_the_same_text_has_the_same_windows_and_hash_and_another_has_not(tmp_path):
    (one, about), (two, again) = read(write(tmp_path)), read(tmp_path)
    assert about == again and torch.equal(one.test.x, two.test.x)
    parts = [bytes(part) for part in (one.train.x[:, 0].tolist(),)]
    assert parts[0][:5] == parts[0][:1] * 5
    (tmp_path / "part0" / "0.txt").write_bytes(b"other")
    assert read(tmp_path)[1]["sha256"] != about["sha256"]


def test_hidden_and_binary_files_are_no_text(tmp_path):
    about = read(write(tmp_path))[1]
    (tmp_path / ".hidden").write_text("a" * 99)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("b" * 99)
    (tmp_path / "picture.bin").write_bytes(b"c\0d" * 99)
    assert read(tmp_path)[1] == about


def test_where_there_is_no_text_or_too_little(tmp_path):
    with pytest.raises(ConfigurationError) as error:
        read(tmp_path / "none")
    assert str(error.value) == (
        f"expected a folder of text files, found none at {tmp_path / 'none'}; name another with --text"
    )
    (tmp_path / "a").write_bytes(b"123456789")
    with pytest.raises(ConfigurationError) as error:
        read(tmp_path)
    assert str(error.value) == (
        "expected more than 10 bytes of text for training, validation and testing each, found 0, 10, 0 in 1 files of "
        f"{tmp_path}; name another folder with --text, or give a shorter --context"
    )


def test_the_standard_librarys_sources_are_read_by_name_only(tmp_path, monkeypatch):
    for name in ("os.py", "email/a.py", "email/b.py", "json/c.py", "notes.txt", "test/t.py", "site-packages/s.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"# {name}\n" * 5)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    _, about = text(context=10, drawn=7, held_out=5)
    assert about["files"] == 4 and about["folder"] == "Python's standard library"
    names = sorted(
        ["os.py", "email/a.py", "email/b.py", "json/c.py"], key=lambda n: hashlib.sha256(n.encode()).digest()
    )
    whole = b"".join(Path(tmp_path / n).read_bytes() + b"\0" for n in [*names[2:], *names[:2]])
    assert about["sha256"] == hashlib.sha256(whole).hexdigest()
