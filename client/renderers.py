"""From conversations to tokens and back, by the chat template of the model's own tokenizer.

    renderer = Renderer(training.get_tokenizer())
    data = [renderer.build_datum(conversation) for conversation in conversations]

`transformers` is needed to load a tokenizer, and by nothing here.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from .chat_template import ChatTemplate, Message, Span
from .errors import BadRequest, TemplateError
from .types import Datum, ModelInput

TrainOn = Literal["last_assistant", "all_assistant", "everything"] | Sequence[bool]


class Renderer:
    """Renders conversations as the model's chat template does.

    A message is a mapping with a role and content, as chat templates read it. A template that marks
    what the model generates (`{% generation %}`) says itself which tokens are trained; otherwise
    they are found by rendering the beginnings of a conversation.

    Args:
        tokenizer: of `transformers`, as `get_tokenizer()` gives it.
        template_options: variables that the template reads, such as enable_thinking or tools.

    Raises:
        BadRequest: the tokenizer has no chat template.
        TemplateError: the template hides the assistant's text, or does not end its turn.
    """

    def __init__(
        self, tokenizer: Any, template_options: Mapping[str, object] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, template_options or {})

    @property
    def stop_sequences(self) -> list[int] | list[str]:
        """What ends a sampled turn; give it to `SamplingParams(stop=...)`.

        Token ids: the one that ends a turn, and the end of the text. A template whose turns end in
        plain text gives texts.
        """
        frame = self._template.frame
        end_of_text: str | None = self._tokenizer.eos_token
        ends = [frame.end]
        if end_of_text and end_of_text != frame.end:
            ends.append(end_of_text)
        if not frame.is_token:
            return ends
        found: list[int] = list(self._tokenizer.convert_tokens_to_ids(ends))
        return found

    def build_generation_prompt(self, messages: Sequence[Message]) -> ModelInput:
        """The tokens of a conversation and of the opening of the assistant's next turn."""
        return ModelInput.from_ints(
            self._template.encode(self._template.render(messages, is_prompt=True))
        )

    def build_supervised_example(
        self, messages: Sequence[Message], train_on: TrainOn = "last_assistant"
    ) -> tuple[list[int], list[float]]:
        """The tokens of a conversation, with a weight for each.

        A trained turn has weight 1 from the first token that the model would have to produce to the
        token that ends the turn, and everything else has 0. The tokens before the first trained
        turn are those of `build_generation_prompt`.

        Args:
            messages: at least one of the assistant.
            train_on: the last turn of the assistant, all its turns, every token, or a flag for each
                message, where only the assistant's may be true.

        Raises:
            BadRequest: nothing is to be trained, or a flag is on another's message.
            TemplateError: the template renders an earlier turn differently once more follows, so
                that only the last one can be trained.
        """
        text = self._template.render(messages)
        if train_on == "everything":
            tokens = self._template.encode(text)
            return tokens, [1.0] * len(tokens)
        chosen = _chosen_turns(messages, train_on)
        if self._template.has_marks:
            spans = self._marked_turns(messages, chosen)
        else:
            spans = [self._derived_turn(messages, index, text) for index in chosen]
        closed = [(start, self._template.turn_end(text, start, end)) for start, end in spans]
        return self._encode(text, closed)

    def build_datum(
        self, messages: Sequence[Message], train_on: TrainOn = "last_assistant"
    ) -> Datum:
        """A datum for cross_entropy: each token predicts the next; as `build_supervised_example`."""
        tokens, weights = self.build_supervised_example(messages, train_on)
        return Datum(
            ModelInput.from_ints(tokens[:-1]),
            {"target_tokens": tokens[1:], "weights": weights[1:]},
        )

    def parse_response(self, tokens: Sequence[int]) -> tuple[dict[str, Any], bool]:
        """The assistant's message that sampled tokens hold, and whether its turn was ended.

        What the template itself puts around an assistant's text is removed; what the model wrote is
        not looked into, thoughts and calls of tools are left in the content.
        """
        stops = self.stop_sequences
        length = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
        is_ended = length < len(tokens)
        text = str(
            self._tokenizer.decode(
                list(tokens[:length]),
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            )
        )
        if not self._template.frame.is_token:
            places = [text.find(stop) for stop in stops if isinstance(stop, str) and stop in text]
            is_ended = bool(places)
            text = text[: min(places, default=len(text))]
        frame = self._template.frame
        content = text.removeprefix(frame.lead)
        return {
            "role": "assistant",
            "content": content.removesuffix(frame.tail) if is_ended else content,
        }, is_ended

    def _derived_turn(self, messages: Sequence[Message], index: int, text: str) -> Span:
        """What a turn adds to the rendering of the messages before it."""
        if index == 0:
            raise BadRequest("message 0 answers nothing; the assistant's turn needs one before it")
        prompt = self._template.render(messages[:index], is_prompt=True)
        through = self._template.render(messages[: index + 1])
        if not text.startswith(prompt):
            raise TemplateError(_no_prefix(index, prompt, text, is_prompt=True))
        if not text.startswith(through):
            raise TemplateError(_no_prefix(index, through, text, is_prompt=False))
        return len(prompt), len(through)

    def _marked_turns(self, messages: Sequence[Message], chosen: Sequence[int]) -> list[Span]:
        spans = self._template.marked_spans(messages)
        turns = _assistant_turns(messages)
        if len(spans) != len(turns):
            raise TemplateError(
                f"the chat template marks {len(spans)} spans as generated in a conversation with "
                f"{len(turns)} turns of the assistant"
            )
        text = self._template.render(messages)
        header = self._template.frame.header
        return [
            (start + len(header) if text.startswith(header, start) else start, end)
            for start, end in (spans[turns.index(index)] for index in chosen)
        ]

    def _encode(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[float]]:
        """Tokenize so that no token crosses the border of a trained span."""
        borders = [0, *(border for span in spans for border in span), len(text)]
        tokens: list[int] = []
        weights: list[float] = []
        for piece, (start, end) in enumerate(pairwise(borders)):
            whole = self._template.encode(text[:end])
            if whole[: len(tokens)] == tokens:
                added = whole[len(tokens) :]
            else:
                added = self._template.encode(text[start:end])
            tokens += added
            weights += [float(piece % 2)] * len(added)
        return tokens, weights


def _assistant_turns(messages: Sequence[Message]) -> list[int]:
    return [i for i, message in enumerate(messages) if message.get("role") == "assistant"]


def _chosen_turns(messages: Sequence[Message], train_on: TrainOn) -> list[int]:
    turns = _assistant_turns(messages)
    if not turns:
        raise BadRequest("the conversation has no message of the assistant to train on")
    if train_on == "last_assistant":
        return turns[-1:]
    if train_on == "all_assistant":
        return turns
    if isinstance(train_on, str):
        raise BadRequest(
            f"train_on is {train_on!r}, not last_assistant, all_assistant, everything or flags"
        )
    flags = list(train_on)
    if len(flags) != len(messages):
        raise BadRequest(f"train_on has {len(flags)} flags for {len(messages)} messages")
    chosen = [index for index, flag in enumerate(flags) if flag]
    for index in chosen:
        if index not in turns:
            raise BadRequest(
                f"message {index} is of role {messages[index]['role']!r}; only the assistant's "
                "messages can be trained one by one"
            )
    if not chosen:
        raise BadRequest("train_on trains no message")
    return chosen


def _no_prefix(index: int, beginning: str, text: str, *, is_prompt: bool) -> str:
    """Say where the rendering of a beginning and of the whole part."""
    place = next(
        (i for i, (a, b) in enumerate(zip(beginning, text, strict=False)) if a != b),
        min(len(beginning), len(text)),
    )
    was, became = beginning[place : place + 20], text[place : place + 20]
    if is_prompt:
        return (
            f"message {index}: the chat template renders {became!r} where the prompt for it has "
            f"{was!r}, so what follows the prompt is not known; another template option or "
            "train_on='everything' may serve"
        )
    return (
        f"message {index}: the chat template renders {became!r} once more messages follow, and "
        f"{was!r} while it is the last (thinking of earlier turns is often dropped); "
        "train_on='last_assistant' works, with one example for each turn"
    )
