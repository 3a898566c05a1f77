"""The unlearning method as a configuration: the losses, the facts about them, and their combination.

What a loss reads, needs and rules out stands here once; every rule elsewhere reads it. How a loss is
computed stands in :mod:`core.losses`, how a need is met in :mod:`core.training.needs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Literal

from pydantic import Field

from core.config.adapter import AdapterKind
from core.config.section import Section

ForgetLossId = Literal[
    "ga",
    "ihl",
    "random_labels",
    "adversarial_labels",
    "npo",
    "simnpo",
    "dpo",
    "idk_nll",
    "undial",
    "wga",
    "satimp",
    "ceu",
    "rmu",
    "pdu",
    "residual",
]
RetainLossId = Literal["none", "nll", "kl", "activation", "residual"]
RetainSource = Literal["in_distribution", "general"]
AdapterInit = Literal["lora", "svd", "fila", "vila"]
Alternatives = Literal["idk", "field"]

Reduction = Literal["token", "sequence"]
"""What a loss averages over; a micro-batch counts by its share of that number."""

Reads = Literal["forget", "alternative", "both"]
"""Which rows a forget loss reads: the forget set's, those with alternative answers, or both."""

Need = Literal[
    "reference_nll",
    "reference_logits",
    "reference_hidden",
    "hidden",
    "control",
    "residuals",
    "random_labels",
    "adversarial_labels",
]
"""What a loss needs beside logits and labels."""

Beta = Annotated[float, Field(gt=0.0, le=1000.0)]
Exponent = Annotated[float, Field(ge=0.0, le=100.0)]


class NpoConfig(Section):
    """Negative preference optimisation (Zhang et al., COLM 2024)."""

    beta: Beta = 0.1
    """Inverse temperature; towards 0 it becomes gradient ascent. Published: 0.05 to 0.5."""


class SimNpoConfig(Section):
    """NPO without a reference model, normalised by length (Fan et al., 2024)."""

    beta: Beta = 4.5
    """Inverse temperature. Published: 2.5 to 4.5 on TOFU, 0.7 on MUSE."""
    delta: Annotated[float, Field(ge=-100.0, le=100.0)] = 0.0
    """Margin in nats per token. Published: 0 or 1."""


class DpoConfig(Section):
    """Direct preference optimisation towards an alternative answer (Rafailov et al.; Maini et al.)."""

    beta: Beta = 0.1
    """Inverse temperature. Published: 0.05 to 0.5."""


class UndialConfig(Section):
    """Self-distillation with lowered true logits (Dong et al., 2024)."""

    beta: Beta = 10.0
    """How far the true token's logit is lowered. Published: 3 to 30."""


class WgaConfig(Section):
    """Weighted gradient ascent (Wang et al., 2025)."""

    beta: Exponent = 1.0
    """Exponent of the token's probability in its weight; 0 is gradient ascent."""


class SatImpConfig(Section):
    """Saturation and importance weighted ascent (Yang et al., 2025)."""

    beta1: Exponent = 5.0
    """Exponent of the token's probability. Published: 5 or 6."""
    beta2: Exponent = 1.0
    """Exponent of one minus the token's probability. Published: 1."""


class CeuConfig(Section):
    """Cross-entropy unlearning: towards the model's own distribution without the true token."""

    ignore_first_tokens: Annotated[int, Field(ge=0, le=10_000)] = 1
    """First counted tokens of each row that the loss leaves alone."""


class RmuConfig(Section):
    """Representation misdirection (Li et al., ICML 2024), and the place of the retain loss ``activation``."""

    layer: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Block whose output is steered, from 0, before the last; a third of the depth if absent. Published: 7."""
    steering: Annotated[float, Field(gt=0.0, le=1e6)] = 2.0
    """Length of the control vector. Published: 1 to 100; 20 for Zephyr-7B."""


class PduConfig(Section):
    """Primal-dual unlearning: flatten forget logits, subject to a limit on the retain loss."""

    retain_limit: Annotated[float, Field(ge=0.0, le=100.0)] = 0.3
    """Epsilon, nats per token: the retain loss may be at most this; a little above that of the untouched model."""
    dual_step: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    """Step of the dual variable, which replaces ``retain_weight`` after its first value. Published: 5."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """First optimiser steps during which the dual variable stays. Published: 3 to 5 epochs."""


class ResidualConfig(Section):
    """Residual feature alignment (after Qin et al., arXiv 2411.08443; the details are ours)."""

    shift: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    """Size of the forget target: rms of the wanted residual over rms of the layer's pre-trained output."""


class MethodConfig(Section):
    """The unlearning method, as a combination: forget loss, retain loss and its source, initialisation."""

    forget_loss: ForgetLossId
    """``ga`` gradient ascent; ``ihl`` inverted hinge; ``random_labels``, ``adversarial_labels`` (Yao et al.);
    ``npo``, ``simnpo``, ``dpo``, ``idk_nll`` (refusal), ``undial``, ``wga``, ``satimp``, ``ceu``, ``rmu``,
    ``pdu``, ``residual`` (feature alignment)."""
    forget_weight: Annotated[float, Field(ge=0.0, le=1000.0)] = 1.0
    """Factor on the forget loss (gamma of SimNPO, SatImp and RMU)."""
    retain_loss: RetainLossId = "nll"
    """``none``; ``nll``: next-token cross-entropy (gradient descent, "GD"); ``kl``: KL to the reference model;
    ``activation``: squared distance to its activations (RMU's); ``residual``: the adapter's output to zero."""
    retain_source: RetainSource = "in_distribution"
    """Rows of the retain loss: the retain set, or the general set."""
    retain_weight: Annotated[float, Field(ge=0.0, le=1000.0)] = 1.0
    """Factor on the retain loss; the dual variable's first value under ``pdu``."""
    adapter_init: AdapterInit = "lora"
    """``lora``: B = 0; ``svd``: principal part of W; ``fila``: weighted by Fisher information of W; ``vila``: by
    that of a random low-rank adapter."""
    alternatives: Alternatives = "idk"
    """Alternative answers of ``dpo`` and ``idk_nll``: ``idk`` takes shipped refusals, ``field`` the forget set's
    own (``data.forget.fields.alternative``)."""
    npo: NpoConfig = NpoConfig()
    """Hyperparameters of ``forget_loss: npo``."""
    simnpo: SimNpoConfig = SimNpoConfig()
    """Hyperparameters of ``forget_loss: simnpo``."""
    dpo: DpoConfig = DpoConfig()
    """Hyperparameters of ``forget_loss: dpo``."""
    undial: UndialConfig = UndialConfig()
    """Hyperparameters of ``forget_loss: undial``."""
    wga: WgaConfig = WgaConfig()
    """Hyperparameters of ``forget_loss: wga``."""
    satimp: SatImpConfig = SatImpConfig()
    """Hyperparameters of ``forget_loss: satimp``."""
    ceu: CeuConfig = CeuConfig()
    """Hyperparameters of ``forget_loss: ceu``."""
    rmu: RmuConfig = RmuConfig()
    """Hyperparameters of ``forget_loss: rmu`` and of ``retain_loss: activation``."""
    pdu: PduConfig = PduConfig()
    """Hyperparameters of ``forget_loss: pdu``."""
    residual: ResidualConfig = ResidualConfig()
    """Hyperparameters of ``forget_loss: residual``."""

    @property
    def forget_facts(self) -> "ForgetLossFacts":
        """Facts of the forget loss."""
        return FORGET_LOSS_FACTS[self.forget_loss]

    @property
    def retain_facts(self) -> "LossFacts | None":
        """Facts of the retain loss; ``None`` where there is none."""
        return RETAIN_LOSS_FACTS[self.retain_loss]

    @property
    def n_left_alone(self) -> int:
        """First labelled tokens of each forget row that the loss leaves out."""
        field = self.forget_facts.left_alone
        return 0 if field is None else int(attrgetter(field)(self))

    @property
    def reads_alternatives(self) -> bool:
        """Whether the forget loss reads alternative answers."""
        return self.forget_facts.reads != "forget"


@dataclass(frozen=True, kw_only=True)
class LossFacts:
    """What must be known of a loss without computing it.

    Attributes:
        reduction: What it averages over.
        needs: What it needs of each set of rows that it reads.
        fields: Fields of :class:`MethodConfig` below the weights and the ids that it looks at.
        adapter_kinds: Kinds of ``adapter.kind`` that it can train.
        needs_whole_weights: Whether ZeRO 3, which leaves each rank a part of every weight, rules it out.
        ends_at_block: Whether it looks at one block's output only, so that no gradient reaches later layers.
        because: Why, in words that follow its id; for messages.
        title: What it is called in messages; its id if empty.
    """

    reduction: Reduction
    needs: frozenset[Need] = frozenset()
    fields: tuple[str, ...] = ()
    adapter_kinds: tuple[AdapterKind, ...] = ("lora", "full")
    needs_whole_weights: bool = False
    ends_at_block: bool = False
    because: str = ""
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class ForgetLossFacts(LossFacts):
    """Facts of a forget loss.

    Attributes:
        reads: Which rows it reads. The reduction counts the first kind of them.
        retain_losses: Retain losses that it goes with; all if ``None``.
        left_alone: Field of :class:`MethodConfig` that says how many of the first labelled tokens of each
            row a loss on tokens leaves out; the reduction counts the others.
        sets_retain_weight: Whether ``retain_weight`` is only the first value of a dual variable.
    """

    reads: Reads = "forget"
    retain_losses: tuple[RetainLossId, ...] | None = None
    left_alone: str | None = None
    sets_retain_weight: bool = False


FORGET_LOSS_FACTS: Mapping[ForgetLossId, ForgetLossFacts] = {
    "ga": ForgetLossFacts(reduction="token"),
    "ihl": ForgetLossFacts(reduction="token"),
    "random_labels": ForgetLossFacts(reduction="token", needs=frozenset({"random_labels"})),
    "adversarial_labels": ForgetLossFacts(
        reduction="token", needs=frozenset({"adversarial_labels"})
    ),
    "npo": ForgetLossFacts(
        reduction="sequence", needs=frozenset({"reference_nll"}), fields=("npo.beta",)
    ),
    "simnpo": ForgetLossFacts(reduction="sequence", fields=("simnpo.beta", "simnpo.delta")),
    "dpo": ForgetLossFacts(
        reduction="sequence",
        reads="both",
        needs=frozenset({"reference_nll"}),
        fields=("dpo.beta", "alternatives"),
    ),
    "idk_nll": ForgetLossFacts(reduction="token", reads="alternative", fields=("alternatives",)),
    "undial": ForgetLossFacts(
        reduction="token", needs=frozenset({"reference_logits"}), fields=("undial.beta",)
    ),
    "wga": ForgetLossFacts(reduction="token", fields=("wga.beta",)),
    "satimp": ForgetLossFacts(reduction="token", fields=("satimp.beta1", "satimp.beta2")),
    "ceu": ForgetLossFacts(
        reduction="token",
        fields=("ceu.ignore_first_tokens",),
        left_alone="ceu.ignore_first_tokens",
    ),
    "rmu": ForgetLossFacts(
        reduction="sequence",
        needs=frozenset({"hidden", "control"}),
        fields=("rmu.layer", "rmu.steering"),
        ends_at_block=True,
    ),
    "pdu": ForgetLossFacts(
        reduction="token",
        fields=("pdu.retain_limit", "pdu.dual_step", "pdu.warmup_steps"),
        retain_losses=("nll",),
        because="limits the retain cross-entropy",
        sets_retain_weight=True,
    ),
    "residual": ForgetLossFacts(
        reduction="token",
        needs=frozenset({"residuals"}),
        fields=("residual.shift",),
        adapter_kinds=("lora",),
        needs_whole_weights=True,
        because="aligns the adapter's output",
        title="residual alignment",
    ),
}
"""Every forget loss by id, in the order of the ids."""

RETAIN_LOSS_FACTS: Mapping[RetainLossId, LossFacts | None] = {
    "none": None,
    "nll": LossFacts(reduction="token"),
    "kl": LossFacts(reduction="token", needs=frozenset({"reference_logits"})),
    "activation": LossFacts(
        reduction="sequence",
        needs=frozenset({"hidden", "reference_hidden"}),
        fields=("rmu.layer",),
        ends_at_block=True,
    ),
    "residual": LossFacts(
        reduction="token",
        needs=frozenset({"residuals"}),
        adapter_kinds=("lora",),
        needs_whole_weights=True,
        because="aligns the adapter's output",
        title="residual alignment",
    ),
}
"""Every retain loss by id, in the order of the ids; ``none`` has no facts."""


_GENERAL: Mapping[str, str] = {"retain_source": "general"}

METHODS: Mapping[str, Mapping[str, str]] = {
    "gradient ascent": {"forget_loss": "ga", "retain_loss": "none"},
    "random labels": {"forget_loss": "random_labels", "retain_loss": "none"},
    "adversarial labels": {"forget_loss": "adversarial_labels", "retain_loss": "none"},
    "GA+GD in-distribution": {"forget_loss": "ga", "retain_loss": "nll"},
    "GA+GD general": {"forget_loss": "ga", "retain_loss": "nll", **_GENERAL},
    "GA+KL in-distribution": {"forget_loss": "ga", "retain_loss": "kl"},
    "GA+KL general": {"forget_loss": "ga", "retain_loss": "kl", **_GENERAL},
    "IHL": {"forget_loss": "ihl", "retain_loss": "none"},
    "IHL+GD": {"forget_loss": "ihl", "retain_loss": "nll"},
    "LoKU (IHL+GD+FILA)": {"forget_loss": "ihl", "retain_loss": "nll", "adapter_init": "fila"},
    "VILA": {"forget_loss": "ihl", "retain_loss": "nll", "adapter_init": "vila"},
    "NPO": {"forget_loss": "npo", "retain_loss": "nll"},
    "SimNPO": {"forget_loss": "simnpo", "retain_loss": "nll"},
    "DPO": {"forget_loss": "dpo", "retain_loss": "nll", "alternatives": "field"},
    "IdkDPO": {"forget_loss": "dpo", "retain_loss": "nll", "alternatives": "idk"},
    "Idk-NLL": {"forget_loss": "idk_nll", "retain_loss": "nll", "alternatives": "idk"},
    "UNDIAL": {"forget_loss": "undial", "retain_loss": "nll"},
    "WGA": {"forget_loss": "wga", "retain_loss": "nll"},
    "SatImp": {"forget_loss": "satimp", "retain_loss": "nll"},
    "CEU": {"forget_loss": "ceu", "retain_loss": "nll"},
    "RMU": {"forget_loss": "rmu", "retain_loss": "activation"},
    "PDU": {"forget_loss": "pdu", "retain_loss": "nll"},
    "residual feature alignment": {"forget_loss": "residual", "retain_loss": "residual"},
}
"""The field's names of methods, each a combination; the rest of :class:`MethodConfig` is free."""
