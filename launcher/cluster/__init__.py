"""Jobs on a cluster: the processes of a run, and how Slurm submits, stops and continues it."""
