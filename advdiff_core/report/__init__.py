"""Reports of runs: self-contained HTML made from a run folder, without torch or plugins."""
