"""What a finished run's images and labels tell beyond its metrics: `report --explain`."""
