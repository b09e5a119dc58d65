"""What is asked before training: the learning rate, the backbone and its depth, the best of many trials."""
