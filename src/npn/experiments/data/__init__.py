"""Data sets as tensors in memory, and their augmentation."""
