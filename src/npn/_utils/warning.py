"""Warn with the line of the user's code that called npn, however deep in npn the reason was found."""

import os
import sysconfig
import traceback
import warnings
from pathlib import Path

_OWN = str(Path(__file__).parents[1]) + os.sep


def warn(message: str) -> None:
    """Issue a `UserWarning` at the innermost line outside of npn and of installed code, if there is one.

    A trainer, `copy.deepcopy` or a context manager may stand between the user's line and npn. `skip_file_prefixes` of
    `warnings.warn` would do, but Python 3.11 does not have it.

    Args:
        message: of the warning.
    """
    installed = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    files = [frame.filename for frame in reversed(traceback.extract_stack())]
    outside = [level for level, file in enumerate(files, 1) if not file.startswith((_OWN, "<frozen"))]
    own = [level for level in outside if not files[level - 1].startswith(installed)]
    warnings.warn(message, stacklevel=(own or outside or [1])[0])
