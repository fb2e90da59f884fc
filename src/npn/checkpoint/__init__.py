"""Checkpoints: weights, structure, gates, optimizers and random states, in one file or in a folder, whole or not."""

from npn.checkpoint.files import load, read_extra, save, save_folder
from npn.checkpoint.packing import pack
from npn.checkpoint.states import Stateful
from npn.checkpoint.unpacking import unpack

__all__ = ["Stateful", "load", "pack", "read_extra", "save", "save_folder", "unpack"]
