"""Losses, shards, recipes, and the loop that trains."""
