"""Flax modules for nodes, edges and graphs: static, in discrete time and in continuous time."""
