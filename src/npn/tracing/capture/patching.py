"""Other functions in place of PyTorch's own for the time of a trace, in the thread that traces."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def patched(owner: Any, instead: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside, in this thread, a class has other methods, or a module other functions.

    Args:
        owner: the class or module.
        instead: name of a function -> what is called: with the function as it was, then with its arguments.
    """
    thread = threading.get_ident()
    own = {name: vars(owner).get(name) for name in instead}

    def replacement(name: str) -> Callable[..., Any]:
        before: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return before(*args, **kwargs)
            return instead[name](before, *args, **kwargs)

        return call

    for name in instead:
        setattr(owner, name, replacement(name))
    try:
        yield
    finally:
        for name, function in own.items():
            if function is None:  # inherited, or made when it is asked for
                delattr(owner, name)
            else:
                setattr(owner, name, function)
