"""The processors of transformers, asked for counts and sizes without weights, pictures or a hub."""

from __future__ import annotations

import ast
import functools
import importlib.util
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.gemma4.image_processing_pil_gemma4 import (
    Gemma4ImageProcessorPil,
    get_aspect_ratio_preserving_size,
)
from transformers.models.gemma4.processing_gemma4 import Gemma4Processor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llama4.processing_llama4 import Llama4Processor
from transformers.models.paligemma.processing_paligemma import PaliGemmaProcessor
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

Size = tuple[int, int]


def _bare(kind: Any, images: dict[str, Any] | None = None, **attributes: Any) -> Any:
    """A processor with no tokenizer: counting does not need one."""
    processor = object.__new__(kind)
    attributes["_merge_kwargs"] = lambda **_: {"images_kwargs": images or {}}
    for name, value in attributes.items():
        object.__setattr__(processor, name, value)
    return processor


def count(processor: Any, size: Size) -> int:
    """Tokens of one picture, with what the processor counts in."""
    counted = processor._get_num_multimodal_tokens(image_sizes=[(size[1], size[0])])
    return int(counted.num_image_tokens[0])


def qwen2(least: int, most: int) -> Any:
    entries = {"shortest_edge": least, "longest_edge": most}
    return _bare(Qwen2VLProcessor, image_processor=Qwen2VLImageProcessorPil(size=entries))


def qwen2_default() -> Any:
    return _bare(Qwen2VLProcessor, image_processor=Qwen2VLImageProcessorPil())


def qwen3(least: int, most: int) -> Any:
    entries = {"shortest_edge": least, "longest_edge": most}
    reader = Qwen2VLImageProcessorPil(size=entries, patch_size=16, merge_size=2)
    return _bare(Qwen3VLProcessor, image_processor=reader)


def qwen_size(size: Size, step: int, least: int, most: int) -> Size:
    height, width = smart_resize(size[1], size[0], step, least, most)
    return width, height


def internvl(least: int = 1, most: int = 12) -> Any:
    reader = GotOcr2ImageProcessorPil(
        size={"height": 448, "width": 448}, min_patches=least, max_patches=most
    )
    return _bare(
        InternVLProcessor, {"crop_to_patches": True}, image_processor=reader, image_seq_length=256
    )


def internvl_grid(size: Size) -> Size:
    columns, rows = get_optimal_tiled_canvas((size[1], size[0]), (448, 448), 1, 12)
    return columns, rows


def paligemma(side: int) -> Any:
    return _bare(PaliGemmaProcessor, image_seq_length=(side // 14) ** 2)


def pixtral_size(size: Size, longest: int, patch: int) -> Size:
    """(0, …) where nothing is left of a thin picture: the processor fails at those."""
    image = torch.empty((3, size[1], size[0]), device="meta")
    height, width = get_resize_output_image_size(image, (longest, longest), (patch, patch))
    return width, height


def next_size(size: Size, resolutions: list[list[int]]) -> Size:
    width, height = size
    best = select_best_resolution((height, width), resolutions)
    image = torch.empty((3, height, width), device="meta")
    rows, columns = get_patch_output_size(image, best, "channels_first")
    return columns, rows


def gemma4() -> Any:
    return _bare(Gemma4Processor, image_processor=Gemma4ImageProcessorPil())


def grid_size(size: Size, tokens: int) -> Size:
    """Gemma 4's."""
    height, width = get_aspect_ratio_preserving_size(size[1], size[0], 16, tokens * 9, 3)
    return width, height


# Llama 4 ----------------------------------------------------------------------------------------


@functools.cache
def _llama4() -> dict[str, Any]:
    """Functions of its image processor, whose module wants torchvision for what is not needed."""
    module = importlib.util.find_spec("transformers.models.llama4")
    assert module is not None
    assert module.origin is not None
    path = Path(module.origin).with_name("image_processing_llama4.py")
    names: dict[str, Any] = {"math": math, "torch": torch, "defaultdict": defaultdict}
    names |= {"lru_cache": functools.lru_cache, "SizeDict": SimpleNamespace}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name != "split_to_tiles":
            node.decorator_list = []
            exec(compile(ast.Module([node], []), str(path), "exec"), names)
    return names


@functools.cache
def _llama4_canvases(most: int) -> torch.Tensor:
    side = SimpleNamespace(height=336, width=336)
    return torch.tensor(_llama4()["find_supported_resolutions"](most, side))


def llama4_canvas(size: Size, most: int = 16) -> Size:
    """(columns, rows)."""
    height, width = _llama4()["get_best_fit"]((size[1], size[0]), _llama4_canvases(most)).tolist()
    return width // 336, height // 336


def llama4_size(size: Size, columns: int, rows: int) -> Size:
    room = min(max(size[1], 336), rows * 336), min(max(size[0], 336), columns * 336)
    height, width = _llama4()["get_max_res_without_distortion"]((size[1], size[0]), room)
    return max(width, 1), max(height, 1)


def llama4_prompt(columns: int, rows: int) -> str:
    written: str = Llama4Processor._prompt_split_image(None, (rows, columns), 144)
    return written
