"""The cost of one resize of LeNet-5 in dense training steps, and the functions that take most of it.

A tenth of the units of every group is removed and added again, so that every round starts at the same size.

Run: python benchmarks/resize.py --rounds 30 --threads 1
"""

import cProfile
import pstats
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import npn
from common import BATCH_SIZE, batch, lenet5, parser, timing_table, training_step, write
from npn.experiments.engine.timing import Timing, seconds
from npn.surgery import plan_growth, plan_removal
from npn.tracing import grown

SHARE = 0.1
DENSE = "dense training step"
CLOCK = time.process_time


class Subject:
    """LeNet-5 with gates and Adam state, and the parts of a resize of it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.x, self.y = batch()
        self.model = lenet5()
        self.plastic = npn.attach(self.model, self.x[:2])
        self.plastic.k = 7.0
        self.optimizers = (
            torch.optim.AdamW(self.plastic.weights(), lr=1e-4),
            torch.optim.Adam(self.plastic.logits(), lr=0.0),
        )
        self.plastic.track(*self.optimizers)
        self.more = {group.name: max(1, round(SHARE * group.size)) for group in self.plastic.groups}
        self.step()

    def step(self) -> None:
        """A plastic training step."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.plastic.backward(lambda: F.cross_entropy(self.model(self.x), self.y))
        for optimizer in self.optimizers:
            optimizer.step()

    def close(self) -> None:
        """Shut a tenth of every group, for `compact` to find."""
        for group in self.plastic.groups:
            self.plastic.close(group, range(0, 10 * self.more[group.name], 10))

    def whole(self) -> dict[str, Callable[[], object]]:
        """The resizes as a user calls them, each with the next step, which builds masks and costs again."""
        return {
            "compact": self.plastic.compact,
            "plastic step after compact": self.step,
            "grow": lambda: self.plastic.grow(self.more),
            "plastic step after grow": self.step,
            "plastic step": self.step,
        }

    def parts(self) -> dict[str, Callable[[], object]]:
        """The same two resizes, part by part."""
        plastic, made = self.plastic, {}
        gone = {g.name: list(range(0, 10 * self.more[g.name], 10)) for g in plastic.groups}

        def trace() -> None:
            with plastic.masked_weights.step():
                made["larger"] = grown(plastic.model, plastic.example_inputs, plastic.structure, self.more)

        return {
            "compact: plan": lambda: made.update(plan=plan_removal(plastic.structure, gone)),
            "compact: apply": lambda: plastic._resize(made["plan"]),
            "grow: re-trace": trace,
            "grow: plan": lambda: made.update(plan=plan_growth(plastic.structure, made["larger"])),
            "grow: apply": lambda: plastic._resize(made["plan"]),
        }


def measure(rounds: int, warmup: int = 2) -> dict[str, dict[str, float]]:
    """Measure the time of everything over that of a dense step just before and after.

    Args:
        rounds: measurements of each.
        warmup: rounds before those that count.

    Returns:
        Name -> summary of its `Timing`.
    """
    subject, (x, y) = Subject(), batch(BATCH_SIZE)
    model = lenet5()
    dense = training_step(model, torch.optim.AdamW(model.parameters(), lr=1e-4), x, y)
    calls = {DENSE: dense, **subject.whole(), **subject.parts()}
    timings = {name: Timing() for name in calls}
    for round_ in range(-warmup, rounds):
        for name, call in calls.items():
            if name == "compact":
                subject.close()
            before, between, after = (seconds(c, warm=c is dense, clock=CLOCK) for c in (dense, call, dense))
            if round_ >= 0:
                timings[name].seconds.append(between)
                timings[name].ratios.append(between / ((before + after) / 2))
    return {name: timing.summary() for name, timing in timings.items()}


def hottest(resizes: int, count: int = 12) -> dict[str, list[dict[str, object]]]:
    """Find the functions in which `compact` and `grow` spend most time, callees included.

    Args:
        resizes: number of resizes under the profiler.
        count: number of functions.

    Returns:
        "compact" and "grow" -> functions with their shares of the time.
    """
    subject = Subject()
    profiles = {"compact": cProfile.Profile(), "grow": cProfile.Profile()}
    for _ in range(resizes):
        subject.close()
        profiles["compact"].runcall(subject.plastic.compact)
        profiles["grow"].runcall(subject.plastic.grow, subject.more)
        subject.step()
    return {name: _hottest(pstats.Stats(profile), count) for name, profile in profiles.items()}


def _hottest(stats: pstats.Stats, count: int) -> list[dict[str, object]]:
    table = stats.get_stats_profile().func_profiles
    total = max(entry.cumtime for entry in table.values())
    ours = [(name, entry) for name, entry in table.items() if "npn" in entry.file_name]
    ours.sort(key=lambda item: -item[1].cumtime)
    return [
        {
            "function": f"{entry.file_name.rpartition('npn/')[2]}:{name}",
            "share": round(entry.cumtime / total, 3),
            "own_share": round(entry.tottime / total, 3),
        }
        for name, entry in ours[:count]
    ]


def main() -> None:
    """Measure, print the table, write it."""
    options = parser(
        __doc__, "resize", rounds=(30, "resizes"), profiled=(10, "resizes under the profiler")
    ).parse_args()
    torch.set_num_threads(options.threads)
    timings, profile = measure(options.rounds), hottest(options.profiled)
    tables = [timing_table(timings, "what")]
    for name, entries in profile.items():
        lines = [f"- {100 * e['share']:.0f} % {e['function']}" for e in entries]
        tables.append("\n".join([f"Where the profiler saw `{name}` (callees included):", "", *lines]))
    notes = [
        f"LeNet-5 20-50-800-500, a tenth of every group goes and comes back, AdamW state on the weights, batch "
        f"{BATCH_SIZE}. Ratio: CPU seconds over those of a dense training step just before and after, median of "
        f"{options.rounds} rounds; the dense step's own row shows the noise. `grow` traces the model at its new size."
    ]
    found = {"rounds": options.rounds, "share": SHARE, "ratio_over_dense_step": timings, "profile": profile}
    print(*tables, sep="\n\n")
    write(options.out, "One resize in dense training steps", found, tables, notes)


if __name__ == "__main__":
    main()
