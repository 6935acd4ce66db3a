"""What all training stages share: command line, run folder, order of samples, checkpoints, averages, metrics."""
