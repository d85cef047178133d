"""Evaluation under attack: the runner, the independent check, the record, the numbers."""
