"""The laws, one module per kind of component."""
