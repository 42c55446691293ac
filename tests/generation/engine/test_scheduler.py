"""How a pass is shared out."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import assume, given
from hypothesis import strategies as st

from chiasm.generation import Request
from chiasm.generation.engine.ledger import Ledger
from chiasm.generation.engine.question import PictureInputs, Question
from chiasm.generation.engine.scheduler import Text, next_to_encode, share_out
from chiasm.generation.messages import Message


def text_of(
    tokens: int,
    computed: int = 0,
    *,
    arrival: int = 0,
    priority: int = 0,
    pictures: Sequence[range] = (),
) -> Text:
    request = Request((Message.user("x"),), priority=priority)
    shown = [PictureInputs(f"{n}", tuple(at)) for n, at in enumerate(pictures)]
    ids = [0] * tokens
    question = Question(request, ids, list(ids), shown, [], 9, Ledger(0.0), lambda said: None)
    return Text(question, arrival, list(ids), list(ids), [], computed=computed)


@st.composite
def crowds(draw: st.DrawFn) -> list[Text]:
    """Texts that decode, that are read, and that wait for a picture."""
    texts = []
    for arrival in range(draw(st.integers(0, 12))):
        tokens = draw(st.integers(1, 300))
        computed = draw(st.one_of(st.just(tokens - 1), st.integers(0, tokens - 1)))
        pictures = []
        if draw(st.booleans()) and tokens > 20:
            start = draw(st.integers(0, tokens - 10))
            pictures = [range(start, start + 9)]
        priority = draw(st.integers(0, 2))
        text = text_of(tokens, computed, arrival=arrival, priority=priority, pictures=pictures)
        texts.append(text)
    return texts


@given(texts=crowds(), rows=st.integers(1, 256), beside=st.integers(1, 2000))
def test_a_pass_is_never_too_large_and_decoders_come_first(
    texts: list[Text], rows: int, beside: int
) -> None:
    shares = share_out(texts, rows=rows, beside=beside)
    decoding = [text for text in texts if text.left == 1 and text.readable]
    reading = [text for text in texts if text.left > 1 and text.readable]
    assert sum(shares.values()) <= rows
    if decoding:
        assert sum(shares.values()) <= max(beside, len(decoding) + 1)
    assert all(1 <= share <= text.readable for text, share in shares.items())
    if len(decoding) <= rows:
        assert all(shares[text] == 1 for text in decoding)
    assert bool(shares) == bool(decoding or reading)
    if reading and len(decoding) < rows:
        assert any(text in shares for text in reading)


@given(texts=crowds(), rows=st.integers(1, 256))
def test_what_is_left_is_shared_evenly(texts: list[Text], rows: int) -> None:
    reading = [text for text in texts if text.left > 1 and text.readable]
    decoding = [text for text in texts if text.left == 1 and text.readable]
    room = rows - len(decoding)
    assume(reading and room >= len(reading))
    shares = share_out(texts, rows=rows, beside=rows)
    assert all(shares[text] >= min(text.readable, room // len(reading)) for text in reading)
    # And nothing is wasted.
    assert sum(shares[text] for text in reading) == min(room, sum(t.readable for t in reading))


@given(texts=crowds(), rows=st.integers(14, 64), beside=st.integers(1, 64))
def test_nobody_starves(texts: list[Text], rows: int, beside: int) -> None:
    for text in texts:
        text.question.pictures.clear()
    decoding = [text for text in texts if text.left == 1]
    waiting = {text for text in texts if text.left > 1}
    passes, most = 0, sum(text.left for text in waiting)
    while waiting:
        shares = share_out(texts, rows=rows, beside=beside)
        assert all(shares[text] == 1 for text in decoding)  # they go on for ever
        for text in list(waiting):
            text.computed += shares.get(text, 0)
            if text.left <= 1:
                waiting.discard(text)
                texts.remove(text)
        passes += 1
        assert passes <= most


def test_a_text_is_read_up_to_the_picture_that_is_missing() -> None:
    text = text_of(50, pictures=[range(10, 20), range(30, 40)])
    assert share_out([text], rows=256, beside=16) == {text: 10}
    text.computed = 10
    assert share_out([text], rows=256, beside=16) == {}


def test_pictures_are_encoded_in_turns() -> None:
    many = text_of(200, arrival=1, pictures=[range(20 * n, 20 * n + 9) for n in range(9)])
    one = text_of(50, arrival=2, pictures=[range(10, 20)])
    none = text_of(50, arrival=0)
    assert next_to_encode([none]) is None
    assert next_to_encode([none, one, many]) is many
    many.encoded, many.computed = 1, 20  # its first has been encoded and read
    assert next_to_encode([none, one, many]) is one
    urgent = text_of(50, arrival=3, priority=-1, pictures=[range(10, 20)])
    urgent.encoded = 5
    assert next_to_encode([none, one, many, urgent]) is urgent
