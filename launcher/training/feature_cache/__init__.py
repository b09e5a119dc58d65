"""Feature caching: cut off the frozen prefix of a network, run it as an inference engine, and keep its outputs."""
