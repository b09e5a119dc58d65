"""Questions before training: the learning rate, the backbone and its depth, and the best of many trials."""
