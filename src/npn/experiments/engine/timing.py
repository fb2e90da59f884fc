"""Times that can be compared on a busy machine: medians of calls that run in turn, in one process."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

Call = Callable[[], object]
Clock = Callable[[], float]


@dataclass
class Timing:
    """Times of one call, round by round.

    Attributes:
        seconds: per call.
        ratios: seconds over the mean of the baseline just before and after.
    """

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Return the median ratio with its quartiles, and the median of the seconds."""
        return {**quartiles(self.ratios), "seconds": statistics.median(self.seconds)}


def quartiles(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Compute median and quartiles.

    Args:
        values: at least one.
        digits: decimals to round to.

    Example:
        >>> quartiles([1.0, 2.0, 3.0])
        {'median': 2.0, 'quartile_low': 1.0, 'quartile_high': 3.0}
    """
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else 3 * [values[0]]
    return {
        "median": round(median, digits),
        "quartile_low": round(low, digits),
        "quartile_high": round(high, digits),
    }


def interleaved(
    calls: Mapping[str, Call],
    baseline: str,
    rounds: int,
    *,
    repeats: int = 3,
    warmup: int = 3,
    device: str = "cpu",
    clock: Clock | None = None,
) -> dict[str, Timing]:
    """Time every call between two runs of the baseline, in turn, for some rounds.

    A load that slows the machine down for a while slows both sides of each ratio. The baseline is compared with itself,
    too: the distance of its ratio from 1 is the noise.

    Args:
        calls: name -> function, which must allow any number of calls.
        baseline: name of the call that all are compared with.
        rounds: measurements of each call, at least 1.
        repeats: calls per measurement.
        warmup: rounds before those that count.
        device: to wait for, if it is a GPU.
        clock: see `seconds`.

    Returns:
        One `Timing` per name.
    """
    timings = {name: Timing() for name in calls}
    for round_ in range(-warmup, rounds):
        for name, call in calls.items():
            before, between, after = (
                seconds(c, repeats, device, clock=clock) for c in (calls[baseline], call, calls[baseline])
            )
            if round_ >= 0:
                timings[name].seconds.append(between)
                timings[name].ratios.append(between / ((before + after) / 2))
    return timings


def seconds(
    call: Call, repeats: int = 1, device: str = "cpu", *, warm: bool = True, clock: Clock | None = None
) -> float:
    """Measure the mean seconds per call.

    Args:
        call: to time.
        repeats: number of calls, at least 1.
        device: to wait for, if it is a GPU.
        warm: call once before, so that no call pays for the memory of the one before it.
        clock: `time.process_time`, which does not run while other work has the processor; None: `time.perf_counter`.
    """
    clock = time.perf_counter if clock is None else clock
    if warm:
        call()
    _wait(device)
    start = clock()
    for _ in range(repeats):
        call()
    _wait(device)
    return (clock() - start) / repeats


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
