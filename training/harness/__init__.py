"""Shared by all training stages: command line, run folder, schedule, checkpoints, averages and metrics."""
