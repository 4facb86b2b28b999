"""Lowers trained networks to a flat list of operations, and counts what they cost."""

from dnw_jax.deploy import network as network
