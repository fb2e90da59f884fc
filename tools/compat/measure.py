"""One model in a process of its own: attach, shrink, grow, train one step; each stage is written down at its end."""

import copy
import json
import os
import re
import resource
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

TOLERANCE = 1e-5  # of the output's scale


class Report:
    """The record of one model; every change is on disk before the next stage begins, in case the process is ended."""

    def __init__(self, path: str) -> None:
        self.path, self.values = Path(path), dict[str, Any](failed={})

    def put(self, **values: Any) -> None:
        """Take over values and write the file."""
        self.values.update(values)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.values))
        part.replace(self.path)

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Run one stage; an error is recorded, and None returned."""
        self.put(stage=name)
        try:
            return work()
        except Exception as error:
            if "can't allocate memory" in str(error) or isinstance(error, MemoryError):
                raise MemoryError from error
            self.values["failed"][name] = describe(error)
            return None


def describe(error: BaseException) -> dict[str, str]:
    """An error in one line, with the place in the library and the place in the model's code where it began."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return {"error": f"{type(error).__name__}: {text}"[:400], "raised": _place(error), "began": _place(root)}


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno}" if frames else ""


def plain(reason: str) -> str:
    """A reason without places, numbers and names, so that equal ones count together.

    Example:
        >>> plain("the code fixes this size at vit.py:12: shape '[2, 5]' is invalid")
        'the code fixes this size'
    """
    reason = re.sub(r" \(streams=True may let them go\)|, which (comes from here|the code computes for).*", "", reason)
    reason = re.sub(r"it shares the attribute .*", "it shares an integer attribute with other groups", reason)
    reason = re.sub(r",? (?:called )?at (?:\S+\.py:\d+(?: \(\w+\))?|unknown line)", "", reason).split(": ")[0]
    return re.sub(r"\d+", "#", reason)[:120]


def measure(module: str, name: str, report: Report, onnx: bool) -> None:
    """All stages of one model; see `docs/compatibility.md` for what each number means."""
    built = report.stage("build", lambda: import_module(module).build(name))
    if built is None:
        return
    import torch

    import npn
    from compat import numbers

    model, inputs = built
    numbers.perturb(model)
    report.put(params=npn.count_params(model))
    with torch.no_grad():
        full = report.stage("run", lambda: numbers.outputs(model, inputs))
    if full is None:
        return
    start, clock = time.process_time(), time.perf_counter()
    plastic = report.stage("attach", lambda: _attached(model, inputs, report))
    report.put(seconds=round(time.process_time() - start, 2), wall=round(time.perf_counter() - clock, 2))
    if plastic is None:
        return
    frozen: Counter[str] = Counter()
    for item in plastic.frozen:
        frozen[plain(item.reason)] += len(item.slots or ()) or 1
    report.put(
        attached=True,
        groups=len(plastic.groups),
        share=round(1 - plastic.minimum_cost("params") / report.values["params"], 4),
        frozen=dict(frozen.most_common()),
    )
    _resizes(plastic, inputs, report, onnx)


def _attached(model: Any, inputs: Any, report: Report) -> Any:
    """Attach; where nothing can be resized otherwise, with `streams=True`, as the error advises."""
    import npn
    from npn.errors import TraceError

    try:
        return npn.attach(model, inputs)
    except TraceError as error:
        if "streams=True gives" not in str(error):
            raise
        report.put(streams=True)
        return npn.attach(model, inputs, streams=True)


def _resizes(plastic: Any, single: Any, report: Report, onnx: bool) -> None:
    import torch

    model = plastic.model
    with torch.no_grad():
        context, inputs = _precision(model, single)
        with context:
            report.put(precision="float32" if inputs is single else "float64")
            _compare(plastic, inputs, report)
    model.float()
    plastic.example_inputs = single
    report.stage("step", lambda: _step(plastic, single))
    if onnx:
        found = report.stage("onnx", lambda: _onnx(plastic.export().float().eval(), single))
        report.put(onnx=found)


def _precision(model: Any, single: Any) -> tuple[AbstractContextManager[None], Any]:
    """Double precision where the code allows it, in which an error of surgery stands far above rounding.

    Args:
        model: takes the precision.
        single: inputs in single precision.

    Returns:
        The context in which to run the model, and its inputs.
    """
    from compat import numbers

    inputs = numbers.as_double(single)
    model.double()
    for context in (nullcontext, numbers.code_in_double):
        with suppress(Exception), context():
            numbers.outputs(model, inputs)
            return context(), inputs
    model.float()
    return nullcontext(), single


def _compare(plastic: Any, inputs: Any, report: Report) -> None:
    """Exported, compacted and grown against masked."""
    from compat import numbers

    model = plastic.model
    plastic.example_inputs = inputs  # of the same precision, for the trace of growth
    full = numbers.outputs(model, inputs)
    numbers.close_third(plastic)
    masked = numbers.outputs(model, inputs)
    report.put(moved=numbers.relative_error(full, masked) > 1e-9)

    def compacted() -> Any:
        plastic.compact()
        return model

    def grown() -> Any:
        able = [group for group in plastic.groups if group.grows]
        chosen = {able[i].name: 2 + i % 2 for i in {0, len(able) // 2, len(able) - 1}} if able else {}
        plastic.grow(chosen)
        return model

    def error(what: Callable[[], Any]) -> float:
        return numbers.relative_error(masked, numbers.outputs(what(), inputs))

    errors: dict[str, float] = {}
    for stage, what in (("export", lambda: plastic.export()), ("compact", compacted), ("grow", grown)):
        found = report.stage(stage, lambda what=what: error(what))
        if found is not None:
            errors[stage] = float(f"{found:.1e}")
            report.put(errors=errors)


def _step(plastic: Any, inputs: Any) -> None:
    """One training step under gates at k = 7: every gradient is finite, and every gate has one."""
    from compat import numbers

    model = plastic.model.train()
    plastic.k = 7.0

    def loss() -> Any:
        return sum(t.float().pow(2).mean() for t in numbers.outputs(model, inputs) if t.requires_grad)

    plastic.backward(loss)
    missing = [group.name for group in plastic.groups if group.gate.logits.grad is None]
    if missing:
        raise AssertionError(f"gates without a gradient: {', '.join(missing[:3])}")
    tensors = [*model.named_parameters(), *((group.name, group.gate.logits) for group in plastic.groups)]
    bad = [name for name, p in tensors if p.grad is not None and not bool(p.grad.isfinite().all())]
    if bad:
        raise AssertionError(f"gradients that are not finite: {', '.join(bad[:3])}")


def _onnx(model: Any, inputs: Any) -> float:
    """Error of the exported small model in onnxruntime."""
    import onnxruntime
    import torch
    from torch.utils._pytree import tree_leaves

    from compat import numbers
    from npn.export import write_model

    if hasattr(getattr(model, "config", None), "use_cache"):
        model.config.use_cache = False  # a decoding cache is not the model's answer, and no format holds one
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        expected = numbers.outputs(model, inputs)
        path = write_model(model, inputs, Path(folder) / "model.onnx", "onnx")
        session = onnxruntime.InferenceSession(str(path))
        given = [x for x in tree_leaves(inputs) if isinstance(x, torch.Tensor)]
        feed = {slot.name: x.numpy() for slot, x in zip(session.get_inputs(), given, strict=True)}
        found = [torch.from_numpy(x) for x in session.run(None, feed)]
    return float(f"{numbers.relative_error(expected, found):.1e}")


def compare_peer(module: str, name: str, report: Report) -> None:
    """The same model half-pruned by Torch-Pruning."""
    built = report.stage("build", lambda: import_module(module).build(name))
    if built is None:
        return
    from compat import numbers, peers

    model, inputs = built
    numbers.perturb(model)
    found = report.stage("prune", lambda: peers.half_pruned(model, copy.deepcopy(model), inputs))
    if found is not None:
        report.put(**found)


@dataclass(frozen=True)
class Limits:
    """CPU seconds and gigabytes of memory of one process."""

    seconds: int
    gigabytes: float


def work(module: str, name: str, task: str, result: str, errors: str, limits: Limits) -> None:
    """One model in a forked process of its own, under limits.

    Args:
        module: with `build(name)`.
        name: of the model.
        task: "measure", "onnx" (with it) or "peer".
        result: file of the record.
        errors: file that takes what is written to standard error.
        limits: what ends the process.
    """
    os.setsid()  # so that it can be ended with all that it starts
    with Path(errors).open("wb") as stream:
        os.dup2(stream.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (int(limits.gigabytes * 2**30),) * 2)
    warnings.simplefilter("ignore")
    report = Report(result)
    try:
        if task == "peer":
            compare_peer(module, name, report)
        else:
            measure(module, name, report, task == "onnx")
    except MemoryError:
        report.put(ended="memory")
    else:
        report.put(stage="done")
