"""How to represent features: the unified table."""
