"""Conversations -> text with the spans that the assistant wrote, by the student's chat template."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_launch.errors import SpecError
from kd_launch.runtime.documents import Conversation, Document, first_line

Span = tuple[int, int]
"""Characters [start, end)."""

Render = Callable[[Conversation, bool], str]
"""(messages, whether the assistant is about to write) -> text."""

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")

# Llama 3's templates write the current date unless told one; a store must not depend on the day it was made.
CONSTANTS = {"date_string": "26 Jul 2024"}

ADVICE = (
    "put {% generation %} and {% endgeneration %} around what the assistant writes in the chat template of the "
    "student's folder"
)


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it."""

    text: str
    assistant: list[Span]
    """What the assistant wrote, the end of its turn included."""


class ChatTemplate:
    """The student's chat template. Knows two ways of finding the assistant's part; the template decides which."""

    def __init__(self, tokenizer: Any, where: str) -> None:
        """Raises SpecError where the tokenizer has no chat template, or cannot say where its tokens lie in the text."""
        self._tokenizer = tokenizer
        if not getattr(tokenizer, "is_fast", False):
            raise SpecError(f"{where}: data.format chat needs a tokenizer.json, which this tokenizer does not have")
        try:
            self._template = tokenizer.get_chat_template()
        except ValueError as error:
            raise SpecError(
                f"{where}: its tokenizer has no chat template, which data.format chat needs; put a chat_template.jinja "
                "into the model's folder, or take a model that was made for chat"
            ) from error
        self.marks_the_assistant = MARK.search(self._template) is not None

    def render(self, document: Document) -> Rendered:
        """The text of one conversation, and the assistant's spans in it.

        Raises:
            SpecError: the template refuses the conversation, or the spans cannot be told.
        """
        assert isinstance(document.value, list)
        if not document.value:
            return Rendered("", [])
        try:
            if self.marks_the_assistant:
                return self._render_marked(document.value)
            return by_difference(self._render_plain, document.value)
        except SpecError as error:
            raise SpecError(f"{document.place}: {error}") from error
        except Exception as error:  # what a template raises: jinja2's errors, its own raise_exception, Python's
            raise SpecError(
                f"{document.place}: the student's chat template refuses this conversation: {first_line(error)}"
            ) from error

    def _render_plain(self, messages: Conversation, prompt: bool) -> str:
        text = self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=prompt, **CONSTANTS
        )
        assert isinstance(text, str)
        return text

    def _render_marked(self, messages: Conversation) -> Rendered:
        # apply_chat_template(return_assistant_tokens_mask=True) leaves out the last bytes of a character that is
        # several tokens, and all after a span whose first character is in no token: so its characters, and our tokens.
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, spans = render_jinja_template(
            conversations=[messages],
            chat_template=self._template,
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
            **CONSTANTS,
        )
        return Rendered(texts[0], [(start, end) for start, end in spans[0]])


def by_difference(render: Render, messages: Conversation) -> Rendered:
    """Finds each assistant message as what it adds to the rendering of the messages before it.

    An assistant message that opens the conversation has no prompt, and is context only.

    Raises:
        SpecError: what comes before or after a message changes how it is rendered.
    """
    whole = render(messages, False)
    spans: list[Span] = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and i > 0:
            before = render(messages[:i], True)
            after = whole if i == len(messages) - 1 else render(messages[: i + 1], False)
            end = turn_end(whole, before, after, message["content"])
            if end is None:
                raise SpecError(
                    f"message {i + 1}: the student's chat template renders the messages before it, or this message, in "
                    f"another way once more messages follow, so its loss tokens cannot be told; {ADVICE}"
                )
            spans.append((len(before), end))
    return Rendered(whole, spans)


def turn_end(whole: str, before: str, after: str, content: str) -> int | None:
    """Where an assistant message ends in `whole`; None where that cannot be told.

    `before` is the rendering up to the message, ready for it; `after` is the rendering with it as the last one. Both
    should be the beginning of `whole`. Templates of reasoning models (Qwen 3, DeepSeek-R1) leave the reasoning out once
    another message follows: then the message is what `whole` and `after` still share, its answer and its end.
    """
    if not (whole.startswith(before) and after.startswith(before)):
        return None
    turn, rest = after[len(before) :], whole[len(before) :]
    start = next(i for i in range(len(turn) + 1) if rest.startswith(turn[i : i + 64]) and rest.startswith(turn[i:]))
    answer = content.rpartition("</think>")[2].strip()
    return len(before) + len(turn) - start if answer in turn[start:] else None


def assistant_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> NDArray[np.bool_]:
    """[n]: whether token i, of the characters `offsets[i]`, holds a character of a span or lies between two that do."""
    mask = np.zeros(len(offsets), dtype=np.bool_)
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    for start, end in spans:
        inside = np.flatnonzero((starts < end) & (ends > start))
        if len(inside):
            mask[inside[0] : inside[-1] + 1] = True
    return mask
