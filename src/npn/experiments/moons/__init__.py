"""The two moons (the paper, section VI-A)."""
