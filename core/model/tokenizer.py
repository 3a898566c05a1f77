"""Door to transformers: the tokenizer of a model, its own or another source's."""

from pathlib import Path
from typing import Any

import transformers

from core.config import ModelConfig
from core.errors import ModelError
from core.model.source import locate, tokenizer_problem


def load_tokenizer(config: ModelConfig, *, field: str, is_local: bool = False) -> Any:
    """The tokenizer at ``model.tokenizer``, or beside the model where that is absent.

    Args:
        config: The model.
        field: Where the model was given, for the message.
        is_local: Without a network.

    Raises:
        ModelError: If there is none: transformers then gives one without a vocabulary, which reads no text.
    """
    if config.tokenizer is None:
        named = field
        location, revision = locate(config, field=field)
    else:
        named = "model.tokenizer"
        found_wrong = tokenizer_problem(config.tokenizer, field=named)
        if found_wrong is not None:
            raise ModelError(found_wrong)
        if Path(config.tokenizer).is_dir():  # it need not hold a model
            location, revision = config.tokenizer, None
        else:
            location, revision = locate(ModelConfig(source=config.tokenizer), field=named)
    lacking = (
        f"{named}: {location!r} holds no tokenizer that reads text; put its files there (tokenizer.json and "
        "tokenizer_config.json, as save_pretrained writes them), or name another source of it as model.tokenizer "
        "(evaluate: --tokenizer)"
    )
    if Path(location).is_dir() and tokenizer_problem(location) is not None:
        raise ModelError(lacking)
    found: Any = transformers.AutoTokenizer.from_pretrained(
        location, revision=revision, trust_remote_code=False, local_files_only=is_local
    )
    if not found("a", add_special_tokens=False)["input_ids"]:
        raise ModelError(lacking)
    return found
