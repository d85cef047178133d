"""What one step of each shipped recipe computes; see `record.py`."""
