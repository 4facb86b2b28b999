"""Draws pictures of wirings from plain arrays."""
