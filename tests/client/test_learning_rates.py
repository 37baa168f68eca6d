"""The learning-rate rule gives the published values, and no others."""

import pytest

from weft.client import BadRequest, ModelData, SupportedModel, lora_learning_rate

# 5e-4 * (2000 / width) ** power, worked out by hand.
PUBLISHED = [
    pytest.param("qwen3", 4096, 4.7298e-4, id="Qwen3-8B"),
    pytest.param("qwen3_moe", 2048, 4.9908e-4, id="Qwen3-30B-A3B"),
    pytest.param("llama", 4096, 2.8564e-4, id="Llama-3.1-8B"),
    pytest.param("llama", 2000, 5e-4, id="reference width"),
]


@pytest.mark.parametrize(("model_type", "width", "expected"), PUBLISHED)
def test_the_two_fitted_families(model_type: str, width: int, expected: float) -> None:
    rate = lora_learning_rate(ModelData(model_type=model_type, width=width))
    assert rate == pytest.approx(expected, rel=1e-4)  # digits written down


def test_another_type_is_refused_with_what_could_be_taken() -> None:
    model = SupportedModel(
        model_name="g", max_context_length=8, model_type="gemma3_text", width=4096
    )
    with pytest.raises(BadRequest, match=r"'gemma3_text'.*'llama' \(0.00029\).*'qwen' \(0.00047\)"):
        lora_learning_rate(model)
    assert lora_learning_rate(model, like="llama") == pytest.approx(2.8564e-4, rel=1e-4)


def test_an_unknown_width_and_an_unknown_family_are_refused() -> None:
    with pytest.raises(BadRequest, match="the width of m is not known"):
        lora_learning_rate(ModelData(model_name="m", model_type="qwen3"))
    with pytest.raises(BadRequest, match="like is 'gpt'"):
        lora_learning_rate(ModelData(model_type="x", width=8), like="gpt")
