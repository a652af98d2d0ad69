"""Measurements, each a command whose first lines say how to run it."""
