"""Renames `Example:` in docstrings to `Examples:`, which is the name under which mkdocstrings shows code."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the section in every docstring that has doctests in it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename it in one object.

        Args:
            obj: with its docstring, if it has one.
        """
        if obj.docstring and ">>>" in obj.docstring.value:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
