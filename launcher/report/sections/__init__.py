"""The sections of a report, one module each; templates/ has a template of the same name."""
