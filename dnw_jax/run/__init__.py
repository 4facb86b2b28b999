"""The files of a run on disk: reads and writes its workdir, checkpoints, metrics and pictures.

The folder `train` holds the training loop, which writes these files.
"""
