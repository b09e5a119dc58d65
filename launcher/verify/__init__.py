"""Checks of the promises on a user's own recipe: parity, exact resume, and all that a cluster does to a job."""
