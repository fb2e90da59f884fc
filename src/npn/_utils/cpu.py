"""Tensors of bookkeeping: on the CPU, whatever `torch.set_default_device` says."""

from functools import partial

import torch

arange = partial(torch.arange, device="cpu")
empty = partial(torch.empty, device="cpu")
full = partial(torch.full, device="cpu")
ones = partial(torch.ones, device="cpu")
rand = partial(torch.rand, device="cpu")
tensor = partial(torch.tensor, device="cpu")
zeros = partial(torch.zeros, device="cpu")
