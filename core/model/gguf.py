"""Door to transformers: convert a GGUF file. Lies below the packaged models and knows nothing of them."""

from pathlib import Path

import torch
import transformers


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Convert a GGUF file to an ordinary float32 model folder with safetensors."""
    source, quantisation = str(gguf.parent), transformers.GgufConfig(dequantize=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)  # nosec B615
    network = transformers.AutoModelForCausalLM.from_pretrained(  # nosec B615
        source, gguf_file=gguf.name, dtype=torch.float32, quantization_config=quantisation
    )
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
