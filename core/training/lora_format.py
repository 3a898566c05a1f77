"""The files of a saved adapter as their readers know them: stock PEFT of any age, and vLLM. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from core.errors import FileError, foreign, in_a_line
from core.store.texts import read_json

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for ``--max-lora-rank``; it refuses an adapter of a higher rank."""


def refuse_torn(weights: Path) -> None:
    """Refuse a file of weights that is not whole: its header names every tensor and where it ends.

    Raises:
        FileError: If it is no such file, or shorter or longer than its header says.
    """

    def refused(err: Exception) -> FileError:
        problem = f"cannot be read ({in_a_line(err)}); restore the file from a copy"
        return FileError(str(weights), problem)

    with foreign(refused), safe_open(weights, framework="numpy"):
        pass


@dataclass(frozen=True, kw_only=True)
class SavedLora:
    """What ``adapter_config.json`` says of an ordinary LoRA.

    Attributes:
        base: What names the original model.
        rank: Rank of its factors.
        alpha: LoRA's alpha: its strength is alpha over the rank.
        targets: Names of the layers that carry factors.
        is_transposed: Whether these layers are GPT-2's Conv1D.
    """

    base: str
    rank: int
    alpha: float
    targets: Sequence[str]
    is_transposed: bool

    @classmethod
    def read(cls, folder: Path) -> "SavedLora":
        """That of an adapter that we saved, in whatever release.

        Raises:
            FileError: If the file is damaged.
        """
        path = folder / CONFIG_FILE
        found = read_json(path)
        try:
            return cls(
                base=str(found["base_model_name_or_path"]),
                rank=int(found["r"]),
                alpha=float(found["lora_alpha"]),
                targets=tuple(found["target_modules"]),
                is_transposed=bool(found["fan_in_fan_out"]),
            )
        except (KeyError, TypeError, ValueError) as err:
            problem = f"is not what a trial saved ({in_a_line(err)}); restore the file from a copy"
            raise FileError(str(path), problem) from err

    @property
    def scaling(self) -> float:
        """Strength s of the product of the factors."""
        return self.alpha / self.rank

    @property
    def max_lora_rank(self) -> int | None:
        """What vLLM's ``--max-lora-rank`` must be at least; ``None`` if no value is enough."""
        return next((known for known in VLLM_RANKS if known >= self.rank), None)

    def as_json(self) -> dict[str, Any]:
        """The file: fields that each PEFT since 0.7 knows, and no others.

        What PEFT itself writes names every option of its release, and older ones complain of those they do
        not know; each field left out has, in every release, the default of an ordinary LoRA.
        """
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "inference_mode": True,
            "r": self.rank,
            "lora_alpha": int(self.alpha) if self.alpha.is_integer() else self.alpha,
            "lora_dropout": 0.0,
            "target_modules": sorted(self.targets),
            "bias": "none",
            "fan_in_fan_out": self.is_transposed,
            "init_lora_weights": True,
            "modules_to_save": None,
        }


def refuse_foreign_code(folder: Path) -> None:
    """Refuse an adapter from anywhere for which a reader would do more than read tensors.

    Where there is no safetensors file PEFT reads ``adapter_model.bin``, a pickle; older releases import any module that
    a configuration for Megatron names; and a mixture of adapters has it load others from wherever it says.

    Raises:
        FileError: With what the folder has or lacks.
    """
    if not (folder / WEIGHTS_FILE).is_file():
        raise FileError(str(folder), f"holds no {WEIGHTS_FILE}; convert its weights to safetensors")
    path = folder / CONFIG_FILE
    found = read_json(path)
    if not isinstance(found, dict):
        raise FileError(str(path), "is no configuration of an adapter; restore it from a copy")
    kind = found.get("peft_type")
    if not isinstance(kind, str) or kind.upper() == "XLORA":
        raise FileError(
            str(path), f"peft_type: one adapter is expected, got {kind!r}; merge a mixture first"
        )
    if found.get("megatron_config") is not None:
        raise FileError(
            str(path),
            "megatron_config: names Python code to be imported; remove it, only training with Megatron needs it",
        )
