"""Facts about the machine, and what fits on it."""
