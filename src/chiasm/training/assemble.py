"""A new vision-language model in LLaVA-1.5's layout, out of an image tower and a language model."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from chiasm.errors import ConfigurationError
from chiasm.models import checkpoint
from chiasm.models.chat import CHAT_FILES, ChatTokenizer
from chiasm.models.configuration import write_config
from chiasm.models.decoder import Decoder
from chiasm.models.llava import TOWERS, LLaVA, LLaVAConfig
from chiasm.models.llava_reader import LLaVAReader, PatchTokens
from chiasm.models.preprocess import ImagePreprocessor
from chiasm.models.projectors import MLPProjector
from chiasm.models.skeleton import without_weights
from chiasm.training.instruct_recipe import NewModelRecipe
from chiasm.training.instruct_start import Begun

# Makes a template that takes texts alone take parts: what it calls `messages` has been joined.
_JOINED = """\
{%%- set joined = namespace(messages=[]) -%%}
{%%- for message in messages -%%}
{%%- set content = namespace(text='') -%%}
{%%- if message['content'] is string -%%}
{%%- set content.text = message['content'] -%%}
{%%- else -%%}
{%%- for part in message['content'] -%%}
{%%- set content.text = content.text + ('%s\n' if part['type'] == 'image' else part['text']) -%%}
{%%- endfor -%%}
{%%- endif -%%}
{%%- set message = {'role': message['role'], 'content': content.text} -%%}
{%%- set joined.messages = joined.messages + [message] -%%}
{%%- endfor -%%}
{%%- set messages = joined.messages -%%}
"""


def assembled(recipe: NewModelRecipe, *, kept: Path, seed: int, **places: Any) -> Begun:
    """The network, its projector drawn at random, and its small files in the folder `kept`.

    places: cache_dir and its like, for `checkpoint.locate`.
    Raises ConfigurationError for parts that do not fit, and what loading them raises.
    """
    tower_folder = checkpoint.locate(recipe.image_tower, **places)
    language_folder = checkpoint.locate(recipe.language_model, **places)
    source: Any = checkpoint.load_model(tower_folder)
    vision: Any = getattr(source.config, "vision_config", None)
    if type(vision) not in TOWERS.values():
        raise ConfigurationError(
            f"{recipe.image_tower} has no image tower that a LLaVA can take.",
            hint="Use a CLIP or SigLIP checkpoint.",
            param="model.new.image_tower",
        )
    decoder = checkpoint.load_model(language_folder)
    if not isinstance(decoder, Decoder):
        raise ConfigurationError(
            f"{recipe.language_model} is no language model.",
            hint="Use a Llama, Qwen2 or Qwen3 checkpoint.",
            param="model.new.language_model",
        )
    image_id = _tokenizer_files(language_folder, kept, recipe.image_token)
    if image_id >= decoder.config.vocab_size:
        enlarge(decoder, image_id + 1)
    class_token = vision.model_type == "clip_vision_model"
    tokens = PatchTokens(vision.patch_size, int(class_token), "default" if class_token else "full")
    reader = LLaVAReader(_preprocessor(tower_folder), tokens, recipe.image_token)
    config = LLaVAConfig(
        text_config=decoder.config,
        vision_config=vision,
        image_token_index=image_id,
        image_seq_length=reader.count(*reversed(reader.preprocessor.size)),
        vision_feature_layer=recipe.feature_layer,
        vision_feature_select_strategy=tokens.strategy,
    )
    model = _network(config, source, decoder, seed)
    checkpoint.write_json(kept / checkpoint.PREPROCESSOR, reader.to_config())
    checkpoint.write_json(kept / checkpoint.PROCESSOR, reader.processor_config())
    entries = {"architectures": [model.config.architecture], **write_config(model.config)}
    checkpoint.write_json(kept / checkpoint.CONFIG, entries)
    whole = hashlib.sha256(repr((recipe, seed)).encode())
    for folder in (tower_folder, language_folder):
        whole.update(checkpoint.digest(folder).encode())
    tokenizer = ChatTokenizer.from_folder(kept)
    return Begun(model, reader, tokenizer, "", whole.hexdigest(), kept)


def enlarge(decoder: Decoder, vocabulary: int) -> None:
    """Give the decoder so many tokens, in place. New ones begin as the mean of all the others."""
    new = vocabulary - decoder.config.vocab_size
    for module in (decoder.embedding, decoder.head):
        if module is not None:
            weight = module.weight.detach()
            rows = weight.mean(dim=0, keepdim=True).expand(new, -1)
            module.weight = nn.Parameter(torch.cat([weight, rows]), requires_grad=False)
    decoder.embedding.num_embeddings = vocabulary
    if decoder.head is not None:
        decoder.head.out_features = vocabulary
    decoder.config = replace(decoder.config, vocab_size=vocabulary)


def _network(config: LLaVAConfig, source: Any, decoder: Decoder, seed: int) -> LLaVA:
    with without_weights():
        model = LLaVA(config, head=decoder.head is not None)
    model.image_tower = source.image_tower
    if model.image_head is not None:
        model.image_head = source.image_head
    model.decoder = decoder
    torch.manual_seed(seed)
    model.projector = MLPProjector(
        config.vision_config.hidden_size * len(config.feature_layers),
        config.text_config.hidden_size,
        hidden_act=config.projector_hidden_act,
        bias=config.multimodal_projector_bias,
    )
    assert not any(_is_empty(tensor) for tensor in model.state_dict().values())
    return model.eval()


def _is_empty(tensor: Tensor) -> bool:
    return tensor.device.type == "meta"


def _preprocessor(folder: Path) -> ImagePreprocessor:
    found = checkpoint.load_preprocessor(folder)
    if not isinstance(found, ImagePreprocessor):
        raise ConfigurationError(
            f"{folder} prepares pictures in a way that a LLaVA does not.",
            param="model.new.image_tower",
        )
    return found


def _tokenizer_files(source: Path, kept: Path, image_token: str) -> int:
    """The language model's files with a token for pictures in them; its number."""
    kept.mkdir(parents=True, exist_ok=True)
    for name in CHAT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, kept / name)
    tokenizer = ChatTokenizer.from_folder(source)
    if tokenizer.template is None:
        raise ConfigurationError(
            f"{source} has no chat template, so it is no model to talk with.",
            hint="Use an instruction-tuned one, or put a chat_template.jinja beside it.",
            param="model.new.language_model",
        )
    backend = tokenizer.backend
    backend.add_special_tokens([AddedToken(image_token, special=True, normalized=False)])
    backend.save(str(kept / "tokenizer.json"))
    number = tokenizer.token_id(image_token)
    entries = _json(kept / "tokenizer_config.json")
    entries["image_token"] = image_token
    if "added_tokens_decoder" in entries:
        entries["added_tokens_decoder"][str(number)] = {
            "content": image_token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
    template = tokenizer.template
    if not tokenizer.takes_parts:
        template = _JOINED % image_token.replace("'", "\\'") + template
    entries.pop("chat_template", None)
    (kept / "chat_template.json").unlink(missing_ok=True)
    checkpoint.write_json(kept / "tokenizer_config.json", entries)
    (kept / "chat_template.jinja").write_text(template, encoding="utf-8")
    return number


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
