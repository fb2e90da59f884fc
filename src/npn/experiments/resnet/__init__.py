"""Residual networks on CIFAR (the paper, section VI-C)."""
