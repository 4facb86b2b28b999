"""What one training step computes: state, compiled program, optimizer and metrics.

The folder `train` holds the loop over the steps.
"""
