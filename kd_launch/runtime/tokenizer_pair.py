"""The tokenizers of student and teacher: loaded, and refused when they are not the same but for added tokens."""

from collections.abc import Mapping
from itertools import zip_longest
from math import ceil
from typing import Any

from kd_launch.errors import SpecError
from kd_launch.runtime.documents import first_line
from kd_launch.sources import ModelFiles

# Many scripts, both normal forms, digits, code, spaces and line ends: where tokenizers differ, if their tokens do not.
PROBE = (
    "The quick brown fox doesn't jump; it's 3.14159 vs 1,234,567,890 -- \"quoted\" (e.g. https://example.org/a_b?c=d)\n"
    "Zażółć gęślą jaźń, naïve café, cafe\u0301, Straße, Đặng, ﬁne ①²\n\nΞεσκεπάζω την ψυχοφθόρα βδελυγμία\r\n"
    "Съешь же ещё этих мягких французских булок  שפן אכל קצת גזר\tنص حكيم له سر قاطع वसुधैव कुटुम्बकम् "
    "เป็นมนุษย์สุดประเสริฐ 我能吞下玻璃而不伤身体。いろはにほへと ちりぬるを 다람쥐 헌 쳇바퀴 👩‍👩‍👧‍👦🏳️‍🌈🙂\n"
    "def f(x):\n    if x != 0:\n\t\treturn {'a': [x**2, 0xFF, 1e-5]}   # TODO   \n"
    '<div class="b">&amp;</div>\u00a0\u200b\u3000.'
)

PROBED_TOKENS = 8192
"""At most so many tokens of the vocabulary, evenly spread, are encoded by both."""

ADVICE = "distillation compares the models token by token, so take a teacher and a student with one tokenizer"


def load_tokenizer(model: ModelFiles) -> Any:
    """The tokenizer of a model, from its folder or the cache; no code of the model's runs unless the spec trusts it.

    Raises:
        SpecError: there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    folder = model.folder()
    if folder is None or not model.tokenizer_files():
        raise SpecError(f"{model.where}: '{model.model}' has no tokenizer files (tokenizer.json)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=model.trust_remote_code, local_files_only=True
        )
    except Exception as error:  # transformers raises nearly anything here, and the tokenizers library bare Exception
        raise SpecError(f"{model.where}: the tokenizer in {folder} cannot be loaded: {first_line(error)}") from error
    if not tokenizer.get_vocab():
        raise SpecError(f"{model.where}: the tokenizer in {folder} knows no token; is its tokenizer.json missing?")
    return tokenizer


def common_tokens(student: Any, teacher: Any) -> int:
    """How many ids, from 0, both tokenizers have: the smaller one's largest id and one."""
    return 1 + min(int(max(tokenizer.get_vocab().values())) for tokenizer in (student, teacher))


def refuse_different(student: Any, teacher: Any) -> None:
    """Raises SpecError unless both tokenizers give the same ids; one may have tokens more at the end."""
    difference = different_token(student.get_vocab(), teacher.get_vocab()) or _different_probe(student, teacher)
    if difference:
        raise SpecError(f"teacher.model and student.model have different tokenizers: {difference}; {ADVICE}")


def different_token(student: Mapping[str, int], teacher: Mapping[str, int]) -> str | None:
    """The first token, by id, that two vocabularies (token -> id) do not share, in words; None when they agree.

    Below the smaller one's length every id must be the same token, and a token of both must have one id.
    """
    by_id = [{id_: token for token, id_ in vocabulary.items()} for vocabulary in (student, teacher)]
    for id_ in range(min(len(student), len(teacher))):
        ours, theirs = by_id[0].get(id_), by_id[1].get(id_)
        if ours != theirs:
            return f"id {id_} is {_quoted(ours)} for the student but {_quoted(theirs)} for the teacher"
    moved = min(((id_, token) for token, id_ in student.items() if teacher.get(token, id_) != id_), default=None)
    if moved:
        return f"token '{moved[1]}' is id {moved[0]} for the student but {teacher[moved[1]]} for the teacher"
    return None


def _different_probe(student: Any, teacher: Any) -> str | None:
    """The first token that differs when both encode the probe texts, in words."""
    texts = _probes(student, common_tokens(student, teacher))
    encoded = [tokenizer(texts, add_special_tokens=False)["input_ids"] for tokenizer in (student, teacher)]
    for text, ours, theirs in zip(texts, *encoded, strict=True):
        if ours != theirs:
            pairs = enumerate(zip_longest(ours, theirs))
            place, ids = next((place, ids) for place, ids in pairs if ids[0] != ids[1])
            words = [_token(tokenizer, id_) for tokenizer, id_ in zip((student, teacher), ids, strict=True)]
            name = "a text in many scripts" if text == PROBE else f"the text {text!r}"
            return f"token {place} of {name} is {words[0]} for the student but {words[1]} for the teacher"
    return None


def _probes(tokenizer: Any, known: int) -> list[str]:
    """The probe text, and the texts of many tokens that both know: a merge that one lacks shows in what it makes."""
    ids = range(0, known, ceil(known / PROBED_TOKENS))
    return [PROBE, *tokenizer.batch_decode([[id_] for id_ in ids])]


def _token(tokenizer: Any, id_: int | None) -> str:
    return _quoted(None if id_ is None else tokenizer.convert_ids_to_tokens(id_))


def _quoted(token: str | None) -> str:
    return "no token" if token is None else f"'{token}'"
