"""Models of segmentation-models-pytorch: every decoder, and a few encoders."""

from typing import Any

from compat.entries import table

PACKAGE = "segmentation-models-pytorch"
PRELOAD = ("compat.with_torchvision", "segmentation_models_pytorch")

FAMILIES = """
unet: Unet-resnet18 Unet-mobilenet_v2 Unet-efficientnet-b0 Unet-timm-skresnet18 Unet-densenet121 Unet-mit_b0
unetplusplus: UnetPlusPlus-resnet18
fpn: FPN-resnet18 FPN-mobilenet_v2
pspnet: PSPNet-resnet18
deeplabv3: DeepLabV3-resnet18
deeplabv3plus: DeepLabV3Plus-resnet18 DeepLabV3Plus-mobilenet_v2
linknet: Linknet-resnet18
manet: MAnet-resnet18
pan: PAN-resnet18
upernet: UPerNet-resnet18
segformer: Segformer-mit_b0 Segformer-resnet18
dpt: DPT-tu-vit_tiny_patch16_224
"""


def names() -> list[tuple[str, str]]:
    """Family and name of every model."""
    return table(FAMILIES)


def build(name: str) -> tuple[Any, Any]:
    """`Decoder-encoder` with random weights, and two small pictures."""
    from compat.stubs import load_torchvision

    load_torchvision()
    import segmentation_models_pytorch as smp
    import torch

    decoder, _, encoder = name.partition("-")
    torch.manual_seed(0)
    model = getattr(smp, decoder)(encoder_name=encoder, encoder_weights=None, classes=3)
    side = {"DPT": 224, "PAN": 128}.get(decoder, 96)
    return model.eval(), torch.randn(2, 3, side, side)
