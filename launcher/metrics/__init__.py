"""Metrics of the built-in tasks, in float64: the ones that training shows, and those that intervals are made of."""
