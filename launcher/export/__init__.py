"""Export of a finished run's model to forms that run elsewhere; each is run and compared before it gets its name."""
