"""Experiments: scripts whose printed numbers stand in results/."""
