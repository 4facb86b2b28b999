"""Reads and writes the files of a run: its workdir, checkpoints, metrics and pictures."""
