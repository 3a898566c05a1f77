"""The unlearning method as a configuration: a combination, and the hyperparameters of its losses."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

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
