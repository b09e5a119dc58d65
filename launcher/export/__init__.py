"""A finished run's model in forms that run elsewhere, each run and compared before it gets its name."""
