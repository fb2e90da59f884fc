"""Imported by the server of `compat.processes`: loads what every model's process would load for itself.

The names of the libraries' modules stand in COMPAT_PRELOAD.
"""

import contextlib
import gc
import os
from importlib import import_module

import torch

import npn

torch.set_num_threads(1)
for _name in os.environ.get("COMPAT_PRELOAD", "").split():
    with contextlib.suppress(Exception):  # then the models that need it say why
        import_module(_name)
npn.attach(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.zeros(1, 4))  # loads torch's parts
gc.freeze()  # the memory stays shared with the forked processes
