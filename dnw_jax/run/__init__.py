"""What a run leaves on disk: its workdir, checkpoints, metrics and pictures."""
