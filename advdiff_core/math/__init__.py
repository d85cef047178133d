"""Pure tensor functions without state; exact in float64."""
