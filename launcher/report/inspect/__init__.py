"""The explanation of a finished run by its images and labels, beyond its metrics: `report --explain`."""
