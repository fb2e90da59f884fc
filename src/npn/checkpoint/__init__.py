"""Checkpoints: weights, structure, gates, optimizers and random states, in one file or in a folder, whole or not."""

from npn.checkpoint.content import Stateful, pack, unpack
from npn.checkpoint.files import load, read_extra, save, save_folder

__all__ = ["Stateful", "load", "pack", "read_extra", "save", "save_folder", "unpack"]
