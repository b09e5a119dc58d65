"""Learning rate range test of `find-lr`."""
