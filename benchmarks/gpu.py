"""All that waits for a GPU, within some minutes: checks, times of steps, ResNet-56 on CIFAR leg by leg, other methods.

Each part is a process of its own with a limit of time, so that one that fails or hangs does not take the others along.

Run: benchmarks/gpu.sh 8 --data FOLDER
"""

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import environment
from npn.experiments.engine.rundir import write_json
from npn.experiments.report.provenance import made_by
from npn.experiments.report.tables import markdown_table

PARTS = ("checks", "steps", "train")
ALL = (*PARTS, "peers")  # the last one only when it is asked for
SHARE = {"checks": 0.2, "steps": 0.3}  # of the time; the others divide what is left
END = 10.0  # seconds kept for the last words of a part, and for the page
LEGS = "dense,scratch,sparsify,expand"


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, default=8.0, help="for everything together")
    made.add_argument("--parts", default=",".join(PARTS), help="of checks, steps, train, peers")
    made.add_argument("--device", default="cuda")
    made.add_argument("--out", type=Path, default=Path("runs/gpu"), help="results, and the runs' folders in OUT/runs")
    made.add_argument("--from", type=Path, dest="earlier", help="the --out of an earlier call, whose runs go on")
    made.add_argument("--data", help="folder of the CIFAR files [default: $NPN_DATA]")
    made.add_argument("--leg", default=LEGS, help="legs to train, in this order; sparsify:0.4 has a budget of its own")
    made.add_argument("--epochs", default="220", help="of every leg; 5,40,15: of its three stages")
    made.add_argument("--depth", type=int, default=56)
    made.add_argument("--dataset", default="cifar10")
    made.add_argument("--decay", default="steps", help="steps (the paper's) or cosine")
    made.add_argument("--precision", default="bf16")
    made.add_argument("--seeds", default="0", help="of the legs: 0-2 or 0,3; all legs of one before the next")
    made.add_argument("--budget", type=float, default=0.5, help="of the MACs")
    made.add_argument("--at-once", type=int, default=1, help="legs that train at a time, each in a process of its own")
    made.add_argument("--networks", default="resnet20", help="of peers; lenet5:0.05 has a budget, others their three")
    made.add_argument("--arms", default="", help="methods of peers [default: all]")
    made.add_argument("--trials", type=int, default=2, help="of each method of peers")
    made.add_argument("--rounds", type=int, default=15, help="of each time")
    made.add_argument("--part", help=argparse.SUPPRESS)  # set for the process of one part
    made.add_argument("--until", type=float, help=argparse.SUPPRESS)  # by the monotonic clock, the same everywhere
    made.add_argument("--file", help=argparse.SUPPRESS)  # of the states of the legs of this process
    return made.parse_args()


def plan(options: argparse.Namespace, parts: Sequence[str]) -> dict[str, float]:
    """Divide the time: part -> seconds at most. Times that a part leaves over go to the next ones.

    Args:
        options: of the command line.
        parts: to run.
    """
    seconds = 60 * options.minutes - END
    shares = {part: SHARE[part] * seconds for part in parts if part in SHARE}
    if long := [part for part in parts if part not in SHARE]:
        shares |= dict.fromkeys(long, (seconds - sum(shares.values())) / len(long))
    elif shares:
        total = sum(shares.values())
        shares = {part: seconds * share / total for part, share in shares.items()}
    return shares


def run_part(part: str, seconds: float, *more: str) -> str:
    """Run one part in a process; return how it ended.

    Args:
        part: its name.
        seconds: after these it should end by itself, and is made to a little later.
        more: arguments that replace those of the command line.
    """
    until = str(time.monotonic() + seconds)
    process = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--part", part, "--until", until, *more])
    for late, stop in ((seconds, process.terminate), (END / 2, process.kill)):
        try:
            code = process.wait(late)
            return "ended" if code == 0 else f"exit status {code}"
        except subprocess.TimeoutExpired:
            stop()
    process.wait()
    return f"killed after {seconds + END / 2:.0f} seconds"


def pieces(part: str, options: argparse.Namespace) -> list[tuple[str, ...]]:
    """List what of a part can run at a time, as arguments of processes.

    Args:
        part: its name.
        options: of the command line.
    """
    if part == "peers":
        from gpu_peers import cells

        return [cell.arguments for cell in cells(options.networks, options.arms)]
    from gpu_train import legs

    return [leg.arguments for leg in legs(options.leg, options.budget, options.seeds)]


def run_pieces(part: str, options: argparse.Namespace, seconds: float) -> str:
    """Run pieces of a part at a time, each in a process; return how they ended.

    Args:
        part: its name.
        options: of the command line.
        seconds: for all of them.
    """
    end = time.monotonic() + seconds

    def run(arguments: tuple[str, ...]) -> str:
        left = end - time.monotonic()
        return run_part(part, left, *arguments) if left > 0 else "no time left"

    with ThreadPoolExecutor(options.at_once) as pool:
        ends = Counter(pool.map(run, pieces(part, options)))
    return ", ".join(f"{number} {end}" for end, number in ends.items())


def collected(out: Path) -> dict[str, Any]:
    """Read what the parts have written: part -> content.

    Args:
        out: folder of the results.
    """
    found = {part: json.loads(file.read_text()) for part in ALL if (file := out / f"{part}.json").exists()}
    for part, key in (("train", "legs"), ("peers", "peers")):
        for file in sorted(out.glob(f"{part}-*.json")):
            content = json.loads(file.read_text())
            found.setdefault(part, {**content, key: {}})[key].update(content[key])
    return found


def page(results: Mapping[str, Any], ends: Mapping[str, str], about: Mapping[str, Any]) -> str:
    """Write the Markdown page of all parts.

    Args:
        results: part -> content of its file.
        ends: part -> how it ended.
        about: command, versions and machine.
    """
    lines = ["# On a GPU", "", *(f"- {part}: {end}" for part, end in ends.items()), ""]
    checks = results.get("checks", {}).get("checks", {})
    if checks:
        rows = [(name, found["result"], f"{found['seconds']:.1f}", found["reason"]) for name, found in checks.items()]
        lines += ["## Checks", "", markdown_table(("check", "result", "seconds", "reason"), rows), ""]
    steps = results.get("steps", {}).get("steps", {})
    if steps:
        rows = [
            (*name.split("; "), f"{row['median']:.2f}" if row.get("median") else "-",
             f"{row['quartile_low']:.2f}-{row['quartile_high']:.2f}" if row.get("median") else "-",
             f"{1e3 * row['seconds']:.3f}" if row.get("seconds") else "-", row.get("operators", "-"), row["reason"])
            for name, row in steps.items()
        ]  # fmt: skip
        header = ("network", "way", "step", "ratio", "quartiles", "ms", "operators", "reason")
        lines += ["## Steps", "", "Ratio: over the plain step of the same network in the same way.", ""]
        lines += [markdown_table(header, rows), ""]
    widths = results.get("steps", {}).get("widths", {})
    if widths:
        rows = [(name, f"{row['median']:.2f}", f"{1e3 * row['seconds']:.3f}") for name, row in widths.items()]
        lines += ["## Widths", "", "A plain step of the residual network, over that of the full one.", ""]
        lines += [markdown_table(("channels in the blocks", "ratio", "ms"), rows), ""]
    legs = results.get("train", {}).get("legs", {})
    if legs:
        keys = ("epochs", "of", "state", "accuracy", "validation_accuracy", "macs", "params", "seconds_per_epoch")
        rows = [(name, *(leg.get(key, "-") for key in keys), leg["reason"]) for name, leg in legs.items()]
        header = ("leg", "epochs", "of", "state", "test", "validation", "MACs", "weights", "s per epoch", "reason")
        lines += ["## ResNet on CIFAR", "", markdown_table(header, rows), ""]
    peers = results.get("peers", {}).get("peers", {})
    if peers:
        rows = [(*name.split(), found["accuracies"], found["reason"]) for name, found in peers.items()]
        header = ("network", "budget", "method", "test accuracy of each seed", "reason")
        lines += ["## Methods", "", markdown_table(header, rows), ""]
    gpu = about["machine"].get("gpu", "none")
    return "\n".join([*lines, f"GPU: {gpu}. {made_by(about)}", ""])


def _about(part: str, options: argparse.Namespace) -> str:
    if part in SHARE:
        return ""
    what = options.leg if part == "train" else f"{options.networks}; {options.arms or 'all methods'}"
    return f"({what}; seeds {options.seeds}; {options.epochs} epochs; {options.at_once} at a time)"


def main() -> None:
    """Print the plan, run the parts, write the page."""
    options, began = parsed(), time.monotonic()
    if options.part:
        options.file = options.file or f"{options.part}.json"
        importlib.import_module(f"gpu_{options.part}").main(options, options.until)
        return
    parts = [part for part in ALL if part in options.parts.split(",")]
    seconds = plan(options, parts)
    options.out.mkdir(parents=True, exist_ok=True)
    for file in (file for part in ALL for file in options.out.glob(f"{part}*.json")):
        file.unlink()  # an earlier call's
    if options.earlier and (options.earlier / "runs").is_dir() and options.earlier.resolve() != options.out.resolve():
        shutil.copytree(options.earlier / "runs", options.out / "runs", dirs_exist_ok=True)
    print(f"plan: {options.minutes:g} minutes on {options.device}, results in {options.out}")
    for part, share in seconds.items():
        print(f"  {part}: at most {share:.0f} seconds", _about(part, options))
    ends = {}
    for part in parts:
        left = 60 * options.minutes - END - (time.monotonic() - began)
        mine = left if part == parts[-1] else min(left, seconds[part])
        several = part not in SHARE and options.at_once > 1
        ends[part] = "no time left"
        if mine > 0:
            ends[part] = run_pieces(part, options, mine) if several else run_part(part, mine)
        print(f"{part}: {ends[part]}", flush=True)
    results = collected(options.out)
    about = environment("cpu")
    about["machine"] = next((found["machine"] for found in results.values()), about["machine"])
    write_json(options.out / "gpu.json", {**about, "ends": ends, **results})
    text = page(results, ends, about)
    (options.out / "gpu.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
