"""Benchmarks. Each comparison alternates in one run, because the speed of a machine varies."""
