"""What attaching costs: CPU seconds and memory, for library models and for transformers of 6 to 48 blocks.

Run: python benchmarks/attach.py

Each model is attached in a process of its own, and then a second one like it: the first attach also imports PyTorch's
compiler and fills its caches. CPU seconds of one thread; other work on the machine makes them longer, but less so than
seconds by the clock. Weights are random, nothing is downloaded.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

import npn
from common import parser, write
from npn.experiments.report.tables import markdown_table
from npn.experiments.resnet.model import ResNet

AIMS = {"ResNet-56": 2.5, "ViT-base": 10.0, "BERT-base": 10.0, "T5-small": 10.0}
BLOCKS = (6, 12, 24, 48)


def vit() -> tuple[nn.Module, Any]:
    """ViT-base, 12 blocks, at 224 pixels."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig()), {"pixel_values": torch.zeros(2, 3, 224, 224)}


def bert(blocks: int = 12) -> tuple[nn.Module, Any]:
    """BERT-base.

    Args:
        blocks: number of them.
    """
    from transformers import BertConfig, BertForSequenceClassification

    tokens = torch.zeros(2, 16, dtype=torch.long)
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=blocks))
    return model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def t5() -> tuple[nn.Module, Any]:
    """T5-small: 6 + 6 blocks."""
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0))
    tokens = torch.zeros(2, 16, dtype=torch.long)
    return model, {"input_ids": tokens, "decoder_input_ids": tokens[:, :8], "use_cache": False}


def small(blocks: int) -> tuple[nn.Module, Any]:
    """A BERT of 32 units, in which blocks are all that takes time.

    Args:
        blocks: number of them.
    """
    from transformers import BertConfig, BertForSequenceClassification

    sizes = BertConfig(num_hidden_layers=blocks, hidden_size=32, intermediate_size=64, num_attention_heads=4)
    return BertForSequenceClassification(sizes), {"input_ids": torch.zeros(2, 4, dtype=torch.long)}


def models() -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    """Name -> function that makes a model and example inputs."""
    named = {"ResNet-56": lambda: (ResNet(56), torch.zeros(2, 3, 32, 32)), "ViT-base": vit, "BERT-base": bert}
    stacks = {f"{blocks} blocks": (lambda n=blocks: small(n)) for blocks in BLOCKS}
    return {**named, "T5-small": t5, **stacks}


def measured(name: str) -> dict[str, float]:
    """CPU seconds of the first attach in this process and of another, memory in MiB, groups.

    Args:
        name: a key of `models`.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, float] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for attempt in ("first", "second"):
        model, inputs = models()[name]()
        if attempt == "first":
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        groups = npn.attach(model, inputs).groups
        found[attempt] = time.process_time() - began
        if attempt == "first":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found |= {"peak_mib": peak / 1024, "more_mib": (peak - before) / 1024, "groups": len(groups)}
    return found


def importing() -> dict[str, float]:
    """CPU seconds of `import torch`, and of `import npn` after it."""
    code = "import time\na = time.process_time()\nimport torch\nb = time.process_time()\nimport npn\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print(b - a, time.process_time() - b)"], capture_output=True, check=True
    )
    first, second = map(float, done.stdout.split())
    return {"torch": first, "npn": second}


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """One row per model.

    Args:
        found: name -> result of `measured`.
    """
    header = ["model", "groups", "first attach, s", "another, s", "aim", "peak, MiB", "of these by attaching"]
    rows = [
        [
            name,
            f"{row['groups']:.0f}",
            f"{row['first']:.1f}",
            f"{row['second']:.1f}",
            f"{AIMS[name]:g}" if name in AIMS else "-",
            f"{row['peak_mib']:.0f}",
            f"{row['more_mib']:.0f}",
        ]
        for name, row in found.items()
    ]
    return markdown_table(header, rows)


def main() -> None:
    """Measure, print the tables, write them."""
    options_ = parser(__doc__, "attach")
    options_.add_argument("--one", choices=tuple(models()), help=argparse.SUPPRESS)
    options = options_.parse_args()
    if options.one:
        print(json.dumps(measured(options.one)))
        return
    found: dict[str, Any] = {}
    for name in models():
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, found[name], flush=True)
    imports = importing()
    print(table(found))
    notes = [
        f"`import npn` takes {imports['npn']:.2f} s after `import torch`, itself {imports['torch']:.2f} s (aim 0.3).",
        "CPU seconds on one thread, on a machine without other work. The first attach of a process imports "
        "PyTorch's compiler and fills its caches; another, of a model like it, does not. The rows below T5 are a BERT "
        "of 32 units.",
    ]
    write(options.out, "Attaching", {"models": found, "import": imports, "aims": AIMS}, [table(found)], notes)


if __name__ == "__main__":
    main()
