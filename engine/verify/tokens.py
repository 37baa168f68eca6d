"""The tokenizer and its chat template, and whether they agree with the model about ends."""

from collections.abc import Sequence
from typing import Any

from ...client.errors import WeftError
from ...client.renderers import Renderer
from .record import Check, failed, judged, passed, skipped

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n\treturn x ** 2  # two  spaces\n\n",
    "1234567890 3.14159 -7e-05 $12.50 100%",
    "Žluťoučký kůň, façade, straße, señor, Ελληνικά, Русский",
    "日本語と中文、한국어 العربية עברית हिन्दी ไทย",
    "emoji \U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e8\U0001f1ed",
    "∑∫√≠ “quoted” « — » … €",
    "<tag attr='1'>&amp;</tag> {\"k\": [1, null]} C:\\path\\file",
)
CONVERSATION = (
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Ultramarine."},
)


def check_tokenizer(tokenizer: Any, vocab_size: int) -> Check:
    """Texts survive encoding and decoding, special tokens are one token, the embedding has rows."""
    broken: list[str] = []
    num_unknown = 0
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            num_unknown += 1
            continue
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if back != text:
            broken.append(f"{text!r} comes back as {back!r}")
    for token in tokenizer.all_special_tokens:
        ids = tokenizer.encode(token, add_special_tokens=False)
        if ids != [tokenizer.convert_tokens_to_ids(token)]:
            broken.append(f"special token {token!r} is encoded as {ids}")
    if tokenizer.vocab_size > vocab_size:
        broken.append(f"it has {tokenizer.vocab_size} tokens and the embedding {vocab_size} rows")
    figure = f"{len(TEXTS) - num_unknown} of {len(TEXTS)} texts"
    detail = f"{len(TEXTS)} texts and {len(tokenizer.all_special_tokens)} special tokens, both ways"
    if num_unknown:
        detail += f"; {num_unknown} texts have characters that the vocabulary lacks"
    if (num_extra := len(tokenizer) - vocab_size) > 0 and not broken:
        detail += f"; {num_extra} added tokens have no row in the embedding and are refused"
    if num_unknown == len(TEXTS):
        return failed("tokenizer", "it knows the characters of no text", figure)
    return judged("tokenizer", not broken, figure, broken[0] if broken else detail)


def check_ends(
    tokenizer: Any,
    config_ids: Sequence[int],
    generation_ids: Sequence[int] | None,
    vocab_size: int,
) -> Check:
    """The ids that end a text: of config.json, generation_config.json and the tokenizer.

    Sampling stops at those of generation_config.json, or of config.json where it has none.
    """
    stops = list(config_ids if generation_ids is None else generation_ids)
    figure = f"stops at {', '.join(map(str, stops)) or 'no token'}"
    own = None if tokenizer is None else tokenizer.eos_token_id
    if not stops and own is None:
        return skipped("end tokens", "no file names one: sampling ends at max_tokens")
    for token in (*stops, *config_ids):
        if not 0 <= token < vocab_size:
            return failed("end tokens", f"{token} is outside 0 .. {vocab_size - 1}", figure)
    if generation_ids is not None and config_ids and not set(config_ids) & set(stops):
        ids = ", ".join(map(str, config_ids))
        return failed(
            "end tokens", f"config.json ends at {ids}, generation_config.json does not", figure
        )
    if own is None:
        return passed("end tokens", figure, "the tokenizer names none")
    if own not in stops:
        return failed(
            "end tokens",
            f"the tokenizer ends a text with {tokenizer.eos_token!r}, token {own}, "
            "at which the model's configs do not stop",
            figure,
        )
    return passed("end tokens", figure, f"{tokenizer.eos_token!r} is one of them")


def check_template(tokenizer: Any, stops: Sequence[int]) -> Check:
    """The chat template renders, prompts are beginnings of conversations, turns end at a stop."""
    name = "chat template"
    if not getattr(tokenizer, "chat_template", None):
        return skipped(name, "the tokenizer has no chat template, as base models do")
    prompt = _render(tokenizer, CONVERSATION[:1], is_prompt=True)
    whole = _render(tokenizer, CONVERSATION, is_prompt=False)
    answer = CONVERSATION[-1]["content"]
    if not whole.startswith(prompt):
        return failed(
            name,
            f"the prompt ends with {prompt[-24:]!r}, which is not how the same conversation goes "
            "on: train on the tokens that were sampled, not on rendered conversations",
        )
    if answer not in whole[len(prompt) :]:
        return failed(name, f"the rendered conversation lacks the answer {answer!r}")
    tail = whole[whole.rindex(answer) + len(answer) :]
    ends = tokenizer.encode(tail, add_special_tokens=False)
    if not set(ends) & set(stops):
        return failed(
            name, f"a turn ends with {tail!r}, tokens {ends}, none of which stops sampling"
        )
    try:
        tokens, weights = Renderer(tokenizer).build_supervised_example(list(CONVERSATION))
    except WeftError as error:
        return failed(name, f"the client's renderer refuses it: {error}")
    expected = tokenizer.encode(whole, add_special_tokens=False)
    if tokens != expected:
        return failed(name, "the client's renderer gives other tokens than transformers")
    trained = sum(weight > 0 for weight in weights)
    return passed(
        name,
        f"{len(tokens)} tokens, {trained} trained",
        f"a prompt is the beginning of its conversation, a turn ends with {tail.strip()!r}, "
        "the client's renderer gives the tokens of transformers",
    )


def _render(tokenizer: Any, conversation: Sequence[dict[str, str]], *, is_prompt: bool) -> str:
    text: str = tokenizer.apply_chat_template(
        list(conversation), tokenize=False, add_generation_prompt=is_prompt
    )
    return text
