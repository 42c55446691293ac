"""Which tokens are learned, token by token: against transformers, and against lists by hand."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from chiasm.errors import InvalidRequest, UnsupportedCheckpoint
from chiasm.generation.engine.prompt import build_prompt
from chiasm.generation.messages import Message as Asked
from chiasm.media import Image, open_image
from chiasm.models.chat import ChatTokenizer
from chiasm.models.generator import GeneratorCheckpoint
from chiasm.models.vision_language import ImageInputs
from chiasm.training.answers import ConversationEncoder, Encoded, TooLong
from chiasm.training.conversations import Conversation, Message
from tests.generation.tiny_models import TEXT, write_tokenizer

# SmolLM2's: a system message of its own where the conversation brings none.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The published LLaVA-1.5's: pictures first, no token that ends an answer.
LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} "
    "{% elif m.role == 'user' %}USER: {{ m.content }} "
    "{% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content }}"
    " [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
# Cannot begin an answer by itself, and yet writes a header.
WITHOUT_PROMPT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
# Drops what an answer began with once the conversation goes on.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Reader:
    """A picture becomes a token for each ten pixels of its width, between two markers."""

    mark: str = "<image>"
    image_token: str = "<image>"

    def prepare(self, image: Image) -> ImageInputs:
        raise NotImplementedError

    def placeholder(self, width: int, height: int) -> str:
        return f"(begin){self.image_token * self.count(width, height)}(end)"

    def count(self, width: int, height: int) -> int:
        return width // 10


class JoiningReader(Reader):
    """Neighbouring pictures have one marker between them, as IDEFICS's."""

    def joined(self, text: str) -> str:
        return text.replace("(end)(begin)", "(between)")


def picture(width: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, 20), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def byte_level(folder: Path, template: str) -> ChatTokenizer:
    """GPT-2's kind of tokenizer, with ChatML's special tokens."""
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return ChatTokenizer.from_folder(folder)


def metaspace(folder: Path, template: str) -> ChatTokenizer:
    """Llama's kind: spaces are letters, and every text begins with one, after a <s>."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    special = [AddedToken(each, special=True) for each in ("<unk>", "<s>", "</s>", "<image>")]
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=special)
    words = [TEXT, "USER: ASSISTANT: [INST] [/INST] ()begin end\n"]
    # Taught from words, or whole sentences would become tokens.
    teacher = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    backend.pre_tokenizer, usual = teacher, backend.pre_tokenizer
    backend.train_from_iterator(words * 4, trainer)
    backend.pre_tokenizer = usual
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return ChatTokenizer.from_folder(folder)


def user(*parts: str | None) -> Message:
    return Message("user", parts)


def answer(text: str, *, learned: bool = True) -> Message:
    return Message("assistant", (text,), learned)


def encoded(
    tokenizer: ChatTokenizer, *messages: Message, widths: tuple[int, ...] = (), room: int = 1000
) -> Encoded:
    encode = ConversationEncoder(tokenizer, Reader(), max_tokens=room)
    return encode(Conversation("c", messages, tuple(picture(width) for width in widths)))


def runs(tokenizer: ChatTokenizer, found: Encoded) -> list[list[str]]:
    """The learned tokens as the tokenizer spells them, a list for each run of them."""
    lists: list[list[str]] = []
    for place in np.flatnonzero(found.learned).tolist():
        if not lists or not found.learned[place - 1]:
            lists.append([])
        lists[-1].append(tokenizer.backend.id_to_token(int(found.ids[place])))
    return lists


def spelled(tokenizer: ChatTokenizer, text: str) -> list[str]:
    """The tokens of a text by themselves."""
    return [tokenizer.backend.id_to_token(number) for number in tokenizer.encode(text)]


TURNS = (
    user("What is in this picture?"),
    answer("A red bicycle."),
    user("How many birds?"),
    answer("I can't tell: 你好"),
)


def test_chatml_learns_the_words_and_the_end_of_each_answer(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, SMOLLM2)
    found = encoded(tokenizer, *TURNS)
    assert runs(tokenizer, found) == [
        [*spelled(tokenizer, "A red bicycle."), "<|im_end|>"],
        [*spelled(tokenizer, "I can't tell: 你好"), "<|im_end|>"],
    ]
    text = tokenizer.decode(found.ids, skip_special=False)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is in this picture?<|im_end|>\n"
        "<|im_start|>assistant\nA red bicycle.<|im_end|>\n<|im_start|>user\nHow many birds?"
        "<|im_end|>\n<|im_start|>assistant\nI can't tell: 你好<|im_end|>"
    )


def test_vicuna_learns_the_words_and_the_end_of_each_answer(tmp_path: Path) -> None:
    tokenizer = metaspace(tmp_path, VICUNA)
    found = encoded(
        tokenizer, Message("system", ("Answer.",)), *TURNS[:2], user("And?"), answer("Two.")
    )
    # A space of Llama's kind belongs to the word behind it.
    assert runs(tokenizer, found) == [
        [*spelled(tokenizer, "A red bicycle."), "</s>"],
        [*spelled(tokenizer, "Two."), "</s>"],
    ]
    assert [tokenizer.backend.id_to_token(int(number)) for number in found.ids].count("<s>") == 1


def test_where_a_template_ends_no_answer_the_end_is_put_there(tmp_path: Path) -> None:
    tokenizer = metaspace(tmp_path, LLAVA)
    found = encoded(tokenizer, user(None, "What is it?"), *TURNS[1:], widths=(30,))
    assert runs(tokenizer, found)[0] == [*spelled(tokenizer, "A red bicycle."), "</s>"]
    assert len(runs(tokenizer, found)) == 2
    text = tokenizer.decode(found.ids, skip_special=False)
    image = "(begin)<image><image><image>(end)"
    assert text.replace("<s> ", "<s>").startswith(
        f"<s>USER: {image}\nWhat is it? ASSISTANT: A red bicycle.</s>"
    )


def test_llama_2_has_no_header_to_leave_out(tmp_path: Path) -> None:
    tokenizer = metaspace(tmp_path, LLAMA2)
    found = encoded(tokenizer, *TURNS[:2])
    words = runs(tokenizer, found)
    assert len(words) == 1
    assert words[0][:-1] == spelled(tokenizer, "A red bicycle. ")
    assert words[0][-1] == "</s>"


def test_a_header_that_a_template_writes_itself_is_not_learned(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, WITHOUT_PROMPT)
    words = runs(tokenizer, encoded(tokenizer, *TURNS))
    assert words[0] == [*spelled(tokenizer, "A red bicycle."), "<|im_end|>"]
    assert words[1] == [*spelled(tokenizer, "I can't tell: 你好"), "<|im_end|>"]


def test_a_template_that_rewrites_the_past_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, FORGETFUL)
    assert len(runs(tokenizer, encoded(tokenizer, *TURNS[:2]))) == 1
    with pytest.raises(UnsupportedCheckpoint, match="in another way once it goes on"):
        encoded(tokenizer, *TURNS)


MARKED = (
    "{{ bos }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONVERSATIONS = [
    TURNS,
    (Message("system", ("Be brief.\n",)), *TURNS),
    (user("  spaces  "), answer("\n newline and  spaces \n"), user("{x}"), answer("<b>&amp;</b>")),
    (user("你好，世界"), answer("på ängen 世界。"), user("?"), answer("!")),
]


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["turns", "system", "spaces", "letters"])
def test_the_mask_is_the_one_transformers_makes_of_marks(
    tmp_path: Path, messages: tuple[Message, ...]
) -> None:
    tokenizer = byte_level(tmp_path, MARKED)
    theirs: Any = PreTrainedTokenizerFast.from_pretrained(tmp_path).apply_chat_template(
        [{"role": each.role, "content": each.parts[0]} for each in messages],
        chat_template=MARKED,
        return_assistant_tokens_mask=True,
        return_dict=True,
        tokenize=True,
    )
    found = encoded(tokenizer, *messages)
    # Behind the last answer there is a line break, which nothing learns from.
    count = len(found.ids)
    assert theirs["input_ids"][:count] == found.ids.tolist()
    assert theirs["assistant_masks"][:count] == found.learned.astype(int).tolist()
    assert not any(theirs["assistant_masks"][count:])


@pytest.mark.parametrize("kind", ["byte level", "metaspace"])
def test_what_comes_before_an_answer_is_what_is_asked_with(tmp_path: Path, kind: str) -> None:
    """The prompt of training is, token for token, the prompt that the engine reads."""
    tokenizer = (
        byte_level(tmp_path, SMOLLM2) if kind == "byte level" else metaspace(tmp_path, LLAVA)
    )
    data = picture(50)
    found = encoded(
        tokenizer,
        user(None, "What <|im_end|> is </s> <image>?"),
        answer("A red wall."),
        widths=(50,),
    )
    checkpoint: Any = GeneratorCheckpoint(None, Reader(), tokenizer, "tiny", "")  # type: ignore[arg-type]
    asked = build_prompt(
        [Asked.user(open_image(data), "What <|im_end|> is </s> <image>?")], checkpoint
    )
    first = int(found.learned.argmax())
    assert found.ids[:first].tolist() == list(asked.ids)


def test_pictures_that_are_written_together_move_the_answers(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, MARKED.replace("m.content", "m.content | replace('\n', '')"))
    turns = (user(None, None, "Which?"), answer("Two."), user(None, None, None, "?"), answer("A."))
    reader, widths = JoiningReader(), (10, 20, 10, 10, 20)
    pictures = tuple(picture(width) for width in widths)
    encode = ConversationEncoder(tokenizer, reader, max_tokens=1000)
    found = encode(Conversation("c", turns, pictures))
    assert runs(tokenizer, found) == [
        [*spelled(tokenizer, "Two."), "<|im_end|>"],
        [*spelled(tokenizer, "A."), "<|im_end|>"],
    ]
    text = tokenizer.decode(found.ids, skip_special=False)
    assert "(begin)<image>(between)<image><image>(end)Which?" in text
    checkpoint: Any = GeneratorCheckpoint(None, reader, tokenizer, "tiny", "")  # type: ignore[arg-type]
    asked = build_prompt([Asked.user(*map(open_image, pictures[:2]), "Which?")], checkpoint)
    assert found.ids[: int(found.learned.argmax())].tolist() == list(asked.ids)


def test_image_tokens_are_there_and_never_learned(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, SMOLLM2)
    found = encoded(
        tokenizer,
        user(None, "first", None, "second"),
        answer("A."),
        user("third", None),
        answer("B."),
        widths=(30, 50, 20),
    )
    places = found.ids == tokenizer.token_id("<image>")
    assert places.sum() == 3 + 5 + 2
    assert not (places & found.learned).any()
    assert len(found.pictures) == 3
    assert [len(run) for run in runs(tokenizer, found)] == [3, 3]


def test_an_answer_that_is_context_is_not_learned(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, SMOLLM2)
    found = encoded(tokenizer, TURNS[0], answer("A red bicycle.", learned=False), *TURNS[2:])
    assert runs(tokenizer, found) == [[*spelled(tokenizer, "I can't tell: 你好"), "<|im_end|>"]]


def test_too_long_a_conversation_is_cut_behind_an_answer(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, SMOLLM2)
    turns = (user(None, "one"), answer("A."), user(None, "two"), answer("B."))
    whole = encoded(tokenizer, *turns, widths=(30, 500))
    short = encoded(tokenizer, *turns, widths=(30, 500), room=len(whole.ids) - 1)
    assert short.shortened
    assert not whole.shortened
    assert runs(tokenizer, short) == [[*spelled(tokenizer, "A."), "<|im_end|>"]]
    assert len(short.pictures) == 1
    assert short.ids.tolist() == whole.ids[: len(short.ids)].tolist()
    with pytest.raises(TooLong):
        encoded(tokenizer, *turns, widths=(30, 500), room=len(short.ids) - 1)


def test_what_the_template_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('User first!') }}{% endif %}"
    tokenizer = byte_level(tmp_path, strict + SMOLLM2)
    with pytest.raises(InvalidRequest, match="User first!"):
        encoded(tokenizer, Message("system", ("x",)), *TURNS)
