"""The frozen part of a network is computed once: cut off, run as an inference engine, and its outputs kept."""
