"""Hundreds of library models, each attached, shrunk, grown and trained one step: what works, and why the rest fails."""
