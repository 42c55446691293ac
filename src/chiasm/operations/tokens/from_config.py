"""A rule from a checkpoint's own files: what it was published with counts, not what is usual."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import date
from typing import Any

from chiasm.operations.tokens.rule import ImageRule
from chiasm.operations.tokens.table import rule_of

Config = Mapping[str, Any]

_NEXT_RESOLUTIONS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def rule_from_config(config: Config, preprocessor: Config) -> ImageRule | None:
    """The rule of an open checkpoint; None where its kind is not known.

    config, preprocessor: `config.json` and `preprocessor_config.json`, empty where there is none;
    or the `processor_config.json` that holds both processors' entries since transformers 5.
    """
    read = _READERS.get(str(config.get("model_type", "")))
    if read is None:
        return None
    inner = preprocessor.get("image_processor")
    if isinstance(inner, Mapping):
        preprocessor = {**preprocessor, **inner}
    try:
        family, constants = read(config, preprocessor)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    # Costs are remembered by a rule's name, so other constants have another.
    mark = hashlib.sha256(repr(sorted(constants.items())).encode()).hexdigest()[:8]
    return rule_of(
        {
            "name": f"{config['model_type']}, from its configuration ({mark})",
            "family": family,
            "source": "config.json and preprocessor_config.json of the checkpoint",
            "read": date.today(),
            "evidence": "code",
            "constants": constants,
        }
    )


def _vision(config: Config) -> Config:
    found: Config = config.get("vision_config") or {}
    return found


def _edge(size: Any, *names: str) -> int:
    """The one side that a `size` states, however it states it."""
    if isinstance(size, Mapping):
        return int(next(size[name] for name in names if size.get(name) is not None))
    return int(size[0] if isinstance(size, list | tuple) else size)


def _llava(config: Config, preprocessor: Config) -> tuple[str, Config]:
    vision = _vision(config)
    side = int(vision.get("image_size", 336))
    if "crop_size" in preprocessor:
        side = _edge(preprocessor["crop_size"], "height", "shortest_edge")
    patches = side // int(vision.get("patch_size", 14))
    # CLIP's class token is counted, and left out again by the strategy that is usual.
    extra = int(vision.get("model_type", "clip_vision_model") == "clip_vision_model")
    stated = preprocessor.get("num_additional_image_tokens")
    extra = extra if stated is None else int(stated)
    name = "vision_feature_select_strategy"
    strategy = preprocessor.get(name) or config.get(name, "default")
    tokens = patches**2 + extra - (strategy == "default")
    return "fixed", {"tokens": tokens, "side": side, "patches": patches}


def _llava_next(config: Config, preprocessor: Config) -> tuple[str, Config]:
    vision = _vision(config)
    stated = preprocessor.get("image_grid_pinpoints") or config.get("image_grid_pinpoints")
    resolutions = tuple((int(a), int(b)) for a, b in stated or _NEXT_RESOLUTIONS)
    side = int(vision.get("image_size", 336))
    patch = int(vision.get("patch_size", 14))
    return "llava-next", {"side": side, "patch": patch, "resolutions": resolutions}


def _qwen(config: Config, preprocessor: Config) -> tuple[str, Config]:
    vision = _vision(config)
    usual = 16 if str(config["model_type"]).startswith("qwen3") else 14
    patch = int(preprocessor.get("patch_size") or vision.get("patch_size", usual))
    merge = int(preprocessor.get("merge_size") or vision.get("spatial_merge_size", 2))
    size = preprocessor.get("size") or {}
    least = preprocessor.get("min_pixels") or size.get("shortest_edge", 56 * 56)
    most = preprocessor.get("max_pixels") or size.get("longest_edge", 28 * 28 * 1280)
    step = patch * merge
    return "qwen", {"step": step, "min_pixels": int(least), "max_pixels": int(most)}


def _idefics3(config: Config, preprocessor: Config) -> tuple[str, Config]:
    vision = _vision(config)
    tile = _edge(preprocessor.get("max_image_size", vision.get("image_size", 364)), "longest_edge")
    longest = _edge(preprocessor.get("size", 4 * tile), "longest_edge")
    scale = int(config.get("scale_factor", 2))
    tokens = preprocessor.get("image_seq_len")
    if tokens is None:
        side = int(vision.get("image_size", tile))
        tokens = (side // int(vision.get("patch_size", 14)) // scale) ** 2
    tokens = int(tokens)
    if preprocessor.get("do_image_splitting") is False:
        return "fixed", {"tokens": tokens, "side": tile, "markers": 3}
    return "idefics3", {"tile": tile, "longest": longest, "tokens": tokens}


def _internvl(config: Config, preprocessor: Config) -> tuple[str, Config]:
    vision = _vision(config)
    side = _edge(vision.get("image_size", config.get("force_image_size", 448)))
    patch = _edge(vision.get("patch_size", 14))
    ratio = float(config.get("downsample_ratio", 0.5))
    cuts = preprocessor.get("crop_to_patches", config.get("dynamic_image_size", True))
    most = int(preprocessor.get("max_patches") or config.get("max_dynamic_patch", 12))
    least = int(preprocessor.get("min_patches") or config.get("min_dynamic_patch", 1))
    tokens = int((side // patch) ** 2 * ratio**2)
    return "internvl", {
        "side": side,
        "tokens": tokens,
        "least": least if cuts else 1,
        "most": most if cuts else 1,
    }


def _paligemma(config: Config, preprocessor: Config) -> tuple[str, Config]:
    vision = _vision(config)
    side = int(vision.get("image_size", 224))
    patches = side // int(vision.get("patch_size", 14))
    return "fixed", {"tokens": patches**2, "side": side, "patches": patches}


def _pixtral(config: Config, preprocessor: Config) -> tuple[str, Config]:
    vision = _vision(config)
    if vision.get("model_type") != "pixtral":
        return _llava(config, preprocessor)
    longest = _edge(preprocessor.get("size", vision.get("image_size", 1024)), "longest_edge")
    patch = _edge(preprocessor.get("patch_size", vision.get("patch_size", 16)), "height")
    merge = int(config.get("spatial_merge_size", 1))
    return "pixtral", {"longest": longest, "patch": patch * merge}


def _llama4(config: Config, preprocessor: Config) -> tuple[str, Config]:
    vision = _vision(config)
    side = int(vision.get("image_size", 336))
    ratio = float(vision.get("pixel_shuffle_ratio", 0.5))
    tokens = int((side // int(vision.get("patch_size", 14))) ** 2 * ratio**2)
    most = int(preprocessor.get("max_patches", 16))
    return "llama4", {"side": side, "tokens": tokens, "most": most}


def _gemma4(config: Config, preprocessor: Config) -> tuple[str, Config]:
    pooled = int(preprocessor.get("patch_size", 16)) * int(
        preprocessor.get("pooling_kernel_size", 3)
    )
    tokens = int(preprocessor.get("max_soft_tokens", 280))
    return "gemini-grid", {"patch": pooled, "levels": {"auto": tokens}, "markers": 2}


def _small_vlm(config: Config, preprocessor: Config) -> tuple[str, Config]:
    """The one that is shipped here: see `models.namer.WordProjectorConfig`."""
    looks, words = 5, config["projector"]
    tokens = 3 + int(words["whole"]) + (looks - 1) * int(words["quarter"])
    return "fixed", {"tokens": tokens, "side": int(config.get("side", 224)), "looks": looks}


_READERS = {
    "gemma4": _gemma4,
    "small-vlm": _small_vlm,
    "llava": _pixtral,  # Pixtral's published checkpoints are of this type, too
    "llava_next": _llava_next,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "qwen3_vl_moe": _qwen,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "internvl": _internvl,
    "internvl_chat": _internvl,
    "paligemma": _paligemma,
    "mistral3": _pixtral,
    "pixtral": _pixtral,
    "llama4": _llama4,
}
