"""Plugins: found by their entry points, imported when a recipe names them."""
