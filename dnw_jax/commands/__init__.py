"""The modes of the command line that join a workdir with something else, one file each."""
