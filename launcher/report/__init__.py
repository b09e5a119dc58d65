"""The report on a run, or on several: a single self-contained HTML file."""
