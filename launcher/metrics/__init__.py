"""Metrics of the built-in tasks, in float64: those that training shows, and those that intervals are computed from."""
