"""Helpers that every level may use; they know nothing of models, gates or runs."""
