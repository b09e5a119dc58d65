"""Sweep: many trials of one recipe with different settings, shared by any number of workers."""
