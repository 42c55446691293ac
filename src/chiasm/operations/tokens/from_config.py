"""A rule from a checkpoint's own files: what it was published with counts, not what is usual."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from chiasm.operations.tokens.rule import ImageRule
from chiasm.operations.tokens.table import rule_of

Config = Mapping[str, Any]

_NEXT_RESOLUTIONS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def rule_from_config(config: Config, preprocessor: Config) -> ImageRule | None:
    """The rule of an open checkpoint; None where its kind is not known.

    config, preprocessor: `config.json` and `preprocessor_config.json`, empty where there is none.
    """
    read = _READERS.get(str(config.get("model_type", "")))
    if read is None:
        return None
    try:
        family, constants = read(config, preprocessor)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return rule_of(
        {
            "name": f"{config['model_type']}, from its configuration",
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
    patches = (side // int(vision.get("patch_size", 14))) ** 2
    whole = config.get("vision_feature_select_strategy", "default") == "full"
    return "fixed", {"tokens": patches + whole, "side": side}


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
    tokens = (tile // int(vision.get("patch_size", 14))) ** 2 // scale**2
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
    tokens = vision.get("num_image_tokens") or (side // int(vision.get("patch_size", 14))) ** 2
    return "fixed", {"tokens": int(tokens), "side": side}


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


_READERS = {
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
