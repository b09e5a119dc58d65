"""The learning rate range test of `find-lr`."""
