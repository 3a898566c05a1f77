"""Which model is unlearned, and which one never saw the forget set."""

from typing import Literal

from core.config.section import Place, Section

ModelSource = Place
"""What a model is found by; :func:`core.model.source.problem` judges it, wherever one is given."""

Quantisation = Literal["none", "nf4"]


class ModelConfig(Section):
    """The target model, before unlearning."""

    source: ModelSource
    """``package:smollm2``, ``hub:ORG/NAME`` (or ``ORG/NAME``), or a folder written by ``save_pretrained``."""
    revision: str | None = None
    """Commit hash, tag or branch of a hub model; a commit hash makes the run repeatable."""
    tokenizer: ModelSource | None = None
    """Another source of the tokenizer, as ``source``, for a model without one; the model's own if absent. A
    ``retain_only`` model is read with it, too."""
    quantisation: Quantisation = "none"
    """``nf4``: the linear layers of the frozen model are held in 4 bits and compute in ``engine.dtype`` (QLoRA); a
    fraction of the memory, somewhat slower. Baselines, probes and reference are of the 4-bit model. Needs
    ``adapter.kind: lora`` and the package bitsandbytes (the extra ``bitsandbytes``)."""
    retain_only: ModelSource | None = None
    """A model of the same kind that never saw the forget set (``prepare`` makes one); its level on the forget
    set is then the target of forgetting, instead of the approximate set's."""
