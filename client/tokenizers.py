"""Loading of a base model's tokenizer; `transformers` is imported only then."""

import os
from typing import Any

from .errors import BadRequest, NotFound
from .messages import ModelCard


def load_tokenizer(card: ModelCard) -> Any:
    """The tokenizer of a model, from the directory or hub name that the server gives for it.

    Raises:
        NotFound: the server names none, or a directory that is not on this machine.
        BadRequest: `transformers` is not installed.
    """
    name = card.tokenizer
    if not name:
        raise NotFound(f"the server names no tokenizer for {card.name}")
    if os.path.isabs(name) and not os.path.isdir(name):
        raise NotFound(f"the tokenizer of {card.name} is in {name}, which is not on this machine")
    try:
        import transformers
    except ImportError:
        raise BadRequest("a tokenizer needs the package transformers; install it") from None
    loader: Any = transformers.AutoTokenizer
    return loader.from_pretrained(name)
