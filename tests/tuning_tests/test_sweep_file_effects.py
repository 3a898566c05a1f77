"""A hyperparameter may be searched if some trial of the sweep file looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from command_line import WriteSpec
from small_sweep import fixed_rate_values

from core.errors import ConfigError
from tuning.files import load_sweep
from tuning.space import corner_proposals

BETA = {"float": {"low": 0.05, "high": 0.5}}
LAYER = {"categorical": [1, 2]}
LOSSES = {"categorical": ["ihl", "npo"]}


@pytest.mark.parametrize(
    ("changes", "space", "field", "loss"),
    [
        pytest.param({}, {"method.npo.beta": BETA}, "npo.beta", "npo", id="another-loss-is-fixed"),
        pytest.param(
            {"method": {}},
            {"method.forget_loss": LOSSES, "method.simnpo.beta": BETA},
            "simnpo.beta",
            "simnpo",
            id="no-choice-has-it",
        ),
        pytest.param(
            {"method.retain_loss": "kl"},
            {"method.rmu.layer": LAYER},
            "rmu.layer",
            "rmu",
            id="nothing-looks-at-activations",
        ),
    ],
)
def test_a_searched_hyperparameter_of_a_loss_that_never_occurs_is_refused(
    write_spec: WriteSpec,
    changes: Mapping[str, Any],
    space: Mapping[str, Any],
    field: str,
    loss: str,
) -> None:
    with pytest.raises(ConfigError, match=r"file\.yaml: 1 problem") as caught:
        load_sweep(write_spec(fixed_rate_values(changes, space)))
    assert caught.value.problems == (
        f"space.method.{field}: has no effect here: method.forget_loss never is {loss!r}; remove it",
    )


@pytest.mark.parametrize(
    ("changes", "space", "field"),
    [
        pytest.param(
            {"method.forget_loss": "npo"}, {"method.npo.beta": BETA}, "method.npo.beta", id="fixed"
        ),
        pytest.param(
            {"method": {}},
            {
                "method.forget_loss": LOSSES,
                "method.npo.beta": BETA | {"when": {"method.forget_loss": "npo"}},
            },
            "method.npo.beta",
            id="one-of-the-choices",
        ),
        pytest.param(
            {"method.retain_loss": "activation"},
            {"method.rmu.layer": LAYER},
            "method.rmu.layer",
            id="layer-of-the-retain-loss",
        ),
        pytest.param(
            {},
            {"method.retain_weight": {"float": {"low": 0.5, "high": 2.0}}},
            "method.retain_weight",
            id="weight-of-every-loss",
        ),
    ],
)
def test_a_hyperparameter_that_some_trial_uses_is_searched(
    write_spec: WriteSpec, changes: Mapping[str, Any], space: Mapping[str, Any], field: str
) -> None:
    spec = load_sweep(write_spec(fixed_rate_values(changes, space)))
    assert any(field in proposal for proposal in corner_proposals(spec))
