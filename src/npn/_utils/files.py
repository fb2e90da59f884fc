"""Files that appear whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


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
