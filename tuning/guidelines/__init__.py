"""Tuning guidelines of the literature, each a claim that sweeps test: data in YAML, statistics in code, a verdict."""
