"""Files that appear whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def why_not_writable(path: str | os.PathLike[str]) -> str | None:
    """Why no file can be written at a path, and what to do; None if one can, once the missing folders are made.

    Args:
        path: of the file.

    Example:
        >>> why_not_writable("/")
        '/ is a folder; give the path of a file'
    """
    path = Path(path)
    if path.is_dir():
        return f"{path} is a folder; give the path of a file"
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir():
        return f"{path} cannot be written, because {there} is a file; give another path"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{path} cannot be written, because the folder {there} may not be written to; give another path"
    return None


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Replace a file in one step: a reader, and a crash at any moment, finds the old file or the new one.

    The content goes to a temporary file in the same folder, is flushed to the disk, and is moved into place.

    Args:
        path: of the file; its folder must exist.
        write: writes the content to the binary file that it is given. If it raises, `path` stays as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(f"{folder}/note.txt", lambda file: file.write(b"done"))
        ...     Path(folder, "note.txt").read_text()
        'done'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
