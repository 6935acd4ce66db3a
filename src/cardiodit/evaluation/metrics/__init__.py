"""Metrics of an evaluation, one file a family. `registry` says what they are called and in which order they appear."""

from cardiodit.evaluation.metrics.estimate import Estimate
from cardiodit.evaluation.metrics.registry import Features, Result, Scoring, metric

__all__ = ["Estimate", "Features", "Result", "Scoring", "metric"]
