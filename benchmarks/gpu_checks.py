"""What the test suite cannot check without a GPU: each check by itself, with its reason if it fails."""

import argparse
import copy
import itertools
import math
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from gpu_subject import Subject, mlp, resize
from npn.cuda_graphs import EAGER
from npn.errors import NonFiniteLossError
from npn.experiments.engine.rundir import write_json
from npn.experiments.report.provenance import machine
from npn.functional.table import ESTIMATORS

Check = Callable[[str], None]
CHECKS: dict[str, Check] = {}


class Skipped(Exception):
    """The check needs something that is not here."""


def check(name: str) -> Callable[[Check], Check]:
    """Register a check.

    Args:
        name: as the page shows it.
    """

    def register(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return register


def need_cuda(device: str) -> None:
    """Skip a check that is about CUDA alone.

    Args:
        device: of the call.
    """
    if torch.device(device).type != "cuda":
        raise Skipped("only on CUDA")


@check("the handle follows the model to the device")
def follows(device: str) -> None:
    """Attached on the CPU, stepped, moved, stepped, resized."""
    subject = Subject("cpu")
    subject.step()
    subject.model.to(device)
    subject.x, subject.y = subject.x.to(device), subject.y.to(device)
    for state in [*subject.weights.state.values(), *subject.gates.state.values()]:
        state.update({k: v.to(device) for k, v in state.items() if isinstance(v, Tensor) and v.dim()})
    subject.step()
    kind = torch.device(device).type
    assert all(p.device.type == kind for p in subject.plastic.logits()), "logits stayed behind"
    assert subject.plastic.gates.generator.device.type == kind, "the generator of the masks stayed behind"
    resize(subject)
    subject.step()
    assert all(p.device.type == kind for p in (*subject.plastic.weights(), *subject.plastic.logits()))
    assert all(bool(torch.isfinite(t).all()) for t in subject.state())


@check("gradients are those of the CPU under the same closed units")
def agrees(device: str) -> None:
    """At k = inf, where nothing is drawn."""
    found = []
    for place in ("cpu", device):
        subject = Subject(place)
        subject.plastic.k = math.inf
        subject.plastic.close(subject.plastic.groups[0].name, [0, 3])
        subject.plastic.backward(subject.loss)
        found.append([p.grad.detach().cpu() for p in subject.plastic.weights()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)


@check("masks come from a generator on the device and repeat")
def masks(device: str) -> None:
    """The same seed draws the same masks; another one draws others."""
    found = []
    for seed in (1, 1, 2):
        subject = Subject(device)
        with torch.no_grad():
            for logits in subject.plastic.logits():
                logits.zero_()
        subject.plastic.gates.generator.manual_seed(seed)
        found.append(subject.plastic.gates.draw().cpu())
        subject.step()
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


for _name in ESTIMATORS:

    @check(f"estimator {_name} trains, and resizes keep the optimizers")
    def trains(device: str, name: str = _name) -> None:
        """Losses fall; shapes of the states follow."""
        subject = Subject(device, estimator=name)
        before = float(subject.loss().detach())
        for number in range(30):
            if number == 10:
                resize(subject)
            subject.step()
        assert float(subject.loss().detach()) < before, "the loss has not fallen"
        for optimizer in (subject.weights, subject.gates):
            for parameter, state in optimizer.state.items():
                assert all(v.shape in ((), parameter.shape) for v in state.values() if isinstance(v, Tensor))


@check("a mask per example")
def per_example(device: str) -> None:
    """One mask and one loss per example, of a net that has linear layers only."""
    subject = Subject(device, mlp, masks="example")
    subject.model.eval()
    subject.step(lambda: F.cross_entropy(subject.model(subject.x), subject.y, reduction="none"))
    assert all(bool(torch.isfinite(g).all()) for g in subject.gradients())


@check("autocast in bf16")
def bf16(device: str) -> None:
    """Trains; logits and weights stay in fp32."""
    subject = Subject(device)

    def closure() -> Tensor:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            return subject.loss()

    before = float(closure().detach())
    for _ in range(30):
        subject.step(closure)
    assert float(closure().detach()) < before and all(t.dtype == torch.float32 for t in subject.plastic.weights())


@check("fp16 with GradScaler: gradients, and a skipped step")
def scaler(device: str) -> None:
    """Scaled gradients are the unscaled ones; a step whose gradients overflow changes nothing and halves the scale."""
    found = []
    for enabled in (False, True):
        subject = Subject(device, mlp)
        subject.model.eval()
        scaling = torch.amp.GradScaler(torch.device(device).type, enabled=enabled, init_scale=1024.0)
        subject.plastic.gates.generator.manual_seed(3)
        subject.plastic.backward(subject.loss, scale=scaling)
        scaling.unscale_(subject.weights)
        scaling.unscale_(subject.gates)
        found.append(subject.gradients())
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-6)
    if torch.device(device).type != "cuda":
        return
    subject, scaling = Subject(device), torch.amp.GradScaler("cuda", init_scale=1024.0)
    subject.step(scaler=scaling)
    before = [p.detach().clone() for p in (*subject.plastic.weights(), *subject.plastic.logits())]
    subject.step(lambda: subject.loss() * math.inf, scaler=scaling)
    after = [*subject.plastic.weights(), *subject.plastic.logits()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True)), "the step was not skipped"
    assert scaling.get_scale() == 512.0


@check("a loss that is not finite")
def not_finite(device: str) -> None:
    """Raised on the CPU; given back on the GPU, where nobody waits for it."""
    subject = Subject(device)
    if torch.device(device).type == "cuda":
        assert not math.isfinite(float(subject.plastic.backward(lambda: subject.loss() * math.nan)))
        return
    try:
        subject.plastic.backward(lambda: subject.loss() * math.nan)
    except NonFiniteLossError:
        return
    raise AssertionError("no NonFiniteLossError")


@check("no step waits for the device")
def no_sync(device: str) -> None:
    """With `torch.cuda.set_sync_debug_mode("error")`: all estimators, k = inf, 2 and 0, on a budget's path."""
    need_cuda(device)
    failed = []
    for name in ESTIMATORS:
        for k in (math.inf, 2.0, 0.0):
            subject = Subject(device, estimator=name, penalty=npn.Budget(cost="params", target=0.5, steps=100))
            subject.plastic.k = k
            for _ in range(2):
                subject.step()
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(2):
                    subject.step()
            except RuntimeError as error:
                where = [f.name for f in traceback.extract_tb(error.__traceback__) if "npn" in f.filename]
                failed.append(f"{name} at k = {k:g} in {where[-1] if where else '?'}: {str(error).splitlines()[0]}")
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert not failed, "; ".join(failed)


@check("CUDA graphs: the same training as without, through a path and a resize")
def graphs(device: str) -> None:
    """Masks of the same generator, the price of a budget, k = 2, a resize, k = inf."""
    need_cuda(device)
    deterministic, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    ends, replayed = [], 0
    try:
        for used in (False, True):
            budget = npn.Budget(cost="params", target=0.5, steps=40)
            subject = Subject(device, penalty=budget)
            recorder = npn.CudaGraphs(subject.plastic)
            with recorder.stream():
                losses = []
                for number in range(5 * (EAGER + 3)):
                    if number == 2 * (EAGER + 3):
                        subject.plastic.close(subject.plastic.groups[0].name, [0, 1])
                        subject.plastic.compact()
                    if number == 4 * (EAGER + 3):
                        subject.plastic.k = math.inf
                    subject.weights.zero_grad()
                    subject.gates.zero_grad()
                    inputs, classes = subject.x.roll(number, 0), subject.y.roll(number, 0)
                    if used:
                        loss = recorder.backward(lambda x, y: F.cross_entropy(subject.model(x), y), inputs, classes)  # noqa: B023
                        replayed = max(replayed, recorder.recorded)
                    else:
                        loss = subject.plastic.backward(lambda: F.cross_entropy(subject.model(inputs), classes))  # noqa: B023
                    subject.weights.step()
                    subject.gates.step()
                    losses.append(loss)
                torch.cuda.synchronize()
            ends.append([torch.stack(losses).cpu(), *subject.state(), budget.multiplier.cpu()])
    finally:
        torch.backends.cudnn.deterministic = deterministic
    assert replayed, "nothing was recorded"
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


@check("checkpoints go from the device to the CPU and back")
def checkpoints(device: str) -> None:
    """The compact model gives the same logits on either."""
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(device)
        for _ in range(3):
            subject.step()
        resize(subject)
        subject.step()
        places = (device, "cpu", device)
        for number, (here, there) in enumerate(itertools.pairwise(places)):
            path = Path(folder) / f"{number}.pt"
            npn.save(path, subject.plastic)
            other = Subject(there)
            npn.load(path, other.plastic)
            x = torch.randn(8, 1, 8, 8)
            subject.model.eval()
            other.model.eval()
            with torch.no_grad():
                logits = subject.model(x.to(here)).cpu(), other.model(x.to(there)).cpu()
            torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)
            other.model.train()
            other.step()
            subject = other


@check("DistributedDataParallel with one process")
def ddp(device: str) -> None:
    """A group of one, and the model wrapped: the gradients are those without, before and after a resize."""
    if not dist.is_available():
        raise Skipped("torch has no distributed package")
    kind = torch.device(device).type
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            found = []
            for wrapped in (False, True):
                subject = Subject(device)
                subject.plastic.gates.generator.manual_seed(5)
                seen = []
                for turn in range(2):
                    call = nn.parallel.DistributedDataParallel(subject.model) if wrapped else subject.model
                    for _ in range(3):
                        subject.step(lambda: subject.loss(call))  # noqa: B023 - called at once
                    seen += subject.gradients()
                    call = None  # the old wrapper releases the gradients before the resize
                    if turn == 0:
                        subject.plastic.close(subject.plastic.groups[0].name, [0, 1])
                        subject.plastic.compact()
                npn.distributed.check(subject.plastic)
                found.append(seen)
        finally:
            dist.destroy_process_group()
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)


@check("torch.compile: the same gradients, before and after a resize")
def compiled(device: str) -> None:
    """Against the model as it is, under the same masks."""
    subject = Subject(device)
    twin = copy.deepcopy(subject.plastic)
    for plastic in (subject.plastic, twin):
        plastic.gates.generator.manual_seed(0)
    for turn in range(2):
        call = torch.compile(subject.model)
        for _ in range(2):
            for parameter in (*subject.plastic.weights(), *twin.weights(), *subject.plastic.logits(), *twin.logits()):
                parameter.grad = None
            subject.plastic.backward(lambda: subject.loss(call))  # noqa: B023 - called at once
            twin.backward(lambda: F.cross_entropy(twin.model(subject.x), subject.y))
            other = [p.grad.detach().cpu() for p in (*twin.weights(), *twin.logits())]
            torch.testing.assert_close(subject.gradients(), other, rtol=1e-3, atol=1e-4)
        if turn == 0:
            for plastic in (subject.plastic, twin):
                plastic.close(plastic.groups[0].name, [0, 1])
                plastic.compact()


def main(options: argparse.Namespace, end: float) -> dict[str, Any]:
    """Run every check that there is time for, and write checks.json after each.

    Args:
        options: of the command line.
        end: time by the monotonic clock.

    Returns:
        Name -> result.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found: dict[str, Any] = {}
    used = machine(options.device)
    for name, function in CHECKS.items():
        began, result, reason = time.monotonic(), "pass", ""
        try:
            if began > end:
                raise Skipped("no time left")
            function(options.device)
            if torch.device(options.device).type == "cuda":
                torch.cuda.synchronize()
        except Skipped as why:
            result, reason = "skip", str(why)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            text = " ".join(str(error).split())[:300].replace("|", "/")
            result, reason = "FAIL", f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno})"
        found[name] = {"result": result, "reason": reason, "seconds": round(time.monotonic() - began, 2)}
        print(f"  {result} {name} {reason}", flush=True)
        write_json(options.out / "checks.json", {"machine": used, "checks": found})
    return found
