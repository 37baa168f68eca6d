"""Small byte tokenizers with chat templates in the three styles that models use, for tests."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]

# Spaces around a text are trimmed, and the text begins with a token of its own.
HEADER = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
HEADER_TOKENS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>"]

# There is no generation prompt: what follows [/INST] is the model's. Roles must alternate.
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
INST_TOKENS = ["<s>", "</s>"]

# The same as ChatML, but thoughts are shown in the last turn alone.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.thought or '' }}</think>\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Marks that leave out the token that ends a turn.
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|im_start|>assistant\n{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Marks around the whole turn, from its header to the line break behind it.
MARKED_WIDELY = MARKED.replace(
    "<|im_start|>assistant\n{% generation %}", "{% generation %}<|im_start|>assistant\n"
).replace("{% endgeneration %}<|im_end|>\n", "<|im_end|>\n{% endgeneration %}")


def byte_tokenizer(template: str | None, tokens: list[str], *merged: str) -> Any:
    """Make a tokenizer of bytes, control tokens, and pairs of characters that become one token.

    Args:
        template: the chat template.
        tokens: control tokens; those named <s>, </s> and the like become begin and end of text.
        merged: texts of two characters.
    """
    levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(shown[0], shown[1]) for shown in (levels.pre_tokenize_str(t)[0][0] for t in merged)]
    vocabulary = [*alphabet, *map("".join, pairs)]
    made = Tokenizer(models.BPE({text: i for i, text in enumerate(vocabulary)}, pairs))
    made.pre_tokenizer = levels
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    special = {
        name: token
        for name, choices in (
            ("bos_token", ("<s>", "<|begin_of_text|>")),
            ("eos_token", ("</s>", "<|endoftext|>", "<|eot_id|>")),
        )
        for token in choices
        if token in tokens
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    tokenizer.chat_template = template
    return tokenizer
