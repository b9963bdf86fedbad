"""How each published architecture is built, without weights: the library's own name for it, and its input size.

The names are those of the published phone rows (qualcomm/ai-hub-models, folders of qai_hub_models/models), or would be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Built = tuple[Any, tuple[Any, ...]]
MATERIAL = ("regnet",)  # reads its own random weights while it is built, which `meta` ones do not have


@dataclass(frozen=True)
class Recipe:
    """`library`'s `architecture` at an input of `size`² pixels (or as many tokens)."""

    library: str
    architecture: str
    size: int
    builder: Callable[[Recipe], Built]

    def build(self) -> Built:
        """(module, example inputs), on torch's `meta` device where that can be."""
        return self.builder(self)


def _classifier(recipe: Recipe) -> Built:
    import torch

    place = "cpu" if recipe.architecture.startswith(MATERIAL) else "meta"
    with torch.device(place):
        if recipe.library == "timm":
            import timm

            module = timm.create_model(recipe.architecture, pretrained=False)
        else:
            import torchvision

            plain = {"init_weights": False} if recipe.architecture in ("googlenet", "inception_v3") else {}
            module = torchvision.models.get_model(recipe.architecture, weights=None, **plain)
        return module, (torch.zeros(1, 3, recipe.size, recipe.size),)


def _segmenter(recipe: Recipe) -> Built:
    import torch
    import torchvision

    class Main(torch.nn.Module):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module = module

        def forward(self, image: Any) -> Any:
            return self.module(image)["out"]

    module = torchvision.models.get_model(recipe.architecture, weights=None, weights_backbone=None, num_classes=21)
    return Main(module), (torch.zeros(1, 3, recipe.size, recipe.size),)


def _mobilenet_v1(recipe: Recipe) -> Built:
    """MobileNet v1 (Howard et al., 2017, table 1) over a mel patch, as in the published YAMNet."""
    import torch
    from torch import nn

    widths = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    layers: list[Any] = [nn.Conv2d(1, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    channels = 32
    for width, stride in widths:
        layers += [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels)]
        layers += [nn.ReLU(), nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 521), nn.Sigmoid()]
    return nn.Sequential(*layers), (torch.zeros(1, 1, recipe.size, 64),)


def _transformer(inputs: Callable[[int], dict[str, Any]], **config: Any) -> Callable[[Recipe], Built]:
    """A class of transformers with its published default config, `config` apart."""

    def build(recipe: Recipe) -> Built:
        import torch
        import transformers

        given = inputs(recipe.size)

        class First(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                cls = getattr(transformers, recipe.architecture)
                self.module = cls(cls.config_class(**config))

            def forward(self, *values: Any) -> Any:
                return self.module(**dict(zip(given, values, strict=True)))[0]

        return First(), tuple(given.values())

    return build


def _tokens(length: int) -> dict[str, Any]:
    import torch

    zeros = torch.zeros(1, length, dtype=torch.long)
    return {"input_ids": zeros, "attention_mask": torch.ones_like(zeros)}


def _pixels(*lead: int) -> Callable[[int], dict[str, Any]]:
    def build(size: int) -> dict[str, Any]:
        import torch

        return {"pixel_values": torch.zeros(*lead, size, size)}

    return build


ELECTRA = {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
TORCHVISION = """
alexnet convnext_tiny convnext_small convnext_base convnext_large densenet121 densenet161 densenet169 densenet201
efficientnet_b0 efficientnet_b1:240 efficientnet_b2:288 efficientnet_b3:300 efficientnet_b4:380 efficientnet_v2_s:384
efficientnet_v2_m:480 googlenet inception_v3 mnasnet05=mnasnet0_5 mnasnet10=mnasnet1_0 mobilenet_v2 mobilenet_v3_small
mobilenet_v3_large regnet_y_800mf regnet_y_400mf regnet_x_400mf regnet_x_800mf regnet_y_1_6gf regnet_y_3_2gf
resnet18 resnet34 resnet50 resnet101 resnet152 resnext50=resnext50_32x4d resnext101=resnext101_32x8d
resnext101_64x4d shufflenet_v2=shufflenet_v2_x0_5 shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1 swin_tiny=swin_t
swin_small=swin_s swin_base=swin_b vgg11 vgg16 vgg19 vit=vit_b_16 vit_b_32 vit_l_16 wideresnet50=wide_resnet50_2
wideresnet101=wide_resnet101_2 maxvit=maxvit_t
"""
TIMM = """
beit=beit_base_patch16_224 deit=deit_base_patch16_224 deit_tiny=deit_tiny_patch16_224
deit_small=deit_small_patch16_224 dla34 dla60 dla102 dla102x dla169 efficientformer=efficientformer_l1
efficientformer_l3 efficientvit_b2_cls=efficientvit_b2 efficientvit_b1_cls=efficientvit_b1
efficientvit_b3_cls=efficientvit_b3 efficientvit_l1_cls=efficientvit_l1 efficientvit_l2_cls=efficientvit_l2
ghostnet=ghostnet_100 hardcorenas_a hrnet_w18 hrnet_w32 inception_v4:299 levit=levit_128s levit_256 mixnet_s
mobile_vit=mobilevit_s mobilevit_xs mobilevit_xxs mobilevitv2_100:256 mobilenet_v1=mobilenetv1_100
mobilenet_v3_large_minimalistic=tf_mobilenetv3_large_minimal_100 mobilenet_v4=mobilenetv4_conv_small
mobilenet_v4_medium=mobilenetv4_conv_medium mobileone=mobileone_s0 nasnet=nasnetalarge nfnet=nfnet_f0
fbnetc_100 fastvit=fastvit_t8:256 poolformer=poolformer_s12 pvt_v2=pvt_v2_b0 regnet_z=regnetz_b16
repvgg=repvgg_a0 res2net50=res2net50_26w_4s resnest50=resnest50d rexnet=rexnet_100 sequencer2d=sequencer2d_s
seresnet50 mlp_mixer=mixer_b16_224 xception:299 cspdarknet53:256 cait=cait_xxs24_224 coatnet=coatnet_0_rw_224
edgenext=edgenext_small:256 tinynet_a:192 vit_small=vit_small_patch16_224 xcit=xcit_nano_12_p16_224
"""
PUBLISHED: dict[str, Recipe] = {}


def _list(library: str, names: str) -> None:
    """Words `name`, `name=architecture`, `name:size`."""
    for word in names.split():
        word, _, size = word.partition(":")
        name, _, architecture = word.partition("=")
        PUBLISHED[name] = Recipe(library, architecture or name, int(size or 224), _classifier)


_list("torchvision", TORCHVISION)
_list("timm", TIMM)
PUBLISHED |= {
    "fcn_resnet50": Recipe("torchvision", "fcn_resnet50", 224, _segmenter),
    "yamnet": Recipe("paper", "MobileNet v1 on 96x64", 96, _mobilenet_v1),
    "bert_base_uncased_hf": Recipe("transformers", "BertForMaskedLM", 384, _transformer(_tokens)),
    "distil_bert_base_uncased_hf": Recipe("transformers", "DistilBertForMaskedLM", 384, _transformer(_tokens)),
    "electra_bert_base_discrim_google": Recipe(
        "transformers", "ElectraForPreTraining", 384, _transformer(_tokens, **ELECTRA)
    ),
    "video_mae": Recipe(
        "transformers", "VideoMAEForVideoClassification", 224, _transformer(_pixels(1, 16, 3), num_labels=400)
    ),
    "segformer_base": Recipe(
        "transformers", "SegformerForSemanticSegmentation", 512,
        _transformer(_pixels(1, 3), num_labels=150),
    ),
}  # fmt: skip
