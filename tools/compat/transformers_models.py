"""Models of Hugging Face transformers, each built from a tiny configuration with random weights."""

import contextlib
from typing import Any

from compat.entries import in_turn
from compat.transformers_table import FAMILIES, INPUTS, OVERRIDES, TASKS, TINY

PACKAGE = "transformers"
PRELOAD = ("compat.with_torchvision", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")


def names() -> list[tuple[str, str]]:
    """Family and name of every model."""
    return [(name.partition(":")[0], name) for name in in_turn(line.split() for line in FAMILIES.values())]


def build(name: str) -> tuple[Any, Any]:
    """The model of that name, and one small batch as keyword arguments."""
    from compat.stubs import load_torchvision

    with contextlib.suppress(ImportError):  # transformers needs it for few models, but fails where it fails to load
        load_torchvision()
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    type_, _, kind = name.partition(":")
    kind = kind or next(kind for kind, line in FAMILIES.items() if name in line.split())
    torch.manual_seed(0)
    config = tiny(type(transformers.AutoConfig.for_model(type_)), OVERRIDES.get(name, OVERRIDES.get(type_, {})))
    model = _model_class(type_, kind)(config)
    return model.eval(), _inputs(name, kind, config)


def tiny(config_class: Any, overrides: dict[str, Any]) -> Any:
    """A configuration with the sizes of `TINY` wherever it has such an attribute, inner configurations included."""
    default = config_class()
    given = {}
    for key, value in TINY.items():
        with contextlib.suppress(Exception):  # some configurations raise on attributes that vary among layers
            alike = type(getattr(default, key)) in (type(value), type(None))
            if alike and key not in overrides:
                given[key] = value
    for key in getattr(config_class, "sub_configs", None) or {}:
        inner = getattr(default, key, None)
        if inner is not None and key not in overrides and type(inner) is not dict:
            given[key] = tiny(type(inner), {}).to_dict()
    return config_class(**{key: value for key, value in {**given, **overrides}.items() if value is not ...})


def _model_class(type_: str, kind: str) -> Any:
    import transformers
    from transformers.models.auto import modeling_auto

    table = getattr(modeling_auto, f"MODEL_{TASKS[kind]}_MAPPING_NAMES" if kind in TASKS else "MODEL_MAPPING_NAMES")
    found = table[type_]
    return getattr(transformers, found if isinstance(found, str) else found[0])


def _inputs(name: str, kind: str, config: Any) -> dict[str, Any]:
    import torch

    text = getattr(config, "text_config", None) or config
    ids = torch.randint(3, min(60, getattr(text, "vocab_size", None) or 60), (2, 16))
    if name in INPUTS:
        return {key: torch.randn(shape) for key, shape in INPUTS[name].items()} | (
            {"decoder_input_ids": ids[:, :6]} if kind == "speech2text" else {}
        )
    if kind == "causal":
        return {"input_ids": ids}
    if kind in ("masked", "sequence", "tokens"):
        languages = {"lang_ids": torch.arange(2)} if name == "xmod" else {}  # each of its adapters has work
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | languages
    if kind == "seq2seq":
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids[:, :6]}
    if kind == "speech":
        return {"input_values": torch.randn(2, 4000)}
    if kind == "series":
        return {"past_values": torch.randn(2, config.context_length, config.num_input_channels)}
    vision = getattr(config, "vision_config", None) or config
    channels, size = getattr(vision, "num_channels", 3), getattr(vision, "image_size", None) or 64
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    if kind == "video":
        return {"pixel_values": torch.randn(2, config.num_frames, channels, height, width)}
    pixels = torch.randn(2, channels, height, width)
    if kind == "contrastive":
        return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
    return {"pixel_values": pixels}
