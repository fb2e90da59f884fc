"""Importing this loads torchvision, as `compat.stubs` does."""

from compat.stubs import load_torchvision

load_torchvision()
