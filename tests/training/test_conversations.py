"""Conversations in both shapes, what cannot be used of them, and the loader's order and place."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from captioned import picture
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from chiasm.errors import ConfigurationError, UnusableData
from chiasm.media import Image, open_image
from chiasm.models.chat import ChatTokenizer
from chiasm.models.vision_language import ImageInputs
from chiasm.training.answers import ConversationEncoder
from chiasm.training.conversation_loader import ConversationLoader, conversations_in_order
from chiasm.training.conversations import Conversation, Message, open_conversations
from chiasm.training.conversations_recipe import ConversationsRecipe
from chiasm.training.packing import ConversationBatch
from chiasm.training.samples import Damage

CHANCE = np.random.default_rng(0)
Record = dict[str, Any]


def write(path: Path, records: list[Any]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        lines = (each if isinstance(each, str) else json.dumps(each) for each in records)
        path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


def read(path: Path, **options: Any) -> list[Conversation | Damage]:
    source = open_conversations(ConversationsRecipe(source=str(path), **options))
    return [source.read(unit, CHANCE) for unit in range(source.units)]


def llava(*turns: tuple[str, str], **fields: Any) -> Record:
    return {**fields, "conversations": [{"from": who, "value": what} for who, what in turns]}


def openai(*turns: tuple[str, Any], **fields: Any) -> Record:
    return {**fields, "messages": [{"role": who, "content": what} for who, what in turns]}


def test_llavas_json(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(1))
    records = [
        llava(
            ("system", "Be brief."),
            ("human", "<image>\nVad är det här?"),
            ("gpt", "En häst på ängen. 你好"),
            image="a.jpg",
            id="1",
        ),
        llava(("human", "Compare <image> with <image>."), ("gpt", "Equal."), images=["a", "b.png"]),
        llava(("human", "What is it?"), ("gpt", "A horse."), ("human", "And?"), image="a.jpg"),
        llava(("human", "No picture."), ("gpt", "None.")),
    ]
    first, second, third, fourth = read(write(tmp_path / "train.json", records))
    assert first == Conversation(
        "train.json record 1",
        (
            Message("system", ("Be brief.",)),
            Message("user", (None, "Vad är det här?")),
            Message("assistant", ("En häst på ängen. 你好",)),
        ),
        (tmp_path / "a.jpg",),
    )
    assert isinstance(second, Conversation)
    assert second.messages[0].parts == ("Compare", None, "with", None, ".")
    assert second.pictures == (tmp_path / "a", tmp_path / "b.png")
    # Without a place the picture comes first; after the last answer there is nothing to learn.
    assert isinstance(third, Conversation)
    assert third.messages == (
        Message("user", (None, "What is it?")),
        Message("assistant", ("A horse.",)),
    )
    assert isinstance(fourth, Conversation)
    assert fourth.pictures == ()


def test_openais_messages(tmp_path: Path) -> None:
    data = "data:image/jpeg;base64," + base64.b64encode(picture(5)).decode()

    def part(url: str) -> Record:
        return {"type": "image_url", "image_url": {"url": url}}

    records = [
        openai(
            ("developer", "Be brief."),
            (
                "user",
                [part("x/a.jpg"), {"type": "text", "text": "Which?"}, part(data)],
            ),
            ("assistant", "The <image> second."),
        ),
        {
            "messages": [
                {"role": "user", "content": "Count."},
                {"role": "assistant", "content": "One.", "weight": 0},
                {"role": "user", "content": "Again."},
                {"role": "assistant", "content": [{"type": "text", "text": "Two."}], "weight": 1},
            ]
        },
    ]
    first, second = read(write(tmp_path / "train.jsonl", records), root="/pictures")
    assert isinstance(first, Conversation)
    assert first.messages == (
        Message("system", ("Be brief.",)),
        Message("user", (None, "Which?", None)),
        Message("assistant", ("The <image> second.",)),
    )
    assert first.pictures == (Path("/pictures/x/a.jpg"), picture(5))
    assert isinstance(second, Conversation)
    assert [message.learned for message in second.messages] == [True, False, True, True]


@pytest.mark.parametrize(
    ("record", "reason", "field"),
    [
        ("{", "unreadable JSON", ""),
        ([1], "unreadable JSON", ""),
        (llava(("human", "a"), ("bot", "b")), "unknown role", "conversations[1].from"),
        (llava(("human", "a"), ("gpt", " ")), "empty answer", "turn 2"),
        (llava(("human", "a")), "no answer", ""),
        ({"conversations": []}, "no turns", "conversations"),
        ({"conversations": ["a"]}, "turn is no object", "conversations[0]"),
        (llava(("human", "a"), ("gpt", "b"), image=3), "no picture named", "image"),
        (
            {"conversations": [{"from": "human"}]},
            "turn without text",
            "conversations[0].value",
        ),
        (
            llava(("human", "<image><image>"), ("gpt", "b"), image="a.jpg"),
            "pictures and their places differ in number",
            "2 of 1",
        ),
        (
            llava(("human", "a"), ("gpt", "<image> b"), image="a.jpg"),
            "picture outside a question",
            "turn 2",
        ),
        (openai(("tool", "x"), ("assistant", "y")), "unknown role", "messages[0].role"),
        (openai(("user", None)), "turn without text", "messages[0].content"),
        (
            openai(("user", [{"type": "input_audio"}])),
            "unknown kind of part",
            "messages[0].content[0].type",
        ),
        (
            openai(("user", [{"type": "image_url", "image_url": {}}])),
            "no picture named",
            "messages[0].content[0].image_url",
        ),
        (
            openai(
                ("user", [{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}]),
                ("assistant", "b"),
            ),
            "picture cannot be opened",
            "picture 1",
        ),
    ],
)
def test_what_cannot_be_used_is_named_by_file_record_and_field(
    tmp_path: Path, record: Any, reason: str, field: str
) -> None:
    good = llava(("human", "a"), ("gpt", "b"))
    written = record if isinstance(record, str) else json.dumps(record)
    found = read(write(tmp_path / "train.jsonl", [good, written]))[1]
    assert isinstance(found, Damage)
    assert found.reason == reason
    assert found.name == "train.jsonl record 2" + (f", {field}" if field else "")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.json", None, "There is no file .*none.json"),
        ("object.json", '{"a": 1}', "object.json is not a JSON array"),
        ("empty.json", "[]", "empty.json holds no records"),
        ("empty.jsonl", "", "empty.jsonl holds no records"),
        ("cut.json", '[{"conversations": []}, {"conv', "cut.json: record 2 is not valid JSON"),
        ("other.json", '[{"a": 1}]', "other.json holds no conversations"),
        ("other.jsonl", '{"a": 1}\n', "other.jsonl has no column that is known to name pictures"),
        ("notes.txt", "hello", "notes.txt holds no conversations"),
    ],
)
def test_a_file_that_holds_no_conversations_is_an_error(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UnusableData, match=message):
        open_conversations(ConversationsRecipe(source=str(tmp_path / name)))


def test_captions_answer_one_of_the_prompts(tmp_path: Path) -> None:
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "caption"), ("a.jpg", "A horse."), ("b.jpg", "")])
    source = open_conversations(
        ConversationsRecipe(source=str(tmp_path / "captions.csv"), prompts=("One?", "Two?"))
    )
    asked = set()
    for seed in range(20):
        found = source.read(0, np.random.default_rng(seed))
        assert isinstance(found, Conversation)
        assert found.messages[1] == Message("assistant", ("A horse.",))
        assert found.pictures == (tmp_path / "a.jpg",)
        asked.add(found.messages[0].parts)
    assert asked == {(None, "One?"), (None, "Two?")}
    assert isinstance(source.read(1, CHANCE), Damage)


# The loader -------------------------------------------------------------------------------------


class Reader:
    """A picture is two tokens, and its pixels are its mean colour."""

    mark = image_token = "<image>"

    def prepare(self, image: Image) -> ImageInputs:
        raise NotImplementedError

    def placeholder(self, width: int, height: int) -> str:
        return "<image>" * 2

    def count(self, width: int, height: int) -> int:
        return 2


def tokenizer() -> ChatTokenizer:
    vocabulary = {"<pad>": 0, "<unk>": 1, "Q": 2, "A": 3} | {f"w{n}": n + 10 for n in range(100)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(each, special=True) for each in ("<image>", "<end>")])
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}Q {{ m.content }} {% else %}"
        "A {{ m.content }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}A {% endif %}"
    )
    end = backend.token_to_id("<end>")
    return ChatTokenizer(backend, template=template, eos_ids=frozenset({end}))


COUNT = 37


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Conversation n is about picture n, and its answer is "wn" and up to six words more."""
    records = []
    for number in range(COUNT):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))
        words = " ".join([f"w{number}", *["w99"] * (number * 5 % 7)])
        records.append(llava(("human", "<image>"), ("gpt", words), image=f"{number}.jpg"))
    return write(tmp_path / "train.json", records)


def loader(data: Path, **options: Any) -> ConversationLoader:
    given = {"rank": 0, "world_size": 1, "seed": 0, "rows": 4}
    given |= {name: options.pop(name) for name in list(options) if name in given}
    fields = {"max_tokens": 24, "bucket_batches": 3, "threads": 2, **options}
    recipe = ConversationsRecipe(source=str(data), **fields)

    def load(found: bytes | Path) -> int:
        red, green, _ = open_image(found).pixels.mean(axis=(0, 1)).round().tolist()
        return int(red // 4) + 60 * int(green // 4)

    encode = ConversationEncoder(tokenizer(), Reader(), max_tokens=recipe.max_tokens)
    return ConversationLoader(recipe, open_conversations(recipe), encode, load, pad_id=0, **given)


def numbers(batch: ConversationBatch) -> list[int]:
    """What the answers say."""
    return [number - 10 for number in batch.ids.flatten().tolist() if 10 <= number < 10 + COUNT]


def take(found: ConversationLoader, count: int) -> list[ConversationBatch]:
    stream: Iterator[ConversationBatch] = iter(found)
    batches = list(islice(stream, count))
    stream.close()  # type: ignore[attr-defined]
    return batches


def epoch_of(found: ConversationLoader, epoch: int = 0) -> list[ConversationBatch]:
    batches = []
    for batch in found:
        if found.epoch > epoch:
            break
        batches.append(batch)
    found.close()
    return batches


@pytest.mark.parametrize("packing", [False, True])
def test_an_epoch_has_each_conversation_once_with_its_own_picture(
    data: Path, packing: bool
) -> None:
    batches = epoch_of(loader(data, packing=packing))
    found = [number for batch in batches for number in numbers(batch)]
    assert sorted(found) == list(range(COUNT))
    assert found != list(range(COUNT))
    for batch in batches:
        assert list(batch.pictures) == numbers(batch)
        assert len(batch.ids) <= 4
        assert batch.ids.shape[1] == max(batch.lengths) <= 24
        assert sum(batch.picture_counts) == len(batch.keys) == len(batch.pictures)
    padding = [batch.padding for batch in batches]
    assert sum(padding) / len(padding) < 0.25
    if packing:
        assert len(batches) < COUNT / 4


@pytest.mark.parametrize("packing", [False, True])
def test_a_stopped_loader_goes_on_with_the_same_batches(data: Path, packing: bool) -> None:
    (data.parent / "11.jpg").write_bytes(b"no picture")
    whole = take(loader(data, packing=packing), 24)
    for stop in (1, 3, 4, 9, 17):
        first = loader(data, packing=packing)
        take(first, stop)
        state = json.loads(json.dumps(first.state_dict()))
        second = loader(data, packing=packing)
        second.load_state_dict(state)
        rest = take(second, 24 - stop)
        for ours, theirs in zip(rest, whole[stop:], strict=True):
            assert ours.keys == theirs.keys
            assert ours.ids.tolist() == theirs.ids.tolist()
            assert ours.learned.tolist() == theirs.learned.tolist()
            assert ours.pictures == theirs.pictures
        assert second.skipped["not a picture"] >= 2  # once an epoch, and counted once


def test_ranks_share_an_epoch_and_epochs_differ(data: Path) -> None:
    ranks = [loader(data, rank=rank, world_size=3) for rank in range(3)]
    parts = [[n for batch in epoch_of(each) for n in numbers(batch)] for each in ranks]
    assert sorted(n for part in parts for n in part) == list(range(COUNT))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    one = loader(data)
    first = [n for batch in epoch_of(one) for n in numbers(batch)]
    again = [n for batch in epoch_of(loader(data)) for n in numbers(batch)]
    other = [n for batch in epoch_of(loader(data, seed=1)) for n in numbers(batch)]
    assert first == again != other


def test_without_shuffling_they_come_as_they_lie(data: Path) -> None:
    found = [n for batch in epoch_of(loader(data, shuffle=False)) for n in numbers(batch)]
    assert found == list(range(COUNT))


def test_more_ranks_go_on_where_one_stopped(data: Path) -> None:
    first = loader(data)
    seen = [n for batch in take(first, 3) for n in numbers(batch)]  # a window
    ranks = [loader(data, rank=rank, world_size=2) for rank in range(2)]
    rest = []
    for each in ranks:
        each.load_state_dict(first.state_dict())
        rest += [n for batch in epoch_of(each) for n in numbers(batch)]
    assert set(seen) | set(rest) == set(range(COUNT))


def test_another_file_or_seed_has_no_such_place(data: Path) -> None:
    first = loader(data)
    take(first, 2)
    with pytest.raises(ConfigurationError, match="another seed"):
        loader(data, seed=1).load_state_dict(first.state_dict())
    state = first.state_dict()
    records = json.loads(data.read_text())
    write(data, records[:-1])
    with pytest.raises(ConfigurationError, match="other data"):
        loader(data).load_state_dict(state)


def test_damage_is_counted_by_reason_and_too_much_of_it_stops(data: Path) -> None:
    (data.parent / "3.jpg").unlink()
    (data.parent / "5.jpg").write_bytes(picture(5)[:400])
    records = json.loads(data.read_text())
    records[7]["conversations"][1]["value"] = "w7 " * 40
    records[9]["conversations"][0]["from"] = "nobody"
    write(data, records)
    batches = epoch_of(loader(data, max_damaged_share=0.5))
    seen = [n for batch in batches for n in numbers(batch)]
    assert sorted(seen) == sorted(set(range(COUNT)) - {3, 5, 7, 9})
    found = loader(data, max_damaged_share=0.5)
    take(found, len(batches))  # an epoch, and nothing of the next
    skipped = dict(found.skipped)
    assert skipped == {
        "too long": 1,
        "unknown role": 1,
        "picture cannot be opened": 1,
        "broken image": 1,
    }
    with pytest.raises(UnusableData, match=r"samples could not be read.*record"):
        epoch_of(loader(data, max_damaged_share=0.05))


def test_the_first_so_many_in_order_for_measuring(data: Path) -> None:
    recipe = ConversationsRecipe(source=str(data), threads=1, packing=True)
    encode = ConversationEncoder(tokenizer(), Reader(), max_tokens=24)

    assert sorted(_seen(recipe, encode)) == list(range(10))
    assert sorted(_seen(recipe, encode, rank=1, world_size=3)) == [1, 4, 7]


def _seen(recipe: ConversationsRecipe, encode: ConversationEncoder, **options: Any) -> list[int]:
    batches = conversations_in_order(
        recipe, encode, lambda found: 0, rows=4, pad_id=0, limit=10, **options
    )
    return [n for batch in batches for n in numbers(batch)]
