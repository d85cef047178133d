"""Checkpoints of other programs: read as data, fitted to a backbone, kept as safetensors."""
