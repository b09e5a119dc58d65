"""What a recipe will do and cost, without training."""
