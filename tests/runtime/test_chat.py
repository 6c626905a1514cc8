"""Which tokens of a conversation count for the loss, for every kind of chat template."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from kd_launch.errors import SpecError
from kd_launch.runtime.chat import ChatTemplate, assistant_tokens, by_difference, turn_end
from kd_launch.runtime.documents import Document
from kd_launch.runtime.encoding import chat_encoder

from .tiny_models import DATED, MARKED, NO_PREFIX, PLAIN, REASONING, STRICT, byte_tokenizer

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "naïve?"},
    {"role": "assistant", "content": "日本 é"},
    {"role": "user", "content": "<|assistant|> said who?"},
    {"role": "assistant", "content": " two\n\nlines 🙂"},
    {"role": "user", "content": "bye"},
]


def learnt(
    template: str, messages: list[dict[str, str]], length: int = 1000, **tokenizer: Any
) -> tuple[str, list[str]]:
    """The text that the model reads, and the runs of it that count for the loss."""
    made = byte_tokenizer(chat_template=template, **tokenizer)
    (encoded,) = chat_encoder(made, length, "student.model")([Document("x.jsonl:1", messages)])
    if not encoded.pieces:
        return "", []
    (piece,) = encoded.pieces
    targets = np.concatenate([[False], piece.loss[:-1]])  # loss[t] is about ids[t + 1]
    assert not piece.loss[-1]
    edges = [0, *(np.flatnonzero(np.diff(targets)) + 1).tolist(), len(targets)]
    runs = [made.decode(piece.ids[a:b]) for a, b in pairwise(edges) if targets[a]]
    return made.decode(piece.ids), runs


@pytest.mark.parametrize("template", [MARKED, PLAIN])
def test_loss_is_on_what_the_assistant_wrote_with_and_without_marks(template: str) -> None:
    text, runs = learnt(template, TALK)
    assert text == "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in TALK)
    assert runs == ["日本 é<|end|>", " two\n\nlines 🙂<|end|>"]


def test_marks_around_a_character_of_several_tokens_take_all_of_them() -> None:
    template = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    template += "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    # transformers' own mask leaves out the last three of the emoji's four bytes.
    assert learnt(template, [TALK[1], {"role": "assistant", "content": "é🙂"}])[1] == ["é🙂"]


def test_tokens_over_the_border_of_a_message_are_those_of_the_whole_text() -> None:
    # A merge joins the prompt's last character with the answer's first one: that token is the answer's beginning.
    template = PLAIN.replace("<|{{ m.role }}|>", "{{ m.role }}:\n").replace("<|assistant|>", "assistant:\n")
    merged = {"merges": [("Ċ", "Ċ")], "merged": ("ĊĊ",)}
    text, runs = learnt(template, [TALK[1], {"role": "assistant", "content": "\nyes"}], **merged)
    assert text == "user:\nnaïve?<|end|>assistant:\n\nyes<|end|>"
    assert runs == ["\n\nyes<|end|>"]


def test_a_reasoning_template_keeps_the_answer_of_earlier_turns() -> None:
    messages = [
        {"role": "user", "content": "1?"}, {"role": "assistant", "content": "<think>hm</think>one"},
        {"role": "user", "content": "2?"}, {"role": "assistant", "content": "two"},
    ]  # fmt: skip
    text, runs = learnt(REASONING, messages)
    assert (
        text == "<|user|>1?<|end|><|assistant|>one<|end|><|user|>2?<|end|><|assistant|><think>\n\n</think>\ntwo<|end|>"
    )
    assert runs == ["one<|end|>", "<think>\n\n</think>\ntwo<|end|>"]


def test_a_template_without_the_prefix_property_is_refused_with_the_conversation_and_the_way_out() -> None:
    with pytest.raises(SpecError) as error:
        learnt(NO_PREFIX, TALK)
    assert str(error.value).startswith("x.jsonl:1: message 3: ")
    assert "{% generation %}" in str(error.value)


def test_a_template_that_refuses_a_conversation_is_quoted() -> None:
    with pytest.raises(SpecError, match=r"^x\.jsonl:1: the student's chat template refuses .*: begin with the user$"):
        learnt(STRICT, TALK)


def test_a_broken_template_is_one_line() -> None:
    with pytest.raises(SpecError) as error:
        learnt("{% for m in messages %}", TALK)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(SpecError, match=r"its tokenizer has no chat template, which data\.format chat needs"):
        ChatTemplate(byte_tokenizer(), "student.model")


def test_an_assistant_message_without_a_prompt_is_context_only() -> None:
    assert learnt(PLAIN, [TALK[2], *TALK[3:]])[1] == [" two\n\nlines 🙂<|end|>"]


@pytest.mark.parametrize("template", [MARKED, PLAIN])
def test_conversations_without_an_answer_give_nothing(template: str) -> None:
    assert learnt(template, TALK[:2]) == ("", [])
    assert learnt(template, []) == ("", [])
    assert learnt(template, [{"role": "user", "content": "日" * 400}, TALK[2]], length=50) == ("", [])


def test_a_long_conversation_loses_its_end_and_is_counted() -> None:
    made = byte_tokenizer(chat_template=PLAIN)
    encode = chat_encoder(made, 40, "student.model")
    whole, cut = encode([Document("a:1", TALK[1:3]), Document("a:2", TALK)])
    assert (whole.truncated, cut.truncated) == (False, True)
    assert len(cut.pieces[0].ids) == 40
    assert not cut.pieces[0].loss[-1]


def test_the_date_of_a_template_is_a_constant() -> None:
    text, _ = learnt(DATED, TALK)
    assert text.startswith("<|system|>26 Jul 2024<|end|>")


def test_the_special_tokens_are_the_templates_alone() -> None:
    text, _ = learnt(PLAIN, TALK, begin=True)
    assert not text.startswith("<|begin|>")


def test_the_end_of_a_turn() -> None:
    assert turn_end("AxB", "A", "Ax", "x") == 2
    assert turn_end("Ax", "A", "Ax", "x") == 2
    assert turn_end("Ax.B", "A", "A(why)x.", "x") == 3
    assert turn_end("A.B", "A", "A.", "") == 2
    assert turn_end("CxB", "A", "Ax", "x") is None  # what comes before is another text
    assert turn_end("AxB", "A", "Cx", "x") is None
    assert turn_end("AyB", "A", "Ax", "x") is None  # the message itself is another text
    assert turn_end("A.xB", "A", "Ax.", "x") is None  # only its end is left: nothing was learnt of the answer


def test_difference_renders_what_stands_before_each_answer() -> None:
    asked = []

    def render(messages: list[dict[str, Any]], prompt: bool) -> str:
        asked.append((len(messages), prompt))
        return "".join(f"[{m['role']}]{m['content']}" for m in messages) + ("[assistant]" if prompt else "")

    rendered = by_difference(render, TALK)
    assert [rendered.text[a:b] for a, b in rendered.assistant] == ["日本 é", " two\n\nlines 🙂"]
    assert asked == [(6, False), (2, True), (3, False), (4, True), (5, False)]


def test_tokens_of_a_span() -> None:
    offsets = [(0, 2), (2, 3), (3, 3), (3, 5), (5, 5), (5, 6)]
    assert assistant_tokens(offsets, [(1, 4)]).tolist() == [True, True, True, True, False, False]
    assert assistant_tokens(offsets, [(2, 3), (5, 9)]).tolist() == [False, True, False, False, False, True]
    assert assistant_tokens(offsets, [(7, 9), (2, 2)]).tolist() == [False] * 6
    assert assistant_tokens([], [(0, 1)]).tolist() == []
