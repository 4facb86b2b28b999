"""One file per mode of the command line that works on a workdir: evaluate, profile."""
