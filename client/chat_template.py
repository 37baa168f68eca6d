"""What a tokenizer's chat template does with a conversation: its text, its turns, its marks.

The tokenizer is one of `transformers`, handed in by the caller; nothing is imported for it here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import BadRequest, TemplateError

Message = Mapping[str, Any]  # "role", "content", and what else the template reads
Span = tuple[int, int]  # of characters: first, and one beyond the last

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "0cd51a5f"  # stands for an answer; no template holds it, and none strips it
_OPENING = ({"role": "user", "content": "hello"},)


@dataclass(frozen=True, slots=True)
class TurnFrame:
    """What a template puts around the text of an assistant's turn."""

    header: str  # opens the turn, and ends a prompt
    lead: str  # between the header and the text
    tail: str  # between the text and the end of the turn
    end: str  # ends the turn: a token of its own, or a text where there is no such token
    is_token: bool  # whether `end` is a token of its own


class ChatTemplate:
    """A tokenizer's own chat template.

    Args:
        tokenizer: of `transformers`.
        options: variables that the template reads, such as enable_thinking.

    Raises:
        BadRequest: the tokenizer has no chat template.
        TemplateError: the template does not end an assistant's turn, or hides its text.
    """

    def __init__(self, tokenizer: Any, options: Mapping[str, object]) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise BadRequest("the tokenizer has no chat template")
        self._tokenizer = tokenizer
        self._options = dict(options)
        added: list[str] = [token for token in tokenizer.get_added_vocab() if not token.isspace()]
        self._control_tokens = sorted(added, key=len, reverse=True)
        self.has_marks = _MARKS.search(tokenizer.get_chat_template()) is not None
        self.frame = self._find_frame()

    def render(self, messages: Sequence[Message], *, is_prompt: bool = False) -> str:
        """The text of a conversation; a prompt also opens the assistant's next turn.

        Raises:
            BadRequest: the template refuses the conversation.
        """
        return str(self._apply(messages, tokenize=False, add_generation_prompt=is_prompt))

    def marked_spans(self, messages: Sequence[Message]) -> list[Span]:
        """The spans of `render(messages)` that the template puts between generation marks.

        Raises:
            BadRequest: the tokenizer cannot tell which characters a token covers.
        """
        try:
            rendered = self._apply(
                messages,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
                tokenizer_kwargs={"return_offsets_mapping": True},
            )
        except NotImplementedError:
            raise BadRequest("reading generation marks needs a fast tokenizer") from None
        spans: list[Span] = []
        was_marked = False
        for is_marked, (start, end) in zip(
            rendered["assistant_masks"], rendered["offset_mapping"], strict=True
        ):
            if is_marked and was_marked:
                spans[-1] = (spans[-1][0], end)
            elif is_marked:
                spans.append((start, end))
            was_marked = bool(is_marked)
        return spans

    def turn_end(self, text: str, start: int, end: int) -> int:
        """Where the assistant's turn that fills a span ends: behind its last token.

        What a template adds to separate turns is not part of them. A span that stops short of the
        end of its turn is extended.

        Raises:
            TemplateError: no token ends it.
        """
        found = text.rfind(self.frame.end, start, end)
        if found >= 0:
            return found + len(self.frame.end)
        stripped = text[start:end].rstrip()
        if any(stripped.endswith(token) for token in self._control_tokens):
            return start + len(stripped)
        follows = end
        while text[follows : follows + 1].isspace():
            follows += 1
        for token in (self.frame.end, *self._control_tokens):
            if text.startswith(token, follows):
                return follows + len(token)
        raise TemplateError(f"no token ends the turn {text[start:end]!r}")

    def encode(self, text: str) -> list[int]:
        """Tokenize rendered text; nothing is added to it."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _find_frame(self) -> TurnFrame:
        before = self.render(_OPENING)
        prompt = self.render(_OPENING, is_prompt=True)
        answer = {"role": "assistant", "content": _PROBE}
        text = self.render([*_OPENING, answer])
        if text.count(_PROBE) != 1:
            raise TemplateError("the chat template does not show the assistant's text once")
        until, _, after = text.partition(_PROBE)
        places = [(after.find(token), token) for token in self._control_tokens if token in after]
        if not after.strip() and not places:
            raise TemplateError("the chat template does not end the assistant's turn by a token")
        position, end = min(places, key=lambda place: place[0], default=(0, after))
        return TurnFrame(
            header=prompt.removeprefix(before) if prompt.startswith(before) else "",
            lead=until.removeprefix(prompt) if until.startswith(prompt) else "",
            tail=after[:position],
            end=end,
            is_token=bool(places),
        )

    def _apply(self, messages: Sequence[Message], **how: Any) -> Any:
        if not messages:
            raise BadRequest("the conversation has no message")
        for index, message in enumerate(messages):
            _check_message(index, message)
        conversation = [dict(message) for message in messages]
        try:
            return self._tokenizer.apply_chat_template(conversation, **how, **self._options)
        except Exception as error:  # templates raise jinja2's errors, and Python's
            if type(error).__module__.split(".")[0] != "jinja2":
                raise
            raise BadRequest(f"the chat template refuses the conversation: {error}") from error


def _check_message(index: int, message: Message) -> None:
    if not isinstance(message.get("role"), str):
        raise BadRequest(f"message {index} has no role")
    content = message.get("content")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return
    if not isinstance(content, list):
        raise BadRequest(f"message {index} has content of type {type(content).__name__}, not text")
    parts: list[Any] = content  # pyright: ignore[reportUnknownVariableType]
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__  # pyright: ignore
        if kind != "text":
            raise BadRequest(f"message {index} has a part of type {kind!r}; only text is served")
