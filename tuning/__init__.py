"""Many trials: sweeps of unlearning trials on Ray Tune, searched and pruned by Optuna."""

import core

if getattr(core, "DISTRIBUTION", None) != "unlearn-tune":
    raise ImportError(
        f"the package 'core' that Python finds ({core.__file__}) belongs to another distribution, not to "
        "unlearn-tune; uninstall that distribution, or install unlearn-tune in an environment of its own"
    )
