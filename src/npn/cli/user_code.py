"""What a command line names in the user's own code: import it, call it, and say in one line what is wrong with it."""

import contextlib
import importlib
import os
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

import npn
from npn.errors import ConfigurationError, PlasticityError
from npn.export import write_model

_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
_NPN = str(Path(npn.__file__).parent)


def make_model(factory: str) -> nn.Module:
    """Make the model that a command line names.

    Args:
        factory: `package.module:name` of a module, or of a function that makes one.

    Raises:
        ConfigurationError: `name` cannot be found, is neither, needs arguments or fails.
    """
    made = imported(factory)
    if not isinstance(made, nn.Module) and callable(made):
        made = called(made, factory)
    if not isinstance(made, nn.Module):
        raise ConfigurationError(f"{factory} is a {type(made).__name__}, expected a torch.nn.Module")
    return made


def called(function: Any, factory: str) -> Any:
    """Call a function that a command line names, without arguments.

    Args:
        function: to call.
        factory: `package.module:name` of it.

    Raises:
        ConfigurationError: it needs arguments, or fails.
    """
    needed = []
    with contextlib.suppress(TypeError, ValueError):  # some builtins have no signature
        parameters = signature(function).parameters.values()
        needed = [
            p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
    module, _, name = factory.partition(":")
    if needed:
        last, given = name.rpartition(".")[2], ", ".join(f"{name}=..." for name in needed)
        raise ConfigurationError(
            f"{factory} needs arguments: {', '.join(needed)}; name a function that needs none, for example "
            f"`def net(): return {last}({given})` in a file of your own"
        )
    with one_line(factory, f'see it alone with python -c "import {module}; {module}.{name}()"'):
        return function()


def imported(factory: str) -> Any:
    """Import the object that a command line names.

    Args:
        factory: `package.module:name`; modules are found from the working directory, too.

    Raises:
        ConfigurationError: `name` cannot be found, or its module fails.
    """
    module_name, _, attribute = factory.partition(":")
    path = module_name.removesuffix(".py").replace(os.sep, ".").strip(".")
    if module_name != path and attribute and path:
        raise ConfigurationError(
            f"expected a module as Python imports it, got {factory!r}; did you mean '{path}:{attribute}'?"
        )
    if not module_name or not attribute:
        hint = f"; did you mean '{':'.join(path.rsplit('.', 1))}'?" if path == factory and "." in path else ""
        raise ConfigurationError(
            f"expected MODULE:FACTORY, for example my_package.models:resnet20, got {factory!r}{hint}"
        )
    sys.path.insert(0, os.getcwd())
    try:
        with one_line(f"importing {module_name}", f'see it alone with python -c "import {module_name}"'):
            made: Any = importlib.import_module(module_name)
    except ConfigurationError as error:
        missing = str(getattr(error.__cause__, "name", None))
        if isinstance(error.__cause__, ModuleNotFoundError) and f"{module_name}.".startswith(f"{missing}."):
            near = _meant(missing.rpartition(".")[2], _modules_beside(missing))
            raise ConfigurationError(
                f"cannot find {factory!r}: {error.__cause__}; {near}it is looked up from {os.getcwd()}"
            ) from error.__cause__
        raise
    finally:
        sys.path.remove(os.getcwd())
    for part in attribute.split("."):
        if not hasattr(made, part):
            what = (
                f"module {module_name!r}"
                if isinstance(made, ModuleType)
                else repr(getattr(made, "__name__", type(made).__name__))
            )
            near = _meant(part, (name for name, value in vars(made).items() if callable(value) or _is_pair(value)))
            raise ConfigurationError(
                f"cannot find {factory!r}: {what} has no attribute {part!r}; {near}"
                f"it is looked up in {getattr(made, '__file__', None) or module_name}"
            )
        made = getattr(made, part)
    return made


def written(model: nn.Module, example: Any, path: Path, format: str) -> Path:
    """Write a model to a file, see `npn.export.write_model`; what PyTorch or a format cannot do becomes one line.

    Args:
        model: plain model.
        example: example inputs.
        path: path of the file.
        format: of the file.

    Returns:
        The path.

    Raises:
        ConfigurationError: the model cannot be written in this format.
    """
    try:
        return write_model(model, example, path, format)
    except PlasticityError:
        raise
    except Exception as error:
        reason = _short(str(error))
        instead = (
            "call npn.export.write_model in Python"
            if format == "safetensors"
            else "--format safetensors writes the weights"
        )
        raise ConfigurationError(
            f"the model cannot be written as {format}: {type(error).__name__}: {reason}; {instead}"
        ) from error


def _short(text: str, most: int = 300) -> str:
    """Text on one line, its end left out where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " ..."


@contextlib.contextmanager
def one_line(what: str, hint: str, *, named: bool = True) -> Iterator[None]:
    """Inside, an error raised in the user's code becomes an error of npn with its file and line.

    Args:
        what: failed, at the beginning of the message.
        hint: what to do, at its end.
        named: whether the user has named what runs here, so that errors from installed packages count as well.

    Raises:
        ConfigurationError: in place of any error but those of npn itself.
    """
    try:
        yield
    except PlasticityError:
        raise
    except (Exception, SystemExit) as error:
        where = user_line(error, named)
        if where is None:
            raise
        reason = _short(error.msg if isinstance(error, SyntaxError) else str(error))
        if isinstance(error, SystemExit):
            hint = "put what a script does under if __name__ == '__main__'"
        elif isinstance(error, ModuleNotFoundError):
            hint = "install the package that has it where npn runs"
        raise ConfigurationError(f"{what} failed at {where}: {type(error).__name__}: {reason}; {hint}") from error


def user_line(error: BaseException, installed: bool) -> str | None:
    """`file:line` of the user's code in which an error was raised, or that called what raised it.

    Args:
        error: with its traceback.
        installed: take the line in an installed package if no file of the user took part.

    Returns:
        The line; None if there is none.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{Path(error.filename).name}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_NPN, "<"))]
    own = [f for f in frames if not f.filename.startswith(_INSTALLED)]
    chosen = own or (frames if installed else [])
    return f"{Path(chosen[-1].filename).name}:{chosen[-1].lineno}" if chosen else None


def _is_pair(value: Any) -> bool:
    return isinstance(value, (nn.Module, tuple)) and not isinstance(value, type)


def _meant(name: str, there: Iterable[str]) -> str:
    """The nearest of the names that are there, as a question."""
    lower = {other.lower(): other for other in there if not other.startswith("_")}
    near = get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(repr(lower[other]) for other in near)}? " if near else ""


def _modules_beside(missing: str) -> list[str]:
    """Names of the modules in the folder in which one is missing."""
    parent = missing.rpartition(".")[0]
    folders = getattr(sys.modules.get(parent), "__path__", [os.getcwd()]) if parent else [os.getcwd()]
    return [module.name for module in pkgutil.iter_modules(list(folders))]
