"""Losses against published code: values and gradients of every variant, and every deviation on purpose."""

from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import Variant, variants
from torch import Tensor

from core.config.method import (
    CeuConfig,
    DpoConfig,
    ForgetLossId,
    MethodConfig,
    NpoConfig,
    RetainLossId,
    SatImpConfig,
    SimNpoConfig,
    UndialConfig,
    WgaConfig,
)
from core.losses import (
    FORGET_LOSSES,
    IGNORED,
    RETAIN_LOSSES,
    Outputs,
    RetainLoss,
    activation_loss,
    adversarial_labels,
    counted_positions,
    counted_tokens,
    dual_update,
    inverted_hinge_loss,
    kl_loss,
    pdu_loss,
    random_labels,
    rmu_loss,
    sequence_nll,
    simnpo_loss,
    undial_loss,
)


def outputs(variant: Variant, part: str) -> Outputs:
    """``forget``, ``retain`` or ``alt`` of a variant, as the worker would give it to a loss."""
    logits, reference, labels = variant.part(part)
    return Outputs(
        logits=logits,
        labels_BT=labels,
        given={
            "reference_logits": reference,
            "reference_nll": sequence_nll(reference, labels),
        },
    )


def forgetting(
    loss_id: ForgetLossId,
    forget: Outputs | None,
    alternative: Outputs | None = None,
    **hyperparameters: Any,
) -> Tensor:
    method = MethodConfig(forget_loss=loss_id, **hyperparameters)
    return FORGET_LOSSES[loss_id].compute(forget, alternative, method)


def retaining(loss_id: RetainLossId, rows: Outputs) -> Tensor:
    loss = RETAIN_LOSSES[loss_id]
    assert isinstance(loss, RetainLoss)
    return loss.compute(rows, MethodConfig(forget_loss="ga", retain_loss=loss_id))


def gradients_agree(variant: Variant, total: Tensor, **parts: Outputs) -> None:
    """Gradient of ``total`` with respect to the logits of each part."""
    for name, rows in parts.items():
        (gradient,) = torch.autograd.grad(total, rows.logits, retain_graph=True)
        variant.agrees(gradient, f"grad.{name}_logits", kind="gradients")


def at_every_position(logits: Tensor) -> Tensor:
    """Logits with a row's end appended, so that the last real position predicts a token too."""
    return torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1)


def unshifted(labels: Tensor) -> Tensor:
    """Labels under which ``logits[t]`` of :func:`at_every_position` goes with ``labels[t]``."""
    return torch.cat([torch.full_like(labels[:, :1], IGNORED), labels], dim=1)


def kl_at_every_position(rows: Outputs) -> Tensor:
    """Our KL as the references average it: over prompt, padding and the last position too."""
    everything = torch.zeros_like(unshifted(rows.labels_BT))
    return kl_loss(
        at_every_position(rows.logits),
        at_every_position(rows.tensor("reference_logits")),
        everything,
    )


@variants("loku_ga", "ou_grad_ascent")
def test_golden_ascent(variant: Variant) -> None:
    forget = outputs(variant, "forget")
    total = forgetting("ga", forget)
    variant.agrees(total, "total")
    gradients_agree(variant, total, forget=forget)


@variants("yao_ga")
def test_golden_ascent_whose_reported_value_is_divided_by_the_accumulation_steps(
    variant: Variant,
) -> None:
    forget = outputs(variant, "forget")
    total = forgetting("ga", forget)
    variant.agrees(total, "backward_loss")
    variant.agrees(total / variant.params["gradient_accumulation_steps"], "returned")
    gradients_agree(variant, total, forget=forget)


@variants("loku_gd")
def test_golden_ascent_plus_descent(variant: Variant) -> None:
    forget, retain = outputs(variant, "forget"), outputs(variant, "retain")
    kept = retaining("nll", retain)
    total = forgetting("ga", forget) + kept
    variant.agrees(kept, "retain_loss")
    variant.agrees(total, "total")
    gradients_agree(variant, total, forget=forget, retain=retain)


@variants("ou_grad_diff")
def test_golden_weighted_ascent_plus_descent_or_kl(variant: Variant) -> None:
    """The reference's KL averages over every position; ours over counted tokens."""
    forget, retain = outputs(variant, "forget"), outputs(variant, "retain")
    if variant.params["retain_loss_type"] == "NLL":
        kept = retaining("nll", retain)
    else:
        kept = kl_at_every_position(retain)
        variant.deviates(retaining("kl", retain), "retain_loss", by=5e-4)
    total = variant.params["gamma"] * forgetting("ga", forget) + variant.params["alpha"] * kept
    variant.agrees(kept, "retain_loss")
    variant.agrees(total, "total")
    gradients_agree(variant, total, forget=forget, retain=retain)


@variants("yao_ascent_plus_descent")
def test_golden_ascent_plus_descent_by_sample(variant: Variant) -> None:
    """The reference averages per-row means over all rows; ours averages each side over its tokens."""
    forget, retain = outputs(variant, "forget"), outputs(variant, "retain")
    per_row = torch.cat(
        [
            sequence_nll(rows.logits, rows.labels_BT) / counted_tokens(rows.labels_BT).sum(-1)
            for rows in (forget, retain)
        ]
    )
    total = (variant.tensor(variant.inputs["factor"]) * per_row).mean()
    variant.agrees(per_row, "per_sample_nll")
    variant.agrees(total, "total")
    gradients_agree(variant, total, forget=forget, retain=retain)
    ours = forgetting("ga", forget)
    ours = ours + variant.params["positive_factor"] * retaining("nll", retain)
    variant.deviates(ours, "total", by=0.05)


@variants("yao_ascent_plus_kl")
def test_golden_ascent_plus_kl_and_entropy(variant: Variant) -> None:
    """The reference averages over every position and reports KL plus the entropy of its model."""
    forget, retain = outputs(variant, "forget"), outputs(variant, "retain")
    k_term = kl_at_every_position(retain) + variant.derived["mean_ref_entropy"]
    total = forgetting("ga", forget) + variant.params["positive_factor"] * k_term
    variant.agrees(k_term, "k_term")
    variant.agrees(total, "total")
    gradients_agree(variant, total, forget=forget, retain=retain)
    variant.deviates(retaining("kl", retain), "k_term", by=0.5)


@variants("loku_kl")
def test_golden_kl(variant: Variant) -> None:
    """The reference averages over every position; ours is its derived mean over counted tokens."""
    forget, retain = outputs(variant, "forget"), outputs(variant, "retain")
    ours, lowered = retaining("kl", retain), forgetting("ga", forget)
    variant.agrees(ours, "kl_masked_mean", kind="kl", derived=True)
    variant.deviates(ours, "kl", by=5e-4)
    theirs = kl_at_every_position(retain)
    variant.agrees(theirs, "kl", kind="kl")
    variant.agrees(lowered, "forget_loss")
    variant.agrees(lowered + theirs, "total")
    gradients_agree(variant, lowered + theirs, forget=forget, retain=retain)
    one_by_one = [
        kl_loss(
            at_every_position(retain.logits[b : b + 1, t : t + 1]),
            at_every_position(retain.tensor("reference_logits")[b : b + 1, t : t + 1]),
            torch.zeros(1, 2, dtype=torch.long),
        )
        for b, t in np.ndindex(*retain.labels_BT.shape)
    ]
    per_position = torch.stack(one_by_one).view_as(retain.labels_BT)
    variant.agrees(per_position, "kl_per_position", kind="kl_per_position")


@variants("loku_ihl")
def test_golden_hinge(variant: Variant) -> None:
    forget, retain = outputs(variant, "forget"), outputs(variant, "retain")
    lowered, kept = forgetting("ihl", forget), retaining("nll", retain)
    variant.agrees(lowered, "forget_loss")
    variant.agrees(kept, "retain_loss")
    variant.agrees(lowered + kept, "total")
    gradients_agree(variant, lowered + kept, forget=forget)
    one_by_one = []
    for b, t in counted_tokens(forget.labels_BT).nonzero().tolist():
        only = torch.full_like(forget.labels_BT, IGNORED)
        only[b, t + 1] = forget.labels_BT[b, t + 1]
        one_by_one.append(inverted_hinge_loss(forget.logits, only))
    variant.agrees(torch.stack(one_by_one), "per_token_forget")


@variants("loku_ihl_unit_interval")
def test_golden_hinge_of_logits_in_the_unit_interval(variant: Variant) -> None:
    """The reference takes such logits for probabilities; ours always applies the softmax."""
    rows = variant.tensor(variant.inputs["logits"])
    answers = variant.tensor(variant.inputs["labels"])
    found = inverted_hinge_loss(at_every_position(rows.unsqueeze(1)), unshifted(answers[:, None]))
    variant.agrees(found, "forget_loss_with_softmax", derived=True)
    variant.deviates(found, "forget_loss", by=0.5)


@variants("loku_idk")
def test_golden_refusals(variant: Variant) -> None:
    """The reference pools the tokens of refusals and retain rows; ours is a sum of two means."""
    alternative, retain = outputs(variant, "alt"), outputs(variant, "retain")
    refused, kept = forgetting("idk_nll", None, alternative), retaining("nll", retain)
    n_refused, n_kept = (int(counted_tokens(r.labels_BT).sum()) for r in (alternative, retain))
    pooled = (n_refused * refused + n_kept * kept) / (n_refused + n_kept)
    variant.agrees(pooled, "total")
    gradients_agree(variant, pooled, alt=alternative, retain=retain)
    variant.deviates(refused + kept, "total", by=1.0)


@variants("loku_npo", "ou_npo")
def test_golden_npo(variant: Variant) -> None:
    params = variant.params
    forget, retain = outputs(variant, "forget"), outputs(variant, "retain")
    lowered = forgetting("npo", forget, npo=NpoConfig(beta=params["beta"]))
    kept = retaining("nll", retain)
    total = params.get("npo_coeff", params.get("gamma")) * lowered
    total = total + params.get("grad_diff_coeff", params.get("alpha")) * kept
    variant.agrees(sequence_nll(forget.logits, forget.labels_BT), "nll_current")
    variant.agrees(forget.tensor("reference_nll"), "nll_reference")
    variant.agrees(lowered, "forget_loss")
    variant.agrees(kept, "retain_loss")
    variant.agrees(total, "total")
    gradients_agree(variant, total, forget=forget)


@variants("ou_simnpo")
def test_golden_simnpo(variant: Variant) -> None:
    """The reference divides by the number of labels, ours by that of predicted tokens."""
    params = variant.params
    beta, delta = params["beta"], params["delta"]
    forget, retain = outputs(variant, "forget"), outputs(variant, "retain")
    lowered = forgetting("simnpo", forget, simnpo=SimNpoConfig(beta=beta, delta=delta))
    n_labels = counted_positions(forget.labels_BT).sum(-1)
    n_predicted = counted_tokens(forget.labels_BT).sum(-1)
    if not torch.equal(n_labels, n_predicted):
        variant.deviates(lowered, "forget_loss", by=0.01)
        assert delta == 0
        assert len(set((n_predicted / n_labels).tolist())) == 1  # one factor for all rows
        factor = float((n_predicted / n_labels)[0])
        lowered = factor * simnpo_loss(
            forget.logits, forget.labels_BT, beta=factor * beta, delta=0.0
        )
    kept = retaining("nll", retain)
    total = params["gamma"] * lowered + params["alpha"] * kept
    variant.agrees(lowered, "forget_loss")
    variant.agrees(kept, "retain_loss")
    variant.agrees(total, "total")
    gradients_agree(variant, total, forget=forget)


@variants("ou_dpo")
def test_golden_dpo(variant: Variant) -> None:
    params = variant.params
    forget, alternative = outputs(variant, "forget"), outputs(variant, "alt")
    retain = outputs(variant, "retain")
    preferred = forgetting("dpo", forget, alternative, dpo=DpoConfig(beta=params["beta"]))
    kept = retaining("nll", retain)
    total = params["gamma"] * preferred + params["alpha"] * kept
    variant.agrees(preferred, "forget_loss")
    variant.agrees(kept, "retain_loss")
    variant.agrees(total, "total")
    gradients_agree(variant, total, forget=forget, alt=alternative)


@variants("ou_wga")
def test_golden_weighted_ascent(variant: Variant) -> None:
    params = variant.params
    forget, retain = outputs(variant, "forget"), outputs(variant, "retain")
    lowered = forgetting("wga", forget, wga=WgaConfig(beta=params["beta"]))
    kept = retaining("nll", retain)
    total = params["gamma"] * lowered + params["alpha"] * kept
    variant.agrees(lowered, "forget_loss")
    variant.agrees(kept, "retain_loss")
    variant.agrees(total, "total")
    gradients_agree(variant, total, forget=forget)


@variants("ou_satimp")
def test_golden_saturation_and_importance(variant: Variant) -> None:
    params = variant.params
    forget, retain = outputs(variant, "forget"), outputs(variant, "retain")
    exponents = SatImpConfig(beta1=params["beta1"], beta2=params["beta2"])
    lowered, kept = forgetting("satimp", forget, satimp=exponents), retaining("nll", retain)
    total = params["gamma"] * lowered + params["alpha"] * kept
    variant.agrees(lowered, "forget_loss")
    variant.agrees(kept, "retain_loss")
    variant.agrees(total, "total")
    gradients_agree(variant, total, forget=forget)


@variants("ou_ceu")
def test_golden_cross_entropy_unlearning(variant: Variant) -> None:
    forget = outputs(variant, "forget")
    n_first = variant.params["ignore_first_n_answer_tokens"]
    total = forgetting("ceu", forget, ceu=CeuConfig(ignore_first_tokens=n_first))
    variant.agrees(total, "total")
    gradients_agree(variant, total, forget=forget)


@variants("ou_undial")
def test_golden_undial(variant: Variant) -> None:
    """The reference averages over all predictions, and lowers entry V - 100 where a label is -100."""
    params = variant.params
    forget, retain = outputs(variant, "forget"), outputs(variant, "retain")
    logits, reference, labels = (
        forget.logits,
        forget.tensor("reference_logits"),
        forget.labels_BT,
    )
    assert reference is not None
    ours = forgetting("undial", forget, undial=UndialConfig(beta=params["beta"]))
    variant.agrees(ours, "masked_mean", derived=True)
    if not bool(counted_tokens(labels).all()):
        variant.deviates(ours, "forget_loss", by=0.02)
    as_index = labels.where(counted_positions(labels), logits.shape[-1] + IGNORED)
    theirs = undial_loss(logits, reference, as_index, beta=params["beta"])
    total = params["gamma"] * theirs + params["alpha"] * retaining("nll", retain)
    variant.agrees(theirs, "forget_loss")
    variant.agrees(retaining("nll", retain), "retain_loss")
    variant.agrees(total, "total")
    gradients_agree(variant, total, forget=forget)
    one_by_one = [
        undial_loss(
            logits[b : b + 1, t : t + 2],
            reference[b : b + 1, t : t + 2],
            as_index[b : b + 1, t : t + 2],
            beta=params["beta"],
        )
        for b, t in np.ndindex(len(labels), labels.shape[1] - 1)
    ]
    per_token = torch.stack(one_by_one).view(len(labels), -1)
    variant.agrees(per_token, "per_token_forget")


@variants("ou_pdu")
def test_golden_primal_dual(variant: Variant) -> None:
    """The reference pairs ``logits[t]`` with ``labels[t]``; ours, as everywhere, with ``labels[t + 1]``."""
    params = variant.params
    forget, retain = outputs(variant, "forget"), outputs(variant, "retain")
    variant.deviates(forgetting("pdu", forget), "forget_loss", by=0.1)
    flattened = pdu_loss(at_every_position(forget.logits), unshifted(forget.labels_BT))
    kept, limit = retaining("nll", retain), params["retain_loss_eps"]
    total = params["w_forget"] * flattened + params["w_retain"] * (kept - limit)
    variant.agrees(flattened, "forget_loss")
    variant.agrees(kept, "retain_loss")
    variant.agrees(total, "total")
    gradients_agree(variant, total, forget=forget)
    step = params["dual_step_size"] if params["primal_dual"] else 0.0
    weight = dual_update(params["w_retain"], kept.item(), limit=limit, step=step)
    variant.agrees(weight, "w_retain_after")


@variants("ou_rmu")
def test_golden_representation_misdirection(variant: Variant) -> None:
    """The reference divides each row's sum by every row's count; ours is its derived per-row mean."""
    given = {name: variant.tensor(entry) for name, entry in variant.inputs.items()}
    hidden = given["forget.activations"].requires_grad_()
    kept_hidden = given["retain.activations"].requires_grad_()
    control, reference = given["control_vector"].flatten(), given["retain.ref_activations"]
    masks = {part: counted_positions(given[f"{part}.labels"]) for part in ("forget", "retain")}

    def steered(rows: slice) -> Tensor:
        return rmu_loss(hidden[rows], control, masks["forget"][rows])

    def kept(rows: slice) -> Tensor:
        return activation_loss(kept_hidden[rows], reference[rows], masks["retain"][rows])

    totals = {}
    for part, loss in (("forget", steered), ("retain", kept)):
        ours = loss(slice(None))
        variant.agrees(ours, f"{part}_per_sample_mean", derived=True)
        counts = masks[part].sum(-1)
        sums = [n * loss(slice(b, b + 1)) for b, n in enumerate(counts.tolist())]
        theirs = torch.stack(sums).mean() * (1 / counts).mean()
        variant.agrees(theirs, f"{part}_loss")
        if len(set(counts.tolist())) > 1:
            variant.deviates(ours, f"{part}_loss", by=0.02)
        totals[part] = theirs
    total = variant.params["gamma"] * totals["forget"] + variant.params["alpha"] * totals["retain"]
    variant.agrees(total, "total")
    gradients = torch.autograd.grad(total, [hidden, kept_hidden])
    variant.agrees(gradients[0], "grad.forget_activations", kind="gradients")
    variant.agrees(gradients[1], "grad.retain_activations", kind="gradients")


@variants("yao_adversarial_labels")
def test_golden_adversarial_labels(variant: Variant) -> None:
    """The reference chooses the label of token t from ``logits[t]``; ours, as defined, from ``logits[t - 1]``."""
    logits = variant.tensor(variant.inputs["logits"]).clone()
    ids = variant.tensor(variant.inputs["input_ids"])
    last = logits.shape[-1] - 1
    logits[..., last] = -torch.inf  # the reference never chooses the last entry
    ours = adversarial_labels(logits, ids)
    intended = variant.tensor(variant.derived["intended_adversarial_labels"])
    variant.agrees_with(ours[:, 1:], intended[:, 1:], "intended_adversarial_labels", kind="labels")
    assert ours[:, 0].tolist() == [IGNORED] * len(ours)
    first = variant.tensor(variant.expected["labels"])[:, :1]  # ours has none there
    variant.deviates(torch.cat([first, ours[:, 1:]], dim=1), "labels", by=0.5)
    true = ids if variant.params["rm_groundtruth"] else torch.full_like(ids, last)
    theirs = adversarial_labels(at_every_position(logits), unshifted(true))[:, 1:]
    filtered = variant.tensor(variant.expected["filtered_logits"])
    variant.agrees_with(theirs, filtered.argmax(-1), "argmax of filtered_logits", kind="labels")
    if variant.params["top_k"] == 1:
        variant.agrees(theirs, "labels", kind="labels")


@variants("yao_random_labels")
def test_golden_random_labels(variant: Variant) -> None:
    """The reference keeps special tokens and ignores a drawn padding id; ours replaces every labelled one."""
    params = variant.params
    ids = variant.tensor(variant.expected["input_ids"])
    padding = ids == params["pad_id"]
    if not params["random_label"]:
        drawn = random_labels(variant.tensor(variant.expected["labels"]), vocabulary=23, seed=0)
        variant.agrees_with(drawn == IGNORED, padding, "ignored labels", kind="all")
        return
    (seed,) = (v["seed"] for v in variant.case.manifest["variants"] if v["name"] == variant.name)
    special = torch.isin(
        ids, torch.tensor([params[f"{n}_id"] for n in ("pad", "eos", "bos", "unk")])
    )
    drawn = random_labels(ids.masked_fill(special, IGNORED), vocabulary=params["vocab"], seed=seed)
    theirs = ids.where(special, drawn)
    theirs = theirs.masked_fill(theirs == params["pad_id"], IGNORED)
    variant.agrees(theirs, "labels", kind="all")
    ours = random_labels(ids.masked_fill(padding, IGNORED), vocabulary=params["vocab"], seed=seed)
    variant.deviates(ours, "labels", by=0.5)


def test_golden_cases_of_every_reference_give_the_same_ascent() -> None:
    """LoKU, OpenUnlearning and Yao et al. mean one and the same number by gradient ascent."""
    from golden_cases import Case

    found = {
        name: {v.params["set"]: v.expected[quantity] for v in Case(name).variants}
        for name, quantity in (
            ("loku_ga", "total"),
            ("ou_grad_ascent", "total"),
            ("yao_ga", "backward_loss"),
        )
    }
    for name in ("ou_grad_ascent", "yao_ga"):
        for key, value in found[name].items():
            assert value == pytest.approx(found["loku_ga"][key], rel=1e-6)
