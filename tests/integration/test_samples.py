"""Continuations before and after unlearning, of a tiny model that recites its forget set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.config import TrialConfig
from core.measuring.reporting import Decision
from core.measuring.selection import Probe
from core.suites.samples import TOKENS, continued_rows
from core.training.warm import Warm
from core.worker import run_trial

pytestmark = pytest.mark.integration

TrialMaker = Callable[..., TrialConfig]


class GoesOn:
    """Stops nothing."""

    def report(self, probe: Probe) -> Decision:
        return Decision()


def test_before_is_the_untouched_model_and_after_is_the_saved_adapter(
    tmp_path: Path, make_trial: TrialMaker, tiny_model: Path
) -> None:
    config, warm = make_trial({"selection.max_steps": 2}), Warm()
    run_trial(config, GoesOn(), folder=tmp_path, warm=warm)
    adapter = tmp_path / "adapter"
    rows = continued_rows(config, adapter, warm=warm, n_rows=3)
    warm.verify()
    assert [r.role for r in rows] == ["forget"] * 3 + ["retain"] * 3
    forget = rows[:3]
    assert any(r.before == r.truth for r in forget)  # it knows them by heart
    assert any(r.after != r.before for r in forget)

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    for row in rows:
        ids = tokenizer(row.prompt, return_tensors="pt")
        n = len(tokenizer(row.truth)["input_ids"])
        with torch.no_grad():
            found = stock.generate(**ids, max_new_tokens=n + 1, do_sample=False, pad_token_id=0)
        text = str(
            tokenizer.decode(found[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        )
        assert text.strip().startswith(row.after)
        assert len(row.after) <= TOKENS
