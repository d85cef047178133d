"""Recipes: TOML text to checked settings."""
