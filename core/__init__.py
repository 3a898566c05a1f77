"""One unlearning trial: data, losses, Fisher information, adapters, engine and probes.

The package knows nothing of Ray or Optuna: a trial takes a frozen :class:`core.config.TrialConfig`
and yields probes. Tuning many trials is the job of the ``tuning`` package.
"""

DISTRIBUTION = "unlearn-tune"
"""Name of the distribution that ships this package; ``tuning`` checks it against foreign ``core`` packages."""
