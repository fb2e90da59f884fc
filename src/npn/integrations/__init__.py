"""Plasticity in the training loops of other libraries; each module needs the extra of its name."""

import importlib
from typing import TYPE_CHECKING

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a module, and the library that it is for, when it is first named."""
        if name in ("accelerate", "lightning", "pretrained", "session", "tensorboard", "transformers"):
            return importlib.import_module(f"npn.integrations.{name}")
        raise AttributeError(f"module 'npn.integrations' has no attribute {name!r}")
