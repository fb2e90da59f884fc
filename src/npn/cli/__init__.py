"""The command `npn`. To import this needs no extra; to call `app` needs `pip install 'npn[cli]'`."""

import sys
from collections.abc import Callable
from importlib.util import find_spec

MISSING = [name for name in ("typer", "rich", "matplotlib", "plotly", "sklearn", "pooch") if find_spec(name) is None]


def refuse() -> None:
    """Exit with status 1; say which packages of the extra are missing, and how to install them."""
    sys.exit(f"the npn command needs {', '.join(MISSING)}, not installed here; install it with: pip install 'npn[cli]'")


app: Callable[[], object] = refuse
if not MISSING:
    from npn.cli.main import app as app
