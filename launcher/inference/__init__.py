"""A finished run put together again: its evaluation, its predictions, and averages of its weights."""
