"""One file for each mode of the command line that reads a trained workdir: evaluate, profile.

The mode train is `dnw_jax.train.train`, because it is also called from Python.
"""
