"""Size and place of the adapter, and how Fisher information initialises it."""

from typing import Annotated, Literal

from pydantic import Field

from core.config.section import Positive, Section

TargetGroup = Literal["attention", "mlp", "all"]
AdapterKind = Literal["lora", "full"]


class AdapterConfig(Section):
    """Size, strength and place of the low-rank adapter."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank r of the trained factors."""
    scaling: Annotated[float, Field(gt=0.0, le=64.0)] = 2.0
    """Strength s = alpha / r, fixed apart from the rank so that rank is not confounded with step size."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of its inputs that the adapter does not see in a training pass, drawn anew for each layer and pass, the
    others scaled up; probes and what is saved see all. Not with ``engine.packing``."""
    targets: TargetGroup = "all"
    """Linear layers that carry an adapter, found by looking at the model: attention, MLP, or both."""
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Blocks that carry one, from 0; all if absent."""
    kind: AdapterKind = "lora"
    """``full``: no adapter, all weights of a copy of the model are trained; ``rank`` and the rest have no effect."""


class FisherConfig(Section):
    """How Fisher information weights the initial adapter (for ``adapter_init: fila`` and ``vila``)."""

    exponent: Annotated[float, Field(ge=0.0, le=4.0)] = 0.5
    """Row weight = (sum over a row of F_forget / F_retain) ** exponent; 0 is the plain SVD, 0.5 the paper's."""
    floor: Annotated[float, Field(gt=0.0, le=1e6)] = 0.01
    """Added to F_retain before the division; see ``floor_kind``."""
    floor_kind: Literal["relative", "absolute"] = "relative"
    """``relative``: ``floor`` times the mean F_retain of the matrix; ``absolute``: ``floor`` itself (paper: 1e-5)."""
    normalise: Literal["geometric_mean", "none"] = "geometric_mean"
    """Divide a matrix's row weights by their geometric mean; ``none`` repeats the paper's code."""
    rows: Positive | None = None
    """Rows of the forget set, and as many of the retain set, that Fisher is measured on; all forget rows if absent."""
    batch_size: Positive = 1
    """Rows whose mean gradient is squared; 1 is the per-sequence empirical Fisher, the paper's code uses 2 to 4."""
    lora_rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """``vila``: rank of the random adapter in whose space Fisher is measured."""
    lora_sigma: Annotated[float, Field(gt=0.0, le=10.0)] = 0.05
    """``vila``: standard deviation of its entries."""
