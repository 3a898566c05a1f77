"""Faults, one at every place where there can be one, and what must hold after each: ``python -m faults``.

The ledger, the dispatcher, the commits and the judgements are the project's own. Only the executor is another than
Ray Tune: a driver process that forks its trials (:mod:`faults.driver`), so that thousands of faults fit into minutes.
:mod:`faults.on_ray` breaks real sweeps.
"""
