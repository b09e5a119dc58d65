"""The promises checked on a user's own recipe: equal weights on any split, exact resume, a cluster job's life."""
