"""Models of torchvision; of detectors the backbone with its feature pyramid, which is what one attaches to."""

from typing import Any

from compat.entries import table

PACKAGE = "torchvision"
PRELOAD = ("compat.with_torchvision",)

FAMILIES = """
resnet: resnet18 resnet50 resnext50_32x4d wide_resnet50_2 resnet34
mobilenetv2: mobilenet_v2
mobilenetv3: mobilenet_v3_small mobilenet_v3_large
efficientnet: efficientnet_b0 efficientnet_v2_s efficientnet_b2
densenet: densenet121 densenet169
vgg: vgg11_bn vgg16
alexnet: alexnet
squeezenet: squeezenet1_1 squeezenet1_0
shufflenetv2: shufflenet_v2_x0_5 shufflenet_v2_x1_0
mnasnet: mnasnet0_5 mnasnet1_0
googlenet: googlenet
inception: inception_v3
regnet: regnet_x_400mf regnet_y_400mf regnet_y_800mf
convnext: convnext_tiny
vit: vit_b_32 vit_b_16
swin: swin_t swin_s
swinv2: swin_v2_t
maxvit: maxvit_t
fcn: fcn_resnet50
deeplab: deeplabv3_mobilenet_v3_large deeplabv3_resnet50
lraspp: lraspp_mobilenet_v3_large
fasterrcnn: fasterrcnn_mobilenet_v3_large_fpn.backbone fasterrcnn_resnet50_fpn.backbone
retinanet: retinanet_resnet50_fpn.backbone retinanet_resnet50_fpn_v2.backbone
fcos: fcos_resnet50_fpn.backbone
ssd: ssdlite320_mobilenet_v3_large.backbone ssd300_vgg16.backbone
video_resnet: r3d_18 mc3_18 r2plus1d_18
s3d: s3d
mvit: mvit_v2_s mvit_v1_b
swin3d: swin3d_t
raft: raft_small
"""

_VIDEO = {"r3d_18": 8, "mc3_18": 8, "r2plus1d_18": 8, "s3d": 16, "mvit_v1_b": 16, "mvit_v2_s": 16, "swin3d_t": 8}
_SIDES = {
    "r3d_18": 48, "mc3_18": 48, "r2plus1d_18": 48, "s3d": 224, "mvit_v1_b": 224, "mvit_v2_s": 224, "swin3d_t": 64,
    "maxvit_t": 224, "inception_v3": 299, "raft_small": 128, "ssd300_vgg16.backbone": 300,
}  # fmt: skip


def names() -> list[tuple[str, str]]:
    """Family and name of every model."""
    return table(FAMILIES)


def build(name: str) -> tuple[Any, Any]:
    """The model of that name with random weights, and two small pictures, clips or pairs of pictures."""
    from compat.stubs import load_torchvision

    load_torchvision()
    import torch
    from torchvision.models import get_model

    whole, _, part = name.partition(".")
    side = _SIDES.get(name, 96)
    options: dict[str, Any] = {"image_size": side} if whole.startswith("vit_") else {}
    options |= {"init_weights": True} if whole in ("googlenet", "inception_v3") else {}
    options |= {"weights_backbone": None} if part or whole.startswith(("fcn", "deeplab", "lraspp")) else {}
    torch.manual_seed(0)
    model = get_model(whole, weights=None, **options).eval()
    model = model.get_submodule(part) if part else model
    shape = (2, 3, _VIDEO[name], side, side) if name in _VIDEO else (2, 3, side, side)
    if whole.startswith("raft"):
        return model, {"image1": torch.randn(shape), "image2": torch.randn(shape), "num_flow_updates": 2}
    return model, torch.randn(shape)
