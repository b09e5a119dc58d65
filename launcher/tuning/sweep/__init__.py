"""A sweep: many trials of one recipe with other settings, worked on by any number of processes."""
