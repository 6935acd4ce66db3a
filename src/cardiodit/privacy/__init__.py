"""The memorization audit: does a model reproduce the patients it was trained on?"""
