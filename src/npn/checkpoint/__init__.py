"""Checkpoints: weights, structure, gates, optimizers and random states in one file, written whole or not at all."""

from npn.checkpoint.content import Stateful, pack, unpack
from npn.checkpoint.files import load, read_extra, save

__all__ = ["Stateful", "load", "pack", "read_extra", "save", "unpack"]
