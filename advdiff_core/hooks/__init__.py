"""Listeners to a run (pluggy): progress, logs, pictures, trackers. They never take part."""
