"""Packed sequences in a trace: all are as long as the longest one, so that units meet as in a padded batch."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npn._utils import cpu
from npn.tracing.capture.patching import patched

_LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def padded_sequences() -> contextlib.AbstractContextManager[None]:
    """Inside, in this thread, packing a batch pads it, and recurrent layers take what was packed as a padded batch.

    PyTorch's own operators read lengths in memory, which a trace does not have. What differs is which rows there are.
    """
    packing: dict[str, Callable[..., Any]] = {"_pack_padded_sequence": _pack, "_pad_packed_sequence": _pad}
    return patched(torch._VF, packing | dict.fromkeys(_LAYERS, _recurrent))


def _pack(before: Callable[..., Any], batch: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """The rows of all steps, (steps * sequences, ...), and the number of sequences in each step."""
    steps = batch.transpose(0, 1) if batch_first else batch
    steps = steps[: int(lengths.max())]
    return steps.flatten(0, 1), cpu.tensor([steps.shape[1]] * len(steps))


def _pad(
    before: Callable[..., Any], rows: Tensor, sizes: Tensor, batch_first: bool, value: float, length: int
) -> tuple[Tensor, Tensor]:
    """The rows as a batch, and the length of each sequence."""
    steps = _in_steps(rows, sizes)
    if length > len(steps):
        steps = torch.cat([steps, steps.new_full((length - len(steps), *steps.shape[1:]), value)])
    lengths = cpu.tensor([len(sizes)] * steps.shape[1])
    return steps.transpose(0, 1) if batch_first else steps, lengths


def _in_steps(rows: Tensor, sizes: Tensor) -> Tensor:
    return rows.reshape(len(sizes), -1, *rows.shape[1:])


def _recurrent(before: Callable[..., Any], *args: Any) -> Any:
    """A recurrent operator that takes rows and sizes as well, in which its flat weights are the fourth argument."""
    if not isinstance(args[3], (list, tuple)):
        return before(*args)
    rows, sizes, hidden, *rest = args
    output, *last = before(_in_steps(rows, sizes), hidden, *rest, False)
    return output.flatten(0, 1), *last
