"""What each `model_type` of a published `config.json` stands for.

Supporting another one means adding a row to `ARCHITECTURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from chiasm.models import (
    bert,
    clip,
    convnext,
    decoder,
    flamingo,
    idefics3,
    llava,
    llava_next,
    siglip,
    vit,
)
from chiasm.models.idefics3_reader import Idefics3Reader
from chiasm.models.idefics_reader import IdeficsReader
from chiasm.models.layout import Layout
from chiasm.models.llava_reader import LLaVANeXTReader, LLaVAReader
from chiasm.models.processor_files import ProcessorFiles
from chiasm.models.tokenizer import TextRules
from chiasm.models.vision_language import ImageReader

# Readers that a processor's file describes besides the image processor's.
WholeReader = LLaVAReader | LLaVANeXTReader | Idefics3Reader


@dataclass(frozen=True)
class Architecture:
    """What a `model_type` stands for.

    model: makes the network from its configuration.
    optional: keyword of `model` → the published name of a tensor whose presence switches that
        part on, for parts that no configuration tells.
    texts: what a dual encoder asks of its texts; None for a single tower.
    images: makes the reader of a vision-language model's pictures from the processor's files.
    """

    model: Callable[..., nn.Module]
    config: type[Any]
    layout: Layout
    optional: Mapping[str, str] = field(default_factory=dict)
    texts: TextRules | None = None
    images: Callable[[ProcessorFiles], ImageReader] | None = None


ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(
        bert.BERT, bert.BERTConfig, bert.LAYOUT, optional={"pooler": "pooler.dense.weight"}
    ),
    "clip": Architecture(clip.CLIP, clip.CLIPConfig, clip.LAYOUT, texts=TextRules()),
    "convnext": Architecture(convnext.ConvNeXt, convnext.ConvNeXtConfig, convnext.LAYOUT),
    **{
        name: Architecture(decoder.Decoder, config, decoder.LAYOUT)
        for name, config in decoder.DECODERS.items()
    },
    "idefics": Architecture(
        flamingo.Flamingo,
        flamingo.IdeficsConfig,
        flamingo.LAYOUT,
        images=lambda files: IdeficsReader.from_config(files.image_processor),
    ),
    **{
        config.model_type: Architecture(
            idefics3.Idefics3,
            config,
            idefics3.LAYOUT,
            optional={"head": idefics3.HEAD},
            images=Idefics3Reader.from_files,
        )
        for config in (idefics3.Idefics3Config, idefics3.SmolVLMConfig)
    },
    "llava": Architecture(
        llava.LLaVA,
        llava.LLaVAConfig,
        llava.LAYOUT,
        optional={"head": llava.HEAD},
        images=LLaVAReader.from_files,
    ),
    "llava_next": Architecture(
        llava_next.LLaVANeXT,
        llava_next.LLaVANeXTConfig,
        llava.LAYOUT,
        optional={"head": llava.HEAD},
        images=LLaVANeXTReader.from_files,
    ),
    "siglip": Architecture(
        siglip.SigLIP,
        siglip.SigLIPConfig,
        siglip.LAYOUT,
        texts=TextRules(fixed_length=True, lower_case=True),
    ),
    "siglip2": Architecture(
        siglip.SigLIP2,
        siglip.SigLIP2Config,
        siglip.LAYOUT,
        texts=TextRules(fixed_length=True, lower_case=True),
    ),
    "vit": Architecture(
        vit.ViTModel, vit.ViTModelConfig, vit.LAYOUT, optional={"pooler": "pooler.dense.weight"}
    ),
}
