"""What a process runs on: devices, signals, memory pages, the compilation cache."""
