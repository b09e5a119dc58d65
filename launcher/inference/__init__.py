"""Use of a finished run: its evaluation, its predictions, and averages of its weights."""
