"""Trains any recipe: settings, folders of runs, interruption and resuming, several processes, benches."""
