"""Conversations become tokens and weights by templates in the three styles that models use."""

import re
from typing import Any

import pytest
from chat_tokenizers import (
    CHATML,
    CHATML_TOKENS,
    HEADER,
    HEADER_TOKENS,
    INST,
    INST_TOKENS,
    MARKED,
    MARKED_WIDELY,
    THINKING,
    byte_tokenizer,
)

from weft.client import BadRequest, Renderer, TemplateError
from weft.client.chat_template import Message

TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "What is 1+2?"},
    {"role": "assistant", "content": "It is 3, voilà."},
    {"role": "user", "content": "And 3+4?"},
    {"role": "assistant", "content": "7"},
]
STYLES = [
    pytest.param(CHATML, CHATML_TOKENS, "{}<|im_end|>", id="chatml"),
    pytest.param(HEADER, HEADER_TOKENS, "{}<|eot_id|>", id="header"),
    pytest.param(INST, INST_TOKENS, " {} </s>", id="inst"),
    pytest.param(MARKED, CHATML_TOKENS, "{}<|im_end|>", id="marked"),
    pytest.param(MARKED_WIDELY, CHATML_TOKENS, "{}<|im_end|>", id="marked-widely"),
]


def trained_text(tokenizer: Any, tokens: list[int], weights: list[float]) -> str:
    """The text of the trained tokens; the weights are 0 and 1, one for each token."""
    assert len(weights) == len(tokens)
    assert set(weights) <= {0.0, 1.0}
    return str(tokenizer.decode([t for t, w in zip(tokens, weights, strict=True) if w]))


@pytest.mark.parametrize(("template", "tokens", "turn"), STYLES)
def test_the_last_turn_is_trained_with_its_end(template: str, tokens: list[str], turn: str) -> None:
    tokenizer = byte_tokenizer(template, tokens)
    found = trained_text(tokenizer, *Renderer(tokenizer).build_supervised_example(TALK))
    assert found == turn.format("7")


@pytest.mark.parametrize(("template", "tokens", "turn"), STYLES)
def test_all_turns_are_trained_with_their_ends(template: str, tokens: list[str], turn: str) -> None:
    tokenizer = byte_tokenizer(template, tokens)
    example = Renderer(tokenizer).build_supervised_example(TALK, "all_assistant")
    assert trained_text(tokenizer, *example) == turn.format("It is 3, voilà.") + turn.format("7")


@pytest.mark.parametrize(("template", "tokens", "turn"), STYLES)
def test_flags_choose_turns(template: str, tokens: list[str], turn: str) -> None:
    tokenizer = byte_tokenizer(template, tokens)
    example = Renderer(tokenizer).build_supervised_example(TALK, [False, True, False, False])
    assert trained_text(tokenizer, *example) == turn.format("It is 3, voilà.")


@pytest.mark.parametrize(("template", "tokens", "turn"), STYLES)
def test_the_prompt_begins_the_example_and_has_no_weight(
    template: str, tokens: list[str], turn: str
) -> None:
    renderer = Renderer(byte_tokenizer(template, tokens))
    for num_messages in (2, 4):
        prompt = renderer.build_generation_prompt(TALK[: num_messages - 1]).to_ints()
        example, weights = renderer.build_supervised_example(TALK[:num_messages])
        assert example[: len(prompt)] == prompt
        assert not any(weights[: len(prompt)])
        assert weights[len(prompt)] == 1.0


@pytest.mark.parametrize(("template", "tokens", "turn"), STYLES)
def test_the_tokens_are_those_of_the_template(template: str, tokens: list[str], turn: str) -> None:
    tokenizer = byte_tokenizer(template, tokens)
    renderer = Renderer(tokenizer)
    expected = tokenizer.apply_chat_template(TALK, return_dict=False)
    for train_on in ("last_assistant", "all_assistant", "everything"):
        assert renderer.build_supervised_example(TALK, train_on)[0] == expected


@pytest.mark.parametrize(("template", "tokens", "turn"), STYLES)
def test_what_is_trained_is_parsed_back(template: str, tokens: list[str], turn: str) -> None:
    renderer = Renderer(byte_tokenizer(template, tokens))
    example, weights = renderer.build_supervised_example(TALK[:2])
    response = [t for t, w in zip(example, weights, strict=True) if w]
    assert renderer.parse_response(response) == (TALK[1], True)
    assert renderer.parse_response(response[:-1])[1] is False
    assert response[-1] in renderer.stop_sequences


def test_an_answer_to_nothing_is_refused() -> None:
    renderer = Renderer(byte_tokenizer(CHATML, CHATML_TOKENS))
    with pytest.raises(BadRequest, match="message 0 answers nothing"):
        renderer.build_supervised_example(TALK[1:], "all_assistant")


def test_everything_has_a_weight_when_asked() -> None:
    renderer = Renderer(byte_tokenizer(CHATML, CHATML_TOKENS))
    tokens, weights = renderer.build_supervised_example(TALK, "everything")
    assert weights == [1.0] * len(tokens)


def test_a_datum_predicts_the_next_token() -> None:
    renderer = Renderer(byte_tokenizer(HEADER, HEADER_TOKENS))
    tokens, weights = renderer.build_supervised_example(TALK)
    datum = renderer.build_datum(TALK)
    assert datum.model_input.to_ints() == tokens[:-1]
    assert datum.loss_fn_inputs["target_tokens"].tolist() == tokens[1:]
    assert datum.loss_fn_inputs["weights"].tolist() == weights[1:]


def test_a_turn_ends_at_its_token_or_at_the_end_of_the_text() -> None:
    tokenizer = byte_tokenizer(CHATML, CHATML_TOKENS)
    renderer = Renderer(tokenizer)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert renderer.stop_sequences == ends
    for end in ends:
        message = {"role": "assistant", "content": "yes"}
        assert renderer.parse_response([*tokenizer.encode("yes"), end]) == (message, True)


def test_spaces_before_punctuation_are_kept() -> None:
    tokenizer = byte_tokenizer(CHATML, CHATML_TOKENS)
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    message, _ = Renderer(tokenizer).parse_response(tokenizer.encode("well , no ."))
    assert message["content"] == "well , no ."


def test_a_token_across_the_border_of_a_turn_is_cut() -> None:
    tokenizer = byte_tokenizer(CHATML, CHATML_TOKENS, "\n\n")
    renderer = Renderer(tokenizer)
    talk = [TALK[0], {"role": "assistant", "content": "\nthree"}]
    prompt = renderer.build_generation_prompt(talk[:1]).to_ints()
    tokens, weights = renderer.build_supervised_example(talk)
    assert tokens != tokenizer.apply_chat_template(talk, return_dict=False)
    assert tokens[: len(prompt)] == prompt
    assert trained_text(tokenizer, tokens, weights) == "\nthree<|im_end|>"


def test_a_template_that_drops_thoughts_trains_its_last_turn_only() -> None:
    tokenizer = byte_tokenizer(THINKING, CHATML_TOKENS)
    renderer = Renderer(tokenizer)
    talk: list[Message] = [*TALK[:3], {**TALK[3], "thought": "hm"}]
    found = trained_text(tokenizer, *renderer.build_supervised_example(talk))
    assert found == "<think>\nhm</think>\n7<|im_end|>"
    with pytest.raises(TemplateError, match=r"message 1: .*'<think>.*last_assistant"):
        renderer.build_supervised_example(talk, "all_assistant")


def test_a_prompt_that_the_answer_does_not_continue_is_named() -> None:
    template = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    renderer = Renderer(byte_tokenizer(template, CHATML_TOKENS))
    with pytest.raises(TemplateError, match=r"'7<\|im_end\|>.*the prompt for it has '<think>'"):
        renderer.build_supervised_example(TALK)
    assert renderer.build_supervised_example(TALK, "everything")


def test_another_token_may_end_a_turn() -> None:
    template = CHATML.replace(
        "{{ m.content }}<|im_end|>\n", "{{ m.content }}{{ m.end or '<|im_end|>' }}\n"
    )
    tokenizer = byte_tokenizer(template, [*CHATML_TOKENS, "<|call|>"])
    talk: list[Message] = [TALK[0], {**TALK[1], "end": "<|call|>"}]
    found = trained_text(tokenizer, *Renderer(tokenizer).build_supervised_example(talk))
    assert found == "It is 3, voilà.<|call|>"


def test_a_turn_may_end_in_plain_text() -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n###\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = byte_tokenizer(template, [])
    renderer = Renderer(tokenizer)
    assert renderer.stop_sequences == ["\n###\n"]
    example = renderer.build_supervised_example(TALK[:2])
    assert trained_text(tokenizer, *example) == " It is 3, voilà.\n###\n"
    sampled = tokenizer.encode(" It is 3, voilà.\n###\nuser")
    assert renderer.parse_response(sampled) == (TALK[1], True)


def test_template_options_are_handed_to_the_template() -> None:
    template = "{% if hush %}<|endoftext|>{% endif %}" + CHATML
    renderer = Renderer(byte_tokenizer(template, CHATML_TOKENS), {"hush": True})
    plain = Renderer(byte_tokenizer(template, CHATML_TOKENS))
    ((hushed, _), (spoken, _)) = (r.build_supervised_example(TALK) for r in (renderer, plain))
    assert hushed[1:] == spoken


@pytest.mark.parametrize(
    ("train_on", "message"),
    [
        pytest.param("last", "train_on is 'last'", id="unknown word"),
        pytest.param([True], "1 flags for 4 messages", id="too few flags"),
        pytest.param([True, False, False, False], "message 0 is of role 'user'", id="user"),
        pytest.param([False] * 4, "trains no message", id="nothing"),
    ],
)
def test_what_cannot_be_trained_is_refused(train_on: Any, message: str) -> None:
    renderer = Renderer(byte_tokenizer(CHATML, CHATML_TOKENS))
    with pytest.raises(BadRequest, match=re.escape(message)):
        renderer.build_supervised_example(TALK, train_on)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        pytest.param([], "has no message", id="empty"),
        pytest.param([TALK[0]], "no message of the assistant", id="no answer"),
        pytest.param([{"content": "x"}], "message 0 has no role", id="no role"),
        pytest.param([{"role": "user"}], "content of type NoneType", id="no content"),
        pytest.param(
            [{"role": "user", "content": [{"type": "image"}]}], "type 'image'", id="image"
        ),
        pytest.param(
            [TALK[0], TALK[0], TALK[1]], "roles must alternate", id="refused by the template"
        ),
    ],
)
def test_a_conversation_that_cannot_be_rendered_is_refused(messages: Any, message: str) -> None:
    renderer = Renderer(byte_tokenizer(INST, INST_TOKENS))
    with pytest.raises(BadRequest, match=message):
        renderer.build_supervised_example(messages)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        pytest.param(None, "has no chat template", id="none"),
        pytest.param("{{ messages[0].content }}", "does not show", id="hides the answer"),
        pytest.param(CHATML.replace("<|im_end|>", ""), "does not end", id="endless"),
    ],
)
def test_a_template_that_cannot_serve_is_refused(template: str | None, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Renderer(byte_tokenizer(template, CHATML_TOKENS))


def test_marks_need_a_tokenizer_that_knows_its_characters() -> None:
    class Slow:
        """A tokenizer that cannot tell which characters a token covers."""

        def __init__(self, tokenizer: Any) -> None:
            self._tokenizer = tokenizer

        def __getattr__(self, name: str) -> Any:
            return getattr(self._tokenizer, name)

        def apply_chat_template(self, *args: Any, tokenize: bool, **kwargs: Any) -> Any:
            if tokenize:
                raise NotImplementedError
            return self._tokenizer.apply_chat_template(*args, tokenize=False, **kwargs)

    renderer = Renderer(Slow(byte_tokenizer(MARKED, CHATML_TOKENS)))
    with pytest.raises(BadRequest, match="needs a fast tokenizer"):
        renderer.build_supervised_example(TALK)


def test_marks_that_do_not_fit_the_turns_are_refused() -> None:
    twice = "{% endgeneration %}-{% generation %}.{% endgeneration %}"
    template = MARKED.replace("{% endgeneration %}", twice)
    renderer = Renderer(byte_tokenizer(template, CHATML_TOKENS))
    with pytest.raises(TemplateError, match=r"4 spans .* 2 turns"):
        renderer.build_supervised_example(TALK)
