"""The sections of a report, a file each; templates/ has a template of the same name."""
