"""One training step: queries, views, plan and memo."""
