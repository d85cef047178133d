"""Datasets and corruptions that ship with the core."""
