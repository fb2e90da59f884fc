"""Where the files of a data set come from: a folder that the user names, else a download."""

import os
from pathlib import Path
from typing import Any

from npn.errors import ConfigurationError


def named_folder(folder: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder that the user names, or None to download.

    Args:
        folder: as given; the environment variable NPN_DATA counts if it is empty or None.
    """
    named = folder or os.environ.get("NPN_DATA")
    return Path(named) if named else None


def download(url: str, known_hash: str, processor: Any = None) -> Any:
    """Fetch a file into the user's cache, unless it is there, and check it.

    Args:
        url: of the file.
        known_hash: "sha256:..." or "md5:...".
        processor: one of pooch's, for archives.

    Returns:
        Its path, or the processor's result.

    Raises:
        ConfigurationError: the download failed, or gave another file.
    """
    import pooch  # only a download needs it, and it takes a while to import

    name = url.rpartition("/")[2]
    try:
        return pooch.retrieve(url, known_hash, fname=name, path=pooch.os_cache("npn"), processor=processor)
    except (OSError, ValueError) as error:  # errors of requests are OSErrors, a wrong checksum is a ValueError
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(
            f"expected to download {url}, got {why}; fetch it elsewhere and name its folder with --data or NPN_DATA"
        ) from error
