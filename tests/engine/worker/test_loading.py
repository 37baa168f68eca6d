"""What turns tokens into text."""

import random
from pathlib import Path

from weft.engine.worker.loading import load_decode, load_tokenizer
from weft.engine.worker.model_names import ModelSource, find_model


def test_the_built_in_model_decodes_as_transformers_does() -> None:
    source = find_model("weft/tiny")
    decode, tokenizer = load_decode(source), load_tokenizer(source)
    assert decode is not None
    assert tokenizer is not None
    generator = random.Random(1)
    drawn = [[generator.randrange(len(tokenizer)) for _ in range(9)] for _ in range(300)]
    for tokens in [[token] for token in range(len(tokenizer))] + drawn:
        assert decode(tokens) == tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


def test_a_directory_without_a_tokenizer_decodes_nothing(tmp_path: Path) -> None:
    assert load_decode(ModelSource("model", tmp_path, ())) is None
