"""Recipes that are shipped: examples to start from, and what the benchmarks train."""
