"""When a sample ends: stop tokens, stop strings, the number of tokens. Pure host code."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...client.errors import BadRequest

Decode = Callable[[list[int]], str]  # a tokenizer's decode, special tokens included

_INCOMPLETE = "\ufffd"  # what decoders write for bytes that are not (yet) a character


def max_new_tokens(prompt_tokens: int, max_tokens: int, max_context: int) -> int:
    """Return how many tokens may follow a prompt; max_tokens -1 asks for all that fit.

    Raises:
        BadRequest: prompt and answer together are longer than the context.
    """
    wanted = max(max_tokens, 1)
    if prompt_tokens + wanted > max_context:
        raise BadRequest(
            f"prompt and answer are {prompt_tokens} + {wanted} tokens, "
            f"the context holds {max_context}",
            "too_large",
        )
    return max_context - prompt_tokens if max_tokens == -1 else max_tokens


class StopStrings:
    """Finds strings in the text of tokens that arrive one by one.

    Text is decoded a few tokens at a time: a token is decoded together with those since the last
    complete character, and the text of that context is cut off.

    Source: incremental detokenisation of text-generation-inference and vLLM (two offsets).
    """

    def __init__(self, strings: Sequence[str], decode: Decode) -> None:
        self._strings = tuple(strings)
        self._decode = decode
        self._keep = max(map(len, strings)) - 1  # characters that may begin a string
        self._tail = ""
        self._context: list[int] = []  # tokens whose text is already in the tail
        self._fresh: list[int] = []  # tokens whose text is not

    def push(self, token: int) -> bool:
        """Append a token; return whether one of the strings is now in the text."""
        self._fresh.append(token)
        known = self._decode(self._context) if self._context else ""
        fresh = self._decode(self._context + self._fresh)[len(known) :]
        text = self._tail + fresh
        if any(string in text for string in self._strings):
            return True
        if fresh and not fresh.endswith(_INCOMPLETE):
            self._tail = text[-self._keep :] if self._keep else ""
            self._context, self._fresh = self._fresh, []
        return False


@dataclass(slots=True)
class Stopping:
    """The rule of one sample, told of every token in turn."""

    stop_tokens: frozenset[int]
    max_new_tokens: int
    strings: StopStrings | None = None
    num_tokens: int = 0

    def push(self, token: int) -> str:
        """Append a token; return "stop", "length", or "" while the sample goes on.

        A stop token or the token that completes a stop string belongs to the sample.
        """
        self.num_tokens += 1
        if token in self.stop_tokens:
            return "stop"
        if self.strings is not None and self.strings.push(token):
            return "stop"
        return "length" if self.num_tokens >= self.max_new_tokens else ""
