"""One update: the training state, the compiled program that changes it, optimizer and metrics."""
