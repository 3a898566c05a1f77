"""What a rank needs: the arithmetic of states, what losses hold, and the passes that a trial makes."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import pytest
import torch
import transformers

from core.config import AdapterConfig, EngineConfig, MethodConfig, ModelConfig, TrialConfig
from core.config.method import ForgetLossId
from core.errors import ModelError
from core.estimate import bounds, largest_passes, new_outlines, rank_memory
from core.training.memory import Live, Pass, held_states, loss_width, traced_step

TrialMaker = Callable[..., TrialConfig]
Offload = Literal["none", "optimizer", "parameters"]


@pytest.mark.parametrize(
    ("stage", "ranks", "width", "offload", "device", "offloaded"),
    [
        # frozen 100; trained 8: itself, its gradient and two moments, 4 bytes each
        pytest.param(0, 1, 4, "none", 400 + 32 + 32 + 64, 0, id="float32-without-a-copy"),
        # itself and gradient 2 bytes each; copy, its gradient and moments 4 bytes each
        pytest.param(0, 1, 2, "none", 200 + 16 + 16 + 128, 0, id="bf16-has-a-float32-copy"),
        # a bucket beside, and half of copy, gradient and moments
        pytest.param(1, 2, 2, "none", 200 + 16 + 16 + 16 + 64, 0, id="stage-1-shares-the-states"),
        pytest.param(2, 2, 2, "none", 200 + 16 + 8 + 16 + 64, 0, id="stage-2-the-gradient-too"),
        pytest.param(1, 2, 2, "optimizer", 200 + 16 + 16 + 16, 64, id="offloaded-lies-beside"),
        # gathered beside; half of the trained weights and of their gradient
        pytest.param(3, 2, 2, "none", 200 + 8 + 8 + 216 + 64, 0, id="stage-3-gathers"),
    ],
)
def test_states_by_hand(
    stage: Literal[0, 1, 2, 3],
    ranks: int,
    width: int,
    offload: Offload,
    device: int,
    offloaded: int,
) -> None:
    engine = EngineConfig(zero_stage=stage, ranks=ranks, offload=offload)
    found = held_states(100, 8, engine, width=width)
    assert (found.device, found.offloaded) == (device, offloaded)


def test_frozen_weights_that_are_split_are_held_in_part() -> None:
    engine = EngineConfig(zero_stage=3, ranks=4)
    whole, part = (
        held_states(100, 8, engine, width=2, splits_frozen=splits).device
        for splits in (False, True)
    )
    assert whole - part == 200 - 50


def test_checkpointed_blocks_keep_less(make_trial: TrialMaker) -> None:
    plain, checkpointed = (
        rank_memory(make_trial({"engine.activation_checkpointing": on})) for on in (False, True)
    )
    assert checkpointed.activations < 0.5 * plain.activations
    assert checkpointed.weights == plain.weights


def test_a_mixture_that_cannot_be_traced_says_so(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = ModelConfig(source=str(tmp_path))
    with pytest.raises(ModelError, match="cannot be told without computing"):
        traced_step(model, AdapterConfig(rank=2), Pass(rows=((8, 0),) * 2), dtype=torch.float32)


def test_live_bytes_are_those_that_are_held_together() -> None:
    with Live([]) as live:
        first = torch.zeros(1000)
        second = first + 1.0
        assert live.now == 8000
        del first
        third = second * 2.0
        assert live.now == 8000
        view = third[:10]
        assert live.now == 8000
        del second, third
        assert live.now == 4000
        del view
    assert (live.now, live.peak) == (0, 8000)


def test_tensors_that_were_there_do_not_count() -> None:
    before = torch.zeros(1000)
    with Live([before]) as live:
        view = before.view(10, 100)
        made = view + 1.0
    assert live.now == made.numel() * 4


@pytest.mark.parametrize(
    "loss", [i for i in get_args(ForgetLossId) if i not in ("rmu", "residual")]
)
def test_a_loss_holds_the_logits_their_gradient_and_at_most_a_few_copies(
    loss: ForgetLossId,
) -> None:
    method = MethodConfig(forget_loss=loss, retain_loss="nll")
    assert 2.0 <= loss_width(method, dtype=torch.float32) <= 5.0


def test_distillation_holds_more_than_a_likelihood() -> None:
    plain, distilled = (
        loss_width(MethodConfig(forget_loss="ga", retain_loss=retain), dtype=torch.float32)
        for retain in ("nll", "kl")
    )
    assert distilled > plain + 0.5


def test_the_largest_pass_is_one_that_the_trial_makes(make_trial: TrialMaker) -> None:
    trial = make_trial({"batch.global_batch_size": 4})
    found = largest_passes(trial, new_outlines())
    assert not found.is_bound
    assert len(found.step.rows) == 8  # four forget rows and as many retain rows
    assert all(2 <= length <= 64 for length, _ in found.step.rows)
    assert len(found.probe.rows) <= trial.batch.probe_batch_size


def test_without_the_rows_each_is_as_long_as_it_may_be(make_trial: TrialMaker) -> None:
    trial = make_trial({"batch.global_batch_size": 4, "method.retain_loss": "none"})
    assert bounds(trial).step == Pass(rows=((64, 0),) * 4)
    assert bounds(trial).is_bound


def test_more_rows_need_more_activations_and_no_more_weights(make_trial: TrialMaker) -> None:
    one, two = (rank_memory(make_trial({"batch.global_batch_size": n})) for n in (2, 4))
    assert two.activations > 1.5 * one.activations
    assert two.weights == one.weights


def test_micro_batches_need_less_than_the_batch_at_once(make_trial: TrialMaker) -> None:
    whole = rank_memory(make_trial({"batch.global_batch_size": 8}))
    parts = rank_memory(make_trial({"batch.global_batch_size": 8, "batch.micro_batch_size": 2}))
    assert parts.activations + parts.step_logits < 0.6 * (whole.activations + whole.step_logits)


def test_all_weights_trained_need_more_than_an_adapter(make_trial: TrialMaker) -> None:
    adapter, full = (rank_memory(make_trial({"adapter.kind": kind})) for kind in ("lora", "full"))
    assert full.weights > 4 * adapter.weights


def test_trials_of_a_pack_share_the_base_and_probe_in_turn(make_trial: TrialMaker) -> None:
    trial = make_trial()
    one, two, three = (rank_memory(trial, slots=n) for n in (1, 2, 3))
    assert three.weights - two.weights == two.weights - one.weights < one.weights
    assert three.activations > 2.5 * one.activations
    assert three.step_logits == pytest.approx(3 * one.step_logits, rel=0.01)
    assert three.probe_logits == one.probe_logits
