"""Models of timm: of each architecture the smallest first."""

import contextlib
from typing import Any

from compat.entries import table

PACKAGE = "timm"
PRELOAD = ("compat.with_torchvision", "timm")

FAMILIES = """
resnet: resnet18 resnet10t ecaresnet26t resnetblur18 seresnext26t_32x4d resnet50 wide_resnet50_2 resnext50_32x4d
resnet: resnet34d resnet50_gn
vision_transformer: vit_tiny_patch16_224 vit_small_patch16_224 flexivit_small vit_base_patch32_clip_224
vision_transformer: vit_medium_patch16_gap_240
efficientnet: mobilenetv2_050 efficientnet_b0 mnasnet_small tf_efficientnetv2_b0 efficientnet_lite0 mixnet_s
efficientnet: fbnetc_100 spnasnet_100 tinynet_e efficientnet_b0_gn
convnext: convnext_atto convnextv2_atto convnext_femto_ols convnext_zepto_rms convnext_tiny
swin_transformer: swin_tiny_patch4_window7_224 swin_s3_tiny_224
mobilenetv3: mobilenetv3_small_050 mobilenetv4_conv_small_035 lcnet_035 mobilenetv3_large_100 fbnetv3_b
mobilenetv3: mobilenetv4_hybrid_medium
regnet: regnetx_002 regnety_002 regnetv_040 regnetz_005
vgg: vgg11 vgg11_bn
densenet: densenet121 densenetblur121d
deit: deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224
mlp_mixer: mixer_s32_224 gmlp_ti16_224 resmlp_12_224 gmixer_12_224
ghostnet: ghostnet_050 ghostnetv2_100 ghostnetv3_050
senet: legacy_seresnet18 legacy_seresnext26_32x4d
byobnet: repvgg_a0 mobileone_s0 gernet_s resnet51q regnetz_b16 gcresnext26ts eca_resnext26ts bat_resnext26ts
byoanet: halonet_h1 lambda_resnet26t eca_botnext26ts_256 botnet26t_256
mobilevit: mobilevit_xxs mobilevitv2_050
maxxvit: maxvit_pico_rw_256 coatnet_pico_rw_224 maxvit_rmlp_pico_rw_256 coatnext_nano_rw_224
swin_transformer_v2: swinv2_tiny_window8_256
swin_transformer_v2_cr: swinv2_cr_tiny_ns_224
pvt_v2: pvt_v2_b0 pvt_v2_b2_li
metaformer: poolformerv2_s12 poolformer_s12 caformer_s18 convformer_s18
inception_v3: inception_v3
xception: legacy_xception
xception_aligned: xception41p xception41
nfnet: nf_regnet_b0 nf_resnet26 eca_nfnet_l0 dm_nfnet_f0
beit: beit_base_patch16_224 beitv2_base_patch16_224
cait: cait_xxs24_224
crossvit: crossvit_tiny_240 crossvit_9_dagger_240
convit: convit_tiny
coat: coat_tiny coat_lite_tiny
levit: levit_128s levit_conv_128s
twins: twins_svt_small twins_pcpvt_small
xcit: xcit_nano_12_p16_224
volo: volo_d1_224
tnt: tnt_s_patch16_224
pit: pit_ti_224 pit_ti_distilled_224
nest: nest_tiny
visformer: visformer_tiny
convmixer: convmixer_768_32
cspnet: cs3darknet_focus_s darknet17 cspresnet50 cspresnext50 cspdarknet53
dla: dla46x_c dla34 dla60_res2net
dpn: dpn48b dpn68
hrnet: hrnet_w18_small
res2net: res2net50_14w_8s res2next50
resnest: resnest14d
resnetv2: resnetv2_18 resnetv2_50d_gn resnetv2_50x1_bit
rexnet: rexnet_100 rexnetr_100
selecsls: selecsls42
sknet: skresnet18
tresnet: tresnet_m
vovnet: ese_vovnet19b_slim_dw vovnet39a ese_vovnet19b_dw
edgenext: edgenext_xx_small
efficientformer: efficientformer_l1
efficientformer_v2: efficientformerv2_s0
efficientvit_mit: efficientvit_b0
efficientvit_msra: efficientvit_m0
efficientvim: efficientvim_m1
eva: eva02_tiny_patch14_224 vit_tiny_patch16_dinov3_qkvb vit_pe_core_tiny_patch16_384
fastvit: fastvit_t8 fastvit_mci0
fasternet: fasternet_t0
focalnet: focalnet_tiny_srf
gcvit: gcvit_xxtiny
hardcorenas: hardcorenas_a
hgnet: hgnetv2_b0 hgnet_tiny
hiera: hiera_tiny_224
hieradet_sam2: sam2_hiera_tiny
inception_next: inception_next_atto
inception_v4: inception_v4
inception_resnet_v2: inception_resnet_v2
mambaout: mambaout_femto
mvitv2: mvitv2_tiny
nextvit: nextvit_small
repghost: repghostnet_050
repvit: repvit_m0_9
rdnet: rdnet_tiny
sequencer: sequencer2d_s
shvit: shvit_s1
starnet: starnet_s050
swiftformer: swiftformer_xs
tiny_vit: tiny_vit_5m_224
vision_transformer_hybrid: vit_tiny_r_s16_p8_224
vision_transformer_relpos: vit_relpos_small_patch16_224 vit_srelpos_small_patch16_224
vision_transformer_sam: samvit_base_patch16_224
vitamin: vitamin_small_224
davit: davit_tiny
cspnext: cspnext_tiny
cpubone: cpubone_nano
csatv2: csatv2
iformer: iformer_t
lcnetv2: lcnetv2_small
lowformer: lowformer_b0
naflexvit: naflexvit_base_patch16_gap
qwen3_vit: qwen3_vit_88m
nasnet: nasnetalarge
pnasnet: pnasnet5large
"""

_SIZES = (96, 112, 128, 160)  # of the picture; the first that the model takes, else its own


def names() -> list[tuple[str, str]]:
    """Family and name of every model."""
    return table(FAMILIES)


def build(name: str) -> tuple[Any, Any]:
    """The model of that name with random weights, and two small pictures."""
    from compat.stubs import load_torchvision

    load_torchvision()
    import timm
    import torch

    config = timm.get_pretrained_cfg(name)
    channels, own, _ = config.input_size
    for size in (*(size for size in _SIZES if size < own), own):
        options = {"img_size": size} if config.fixed_input_size and size != own else {}
        with contextlib.suppress(Exception):  # too small, or no multiple of what its windows need
            torch.manual_seed(0)
            model = timm.create_model(name, pretrained=False, **options).eval()
            inputs = torch.randn(2, channels, size, size)
            with torch.no_grad():
                model(inputs)
            return model, inputs
    return timm.create_model(name, pretrained=False).eval(), torch.randn(2, channels, own, own)
