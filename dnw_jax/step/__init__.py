"""One update: the training state, the compiled programs that change it, optimizer and metrics."""
