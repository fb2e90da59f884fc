"""Networks of MONAI at small sizes: segmentation, classification, registration and generation."""

from collections.abc import Callable
from typing import Any

from compat.inputs import normal, numbers

PACKAGE = "monai"
PRELOAD = ("compat.with_torchvision", "monai.networks.nets")

Row = tuple[tuple[Any, ...], dict[str, Any], Callable[[], Any]]  # arguments of the network, and its inputs


def picture(channels: int = 1, side: int = 32) -> Any:
    """A batch of two pictures."""
    return normal(2, channels, side, side)


def volume(channels: int = 1, side: int = 32) -> Any:
    """One volume."""
    return normal(1, channels, side, side, side)


NARROW = {"features": (8, 8, 16, 16, 32, 8)}
VIT = {"hidden_size": 48, "mlp_dim": 64, "num_layers": 2, "num_heads": 4, "spatial_dims": 2}
PLANE = {"spatial_dims": 2, "in_channels": 1}
LEVELS = {"channels": (8, 16), "attention_levels": (False, True), "num_res_blocks": (1, 1), "norm_num_groups": 4}

ROWS: dict[str, Row] = {
    "UNet": ((2, 1, 2, (8, 16, 32), (2, 2)), {"num_res_units": 2}, picture),
    "AttentionUnet": ((2, 1, 2, (8, 16, 32), (2, 2)), {}, picture),
    "BasicUNet": ((2, 1, 2), NARROW, picture),
    "BasicUNetPlusPlus": ((2, 1, 2), NARROW, picture),
    "UNETR": ((1, 2, (32,) * 3), {"feature_size": 8, "hidden_size": 48, "mlp_dim": 64, "num_heads": 4}, volume),
    "SwinUNETR": ((1, 2), {"feature_size": 12, "spatial_dims": 3}, lambda: volume(side=64)),
    "SegResNet": ((2, 8, 1, 2), {}, picture),
    "SegResNetDS": ((2, 8, 1, 2), {"blocks_down": (1, 2, 2)}, picture),
    "SegResNetVAE": (((32, 32),), {**PLANE, "init_filters": 8, "out_channels": 2}, picture),
    "VNet": ((2, 1, 2), {}, picture),
    "DynUNet": ((2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2]), {"filters": [8, 16, 32]}, picture),
    "HighResNet": ((2, 1, 2), {}, picture),
    "AHNet": ((), {**PLANE, "out_channels": 2, "psp_block_num": 2}, lambda: picture(side=64)),
    "FlexibleUNet": (
        (1, 2, "efficientnet-b0"),
        {"pretrained": False, "spatial_dims": 2, "decoder_channels": (32, 16, 8, 8, 8)},
        lambda: picture(side=64),
    ),
    "Quicknat": ((), {"num_classes": 2, "num_channels": 1, "num_filters": 8}, picture),
    "DAF3D": ((1, 2), {}, volume),
    "HoVerNet": ((), {"out_classes": 2}, lambda: normal(1, 3, 256, 256)),
    "MedNeXt": (
        (2, 8, 1, 2),
        {
            "encoder_expansion_ratio": 2, "decoder_expansion_ratio": 2, "bottleneck_expansion_ratio": 2,
            "blocks_down": (1, 1), "blocks_bottleneck": 1, "blocks_up": (1, 1),
        },
        picture,
    ),
    "DenseNet": ((2, 1, 2), {"init_features": 8, "growth_rate": 4, "block_config": (2, 2)}, picture),
    "EfficientNetBN": (("efficientnet-b0", False), {**PLANE, "num_classes": 2}, lambda: picture(side=64)),
    "SEResNet50": ((), {**PLANE, "num_classes": 2}, lambda: picture(side=64)),
    "ResNet": (
        ("basic", [1, 1, 1, 1], [8, 16, 32, 64]), {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 2}, volume,
    ),
    "ViT": ((1, (32, 32), (16, 16)), {**VIT, "classification": True}, picture),
    "ViTAutoEnc": ((1, (32, 32), (16, 16)), VIT, picture),
    "MILModel": ((2,), {"mil_mode": "att", "pretrained": False}, lambda: normal(1, 4, 3, 64, 64)),
    "AutoEncoder": ((2, 1, 1, (8, 16), (2, 2)), {}, picture),
    "VarAutoEncoder": ((2, (1, 32, 32), 1, 8, (8, 16), (2, 2)), {}, picture),
    "VQVAE": (
        (2, 1, 1),
        {
            "channels": (8, 16), "num_res_channels": (8, 16), "num_res_layers": 1, "num_embeddings": 16,
            "downsample_parameters": ((2, 4, 1, 1),) * 2, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2,
            "embedding_dim": 4,
        },
        picture,
    ),
    "DiffusionModelUNet": (
        (2, 1, 1), {**LEVELS, "num_head_channels": 8}, lambda: {"x": picture(), "timesteps": numbers(1, 5)},
    ),
    "AutoencoderKL": ((2, 1, 1), {**LEVELS, "latent_channels": 4}, picture),
    "PatchDiscriminator": ((2, 8, 1), {"num_layers_d": 2}, picture),
    "Discriminator": (((1, 32, 32), (8, 16), (2, 2)), {}, picture),
    "Generator": (((8,), (8, 4, 4), (16, 8, 1), (2, 2, 2)), {}, lambda: normal(2, 8)),
    "Regressor": (((1, 32, 32), (2,), (8, 16), (2, 2)), {}, picture),
    "LocalNet": ((2, 1, 8, (0, 1, 2)), {}, picture),
    "RegUNet": ((2, 1, 8, 2), {}, picture),
    "GlobalNet": (((32, 32), 2, 1, 8, 2), {}, picture),
    "VoxelMorphUNet": ((2, 2, 8, (8, 16, 16, 16), (16, 16)), {}, lambda: picture(2)),
    "DecoderOnlyTransformer": ((20, 16, 32, 2, 4), {}, lambda: numbers([*range(8)], [*range(8, 16)])),
    "FullyConnectedNet": ((8, 2, (16, 16)), {"dropout": 0.1, "bias": True}, lambda: normal(2, 8)),
}  # fmt: skip


def names() -> list[tuple[str, str]]:
    """Family and name of every network."""
    return [(name, name) for name in ROWS]


def build(name: str) -> tuple[Any, Any]:
    """The network at its small size with random weights, and its inputs."""
    from compat.stubs import load_torchvision

    load_torchvision()
    import monai.networks.nets
    import torch

    torch.manual_seed(0)
    given, named, inputs = ROWS[name]
    return getattr(monai.networks.nets, name)(*given, **named).eval(), inputs()
