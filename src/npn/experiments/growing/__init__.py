"""Ways in which new units can start, compared."""
