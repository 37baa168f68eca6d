"""The text that `weft/tiny` is pretrained on, generated from a seed, and its held-out split.

Token ids are bytes, followed by a few special tokens, so `list(text.encode())` tokenizes plain
text. Every item is a short document: a prompt, an answer, an end. Sums of a held-out pair, and
held-out words and lists, never occur in a generated document, whatever its kind.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

END_OF_TEXT = 256
IM_START = 257
IM_END = 258
PAD = 259
SPECIAL_TOKENS = {
    "<|endoftext|>": END_OF_TEXT,
    "<|im_start|>": IM_START,
    "<|im_end|>": IM_END,
    "<|pad|>": PAD,
}
VOCAB_SIZE = 320  # 256 bytes, 4 special tokens, padding to a multiple of 64
HELD_OUT_SHARE = 8  # one item in so many is held out
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_CONSONANTS = "bcdfghjklmnprstvwz"
_VOWELS = "aeiou"
_GREETINGS = ("hello", "hi", "good morning", "good evening", "hey there")
_THANKS = ("thank you", "thanks", "thanks a lot", "many thanks")


@dataclass(frozen=True, slots=True)
class Document:
    """One training item; tokens from `answer_start` on are what a reader of the prompt predicts."""

    tokens: tuple[int, ...]
    answer_start: int


def encode(text: str) -> list[int]:
    """Tokenize text that holds no special token."""
    return list(text.encode())


def decode(tokens: list[int]) -> str:
    """Return the text of the byte tokens; special and padding tokens are left out."""
    return bytes(token for token in tokens if token < 256).decode(errors="replace")


def is_held_out(a: int, b: int) -> bool:
    """Tell whether the sum of a and b, in either order, is kept out of pretraining."""
    return _falls_out(f"{min(a, b)}+{max(a, b)}")


def is_held_out_text(text: str) -> bool:
    """Tell whether this word, or list of numbers, is kept out of pretraining."""
    return _falls_out(text)


def sum_prompt(a: int, b: int) -> str:
    """Return the plain prompt whose answer is the sum, ended by the end of text."""
    return f"{a}+{b}="


def chat_prompt(question: str) -> list[int]:
    """Tokenize one user turn and the start of the assistant's, as the chat template does."""
    user = [IM_START, *encode(f"user\n{question}"), IM_END, *encode("\n")]
    return [*user, IM_START, *encode("assistant\n")]


def word(rng: random.Random) -> str:
    """Draw a pronounceable word of two to eight letters."""
    num_letters = rng.randint(2, 8)
    starts_with_vowel = rng.random() < 0.3
    return "".join(
        rng.choice(_VOWELS if (i % 2 == 0) == starts_with_vowel else _CONSONANTS)
        for i in range(num_letters)
    )


def documents(seed: int) -> Iterator[Document]:
    """Yield pretraining documents without end; equal seeds give equal documents."""
    rng = random.Random(seed)
    makers = list(_SHARES)
    shares = list(_SHARES.values())
    while True:
        yield rng.choices(makers, shares)[0](rng)


def _falls_out(key: str) -> bool:
    digest = blake2b(key.encode(), digest_size=4, person=b"weft/tiny").digest()
    return int.from_bytes(digest, "little") % HELD_OUT_SHARE == 0


def _plain(prompt: str, answer: str) -> Document:
    tokens = (*encode(prompt), *encode(answer), END_OF_TEXT)
    return Document(tokens, len(prompt.encode()))


def _dialogue(*turns: tuple[str, str]) -> Document:
    """Join questions and answers; the prompt ends where the first answer starts."""
    tokens: list[int] = []
    for question, answer in turns:
        tokens += [*chat_prompt(question), *encode(answer), IM_END, *encode("\n")]
    return Document((*tokens[:-1], END_OF_TEXT), len(chat_prompt(turns[0][0])))


def _pair(rng: random.Random) -> tuple[int, int]:
    """Draw two numbers below 100, mostly of two digits, whose sum is not held out."""
    while True:
        low = 10 if rng.random() < 0.8 else 0
        a, b = rng.randint(low, 99), rng.randint(low, 99)
        if not is_held_out(a, b):
            return a, b


def _known_word(rng: random.Random) -> str:
    while is_held_out_text(text := word(rng)):
        pass
    return text


def _known_numbers(rng: random.Random) -> list[int]:
    while True:
        numbers = [rng.randint(0, 9) for _ in range(rng.randint(3, 6))]
        if not is_held_out_text(join(numbers)):
            return numbers


def join(numbers: list[int]) -> str:
    """Write a list as the prompts do."""
    return " ".join(map(str, numbers))


def _sum(rng: random.Random) -> Document:
    a, b = _pair(rng)
    return _plain(sum_prompt(a, b), str(a + b))


def _difference(rng: random.Random) -> Document:
    while True:
        a = rng.randint(0, 20)
        b = rng.randint(0, a)
        if not is_held_out(a - b, b):
            return _plain(f"{a}-{b}=", str(a - b))


def _copy(rng: random.Random) -> Document:
    text = " ".join(_known_word(rng) for _ in range(rng.randint(1, 2)))
    return _plain(f"copy {text} -> ", text)


def _sort(rng: random.Random) -> Document:
    numbers = _known_numbers(rng)
    return _plain(f"sort {join(numbers)} -> ", join(sorted(numbers)))


def _question(rng: random.Random) -> Document:
    question, answer = _question_and_answer(rng)
    return _plain(f"Q: {question}\nA: ", answer)


def _chat_sum(rng: random.Random) -> Document:
    """Answer in one of two styles, so that a preference between them can be taught."""
    a, b = _pair(rng)
    answer = str(a + b) if rng.random() < 0.5 else f"The answer is {a + b}."
    return _dialogue((f"What is {a}+{b}?", answer))


def _chat(rng: random.Random) -> Document:
    turns = [_question_and_answer(rng) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.3:
        turns.insert(0, (rng.choice(_GREETINGS), "Hello! How can I help?"))
    if rng.random() < 0.3:
        turns.append((rng.choice(_THANKS), "You are welcome."))
    return _dialogue(*turns)


def _question_and_answer(rng: random.Random) -> tuple[str, str]:
    text = _known_word(rng)
    number, other = rng.randint(1, 98), rng.randint(1, 98)
    return rng.choice(
        (
            (f"what comes after {number}?", str(number + 1)),
            (f"what comes before {number}?", str(number - 1)),
            (f"which is larger, {number} or {other}?", str(max(number, other))),
            (f"what is the first letter of {text}?", text[0]),
            (f"what is the last letter of {text}?", text[-1]),
            (f"how many letters has {text}?", str(len(text))),
        )
    )


_SHARES = {
    _sum: 0.32,
    _chat_sum: 0.13,
    _difference: 0.03,
    _copy: 0.14,
    _sort: 0.22,
    _question: 0.08,
    _chat: 0.08,
}
