"""The package as a whole: its names, its documentation, and that the documentation runs."""

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import npn.functional as functional

MODULES = ["columns", "cost", "enumerate", "estimators", "gates"]
CALLABLES = [name for name in functional.__all__ if inspect.isfunction(getattr(functional, name))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"npn.functional.{name}"))
    assert result.attempted >= 4 and result.failed == 0


def test_public_names_are_complete_and_sorted():
    assert functional.__all__ == sorted(functional.__all__)
    for name in MODULES:
        module = importlib.import_module(f"npn.functional.{name}")
        own = {key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        assert {key for key in own if not key.startswith("_")} <= set(functional.__all__)


@pytest.mark.parametrize("name", CALLABLES)
def test_every_function_is_documented_argument_by_argument(name):
    function = getattr(functional, name)
    document = inspect.getdoc(function)
    for section in ("Args:", "Returns:", "Example:"):
        assert section in document
    for parameter in inspect.signature(function).parameters:
        assert f"    {parameter}: " in document


def test_imports_nothing_above_its_level():
    allowed = ("npn.errors", "npn.functional")
    for path in Path(functional.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("npn"):
                assert node.module.startswith(allowed)
