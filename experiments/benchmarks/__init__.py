"""Benchmarks: every comparison alternates in one run, because machines are noisy."""
