"""The `npn` command. Importing this needs no extra; calling `app` needs `pip install 'npn[cli]'`."""

import sys
from collections.abc import Callable
from importlib.util import find_spec

EXTRAS = ("typer", "rich", "matplotlib", "sklearn", "pooch")  # modules of the `cli` extra
MISSING = [name for name in EXTRAS if find_spec(name) is None]


def refuse() -> None:
    """Say which packages are missing and how to install them, and exit with status 1."""
    sys.exit(f"the npn command needs {', '.join(MISSING)}, not installed here; install it with: pip install 'npn[cli]'")


app: Callable[[], object] = refuse
if not MISSING:
    from npn.cli.main import app as app
