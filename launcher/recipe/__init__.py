"""Recipes, which fix what is learned, and their parts."""
