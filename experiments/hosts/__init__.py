"""Proves on one machine what several hosts do: real processes that are connected over loopback."""
