"""Forward passes that ask for values: which are given, and whether what is computed depends on made-up ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from npn.errors import TraceError
from npn.tracing.capture.known_values import KnownValues, needs_values
from npn.tracing.capture.lines import asking_line, calling_line, is_users_own

T = TypeVar("T")
_NUMBERS = (0.37, 41.7, -5.3)  # that are tried in place of any one
_MOST = 4096  # numbers and answers in one forward pass
_RUNS = 24  # forward passes with other answers


class MadeUp(KnownValues):
    """Fake tensors that answer `.item()`, `float` and `if` with made-up values, where they have none.

    Args:
        number: for every number.
        answers: line of code -> answer to every `if` there; False elsewhere.
        assume_half: see `KnownValues`.

    Attributes:
        asked: line of code -> answer that was given.
        lines: of forward passes at which a number or an answer was made up.

    Example:
        >>> mode = MadeUp(0.37, {})
        >>> with mode:
        ...     torch.empty(3).sum().item(), bool((torch.empty(3) > 0).any())
        (0.37, False)
    """

    def __init__(self, number: float, answers: Mapping[str, bool], assume_half: bool = False) -> None:
        super().__init__(assume_half)
        self.number, self.answers = number, answers
        self.asked, self.lines, self._count = dict[str, bool](), dict[str, None](), 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        asks = func is torch.ops.aten._local_scalar_dense.default and not self._follows(func, args, kwargs or {})
        if not asks or self._count == _MOST:
            return super().__torch_dispatch__(func, types, args, kwargs)
        self._count += 1
        dtype, self.lines[calling_line()[0]] = args[0].dtype, None
        if dtype == torch.bool:
            line = asking_line()
            return self.asked.setdefault(line, self.answers.get(line, False))
        return self.number if dtype.is_floating_point or dtype.is_complex else round(self.number)


def with_known_values(call: Callable[[FakeTensorMode], T], form: Callable[[T], Any]) -> T:
    """Call something with fake tensors; where it asks for values, again with those of inputs and buffers.

    Where it asks for other values, as a log and an assertion do, several made-up ones are tried, and it has to give the
    same with all of them. Where it picks rows by other values, half of them, if nothing fails then.

    Args:
        call: runs a forward pass on fake tensors of this mode.
        form: of a result, the same for results that are alike.

    Raises:
        Exception: what `call` raised; where it picks rows by other values, from what it raised with half of them.
    """
    try:
        return call(FakeTensorMode(allow_non_fake_inputs=True))
    except Exception as error:
        if not needs_values(error):
            raise
    try:
        return call(KnownValues())
    except Exception as error:
        if not needs_values(error):
            raise
        found = _independent(call, form)
        if found:
            return found[0]
        try:
            return call(KnownValues(assume_half=True))
        except TraceError:
            raise
        except Exception as then:
            found = _independent(call, form, half=True) if needs_values(then) or _refuses(then) else []
            if found:
                return found[0]
            raise error from then


def _independent(call: Callable[[FakeTensorMode], T], form: Callable[[T], Any], half: bool = False) -> list[T]:
    """What `call` gives, if it gives the same with every answer that it does not refuse; else nothing."""
    results: list[T] = []
    ways: list[dict[str, bool]] = [{}]
    for number in _NUMBERS:
        runs = 0
        while ways:
            runs += 1
            if runs > _RUNS:
                return []
            answers = ways.pop()
            mode = MadeUp(number, answers, half)
            try:
                result = call(mode)
            except Exception as error:
                if not _refuses(error):
                    return []
            else:
                if results and form(result) != form(results[0]):
                    return []
                results.append(result)
                accepted = mode.asked
            new = [line for line in mode.asked if line not in answers]
            given = dict(answers)
            for line in new:  # every other way to go on from here
                ways.append({**given, line: True})
                given[line] = False
        if not results:
            return []
        ways = [accepted]
    return results[:1]


def _refuses(error: Exception) -> bool:
    """Whether the code has refused an answer, by an assertion or a `raise` of its own."""
    return not needs_values(error) and is_users_own(error)
