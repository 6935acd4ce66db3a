"""What all training stages share: command line, run folder, schedule, checkpoints, averages and metrics."""
