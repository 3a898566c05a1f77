"""Metrics: cheap probes during a trial."""

from core.metrics.probes import Level, degradation, forget_closure

__all__ = ["Level", "degradation", "forget_closure"]
