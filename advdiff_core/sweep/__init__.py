"""Sweeps: one recipe at every point of a grid, a process per run, one summary. Free of torch."""
