"""The distiller with networks of the libraries it is made for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densekd.distiller import Distiller, Term
from densekd.errors import TapError
from densekd.losses import ChannelWise
from densekd.taps import main_output
from densekd.teacher import Batch

SMP = "segmentation-models-pytorch form"


def smp(name: str, encoder: str = "resnet18", **options: Any) -> nn.Module:
    import segmentation_models_pytorch

    torch.manual_seed(0)
    return getattr(segmentation_models_pytorch, name)(encoder, encoder_weights=None, classes=5, **options)


def pspnet8(encoder: str = "resnet18") -> nn.Module:
    """PSPNet as in the paper: the whole encoder, dilated to stride 8."""
    network = smp("PSPNet", encoder, encoder_depth=5, upsampling=8)
    network.encoder.make_dilated(8)
    return network


def term(**taps: str) -> Term:
    return Term(ChannelWise(), **taps)


def step(distiller: Distiller, **inputs: Tensor) -> None:
    """One backward pass: a positive loss, and a gradient at every trainable parameter that the loss can reach."""
    out = distiller(**inputs)
    assert out.loss.isfinite()
    assert out.loss.item() > 0
    (out.loss + 0 * main_output(out.student).float().sum()).backward()
    without = [name for name, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad is None for p in distiller.teacher.parameters())


class TestSegmentationModelsPytorch:
    @pytest.mark.slow
    def test_the_paper_s_networks(self) -> None:
        images = torch.rand(1, 3, 64, 64)
        teacher = smp("DeepLabV3", encoder_output_stride=8)
        terms = [term(), term(student="encoder.layer4", teacher="encoder.layer4")]
        distiller = Distiller(pspnet8(), teacher, terms, images)
        for who in ("student", "teacher"):
            assert f"{who}: logits is the output of 'segmentation_head.0' ({SMP})" in distiller.notices
        logits, features = distiller.plans
        assert logits.student.shape == logits.teacher.shape == (1, 5, 8, 8)
        assert features.student.shape == features.teacher.shape == (1, 512, 8, 8)
        assert len(list(distiller.adapters.parameters())) == 0
        distiller.eval()
        out = distiller(images)
        out.loss.backward()
        assert out.student.shape == (1, 5, 64, 64)

    def test_dead_stages_of_a_shallow_encoder_are_frozen(self) -> None:
        student = smp("PSPNet", encoder_depth=3)
        distiller = Distiller(student, pspnet8(), [term()], torch.rand(1, 3, 64, 64))
        (notice,) = [line for line in distiller.notices if "take no part" in line]
        assert "encoder.layer3 (2,099,712), encoder.layer4 (8,393,728)" in notice
        assert not any(p.requires_grad for p in student.encoder.layer4.parameters())
        assert all(p.requires_grad for p in student.encoder.layer2.parameters())

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["FPN", "UPerNet", "Segformer", "DeepLabV3Plus", "Unet", "Linknet"])
    def test_students(self, name: str) -> None:
        student, images = smp(name), torch.rand(2, 3, 64, 64)
        distiller = Distiller(student, pspnet8(), [term()], images)
        assert f"student: logits is the output of 'segmentation_head.0' ({SMP})" in distiller.notices
        distiller(images).loss.backward()
        assert all(p.grad is not None for p in student.parameters() if p.requires_grad)

    @pytest.mark.slow
    def test_head_that_is_no_sequence(self) -> None:
        student = smp("DPT", "tu-vit_tiny_patch16_224", encoder_depth=4, dynamic_img_size=True)
        distiller = Distiller(student, pspnet8(), [term()], torch.rand(1, 3, 64, 64))
        assert f"student: logits is the output of 'segmentation_head.head' ({SMP})" in distiller.notices

    def test_classification_beside_the_mask(self) -> None:
        student = smp("FPN", "tu-test_resnet", aux_params={"classes": 3})
        images, taps = torch.rand(2, 3, 64, 64), {"student": "output", "teacher": "output"}
        distiller = Distiller(student, smp("PSPNet", "mobilenet_v2"), [term(), term(**taps)], images)
        mask, label = distiller(images).student
        assert (mask.shape, label.shape) == ((2, 5, 64, 64), (2, 3))


class TestTorchvision:
    @pytest.mark.slow
    def test_lraspp_from_deeplab(self) -> None:
        from torchvision.models import segmentation

        bare = {"weights": None, "weights_backbone": None, "num_classes": 5}
        student = segmentation.lraspp_mobilenet_v3_large(**bare)
        teacher = segmentation.deeplabv3_resnet50(**bare, aux_loss=True)
        images = torch.rand(1, 3, 64, 64)
        terms = [
            term(),
            term(student="output", teacher="output"),
            term(student="backbone[high]", teacher="backbone[out]"),
        ]
        distiller = Distiller(student, teacher, terms, images)
        for who in ("student", "teacher"):
            assert f"{who}: logits is the output of 'classifier' (torchvision form)" in distiller.notices
        assert [tuple(plan.teacher.shape[1:]) for plan in distiller.plans] == [(5, 8, 8), (5, 64, 64), (2048, 8, 8)]
        assert any("1x1 convolution 960 -> 2048" in line and "4x4" in line for line in distiller.notices)
        out = distiller(torch.rand(2, 3, 64, 64))
        assert set(out.student) == {"out"}
        out.loss.backward()
        with pytest.raises(TapError, match="'backbone': expected the module to return one tensor, got OrderedDict"):
            Distiller(student, teacher, [term(student="backbone", teacher="backbone[out]")], images)


class TestTransformers:
    def segformer(self, width: int) -> nn.Module:
        transformers = pytest.importorskip("transformers")
        sizes = [width, width * 2, width * 3, width * 4]
        config = transformers.SegformerConfig(
            num_labels=5, depths=[1] * 4, hidden_sizes=sizes, decoder_hidden_size=16, num_attention_heads=[1, 1, 2, 2]
        )
        torch.manual_seed(0)
        return transformers.SegformerForSemanticSegmentation(config)

    @pytest.mark.slow
    def test_segformer_pair(self) -> None:
        student, teacher = self.segformer(8), self.segformer(16)
        images = torch.rand(2, 3, 60, 80)
        # a stage's last normalisation gives tokens; its name depends on the version of the library
        stage = next(
            name
            for name, module in student.named_modules()
            if isinstance(module, nn.LayerNorm) and module.normalized_shape == (16,) and name.endswith("layer_norm")
        )
        distiller = Distiller(student, teacher, [term(), term(student=stage, teacher=stage)], {"pixel_values": images})
        for who in ("student", "teacher"):
            assert f"{who}: logits is the output of 'decode_head.classifier' (transformers form)" in distiller.notices
        assert distiller.plans[0].student.shape == (2, 5, 15, 20)
        step(distiller, pixel_values=images)
        assert type(distiller(images).student).__name__ == "SemanticSegmenterOutput"


class TestTimm:
    def make(self, name: str, **options: Any) -> nn.Module:
        import timm

        torch.manual_seed(0)
        return timm.create_model(name, pretrained=False, **options)

    def test_feature_lists(self) -> None:
        student, teacher = self.make("test_resnet", features_only=True), self.make("resnet10t", features_only=True)
        images = torch.rand(1, 3, 64, 64)
        terms = [term(student="output[-1]", teacher="output[3]"), term(student="layer2", teacher="layer2")]
        distiller = Distiller(student, teacher, terms, images)
        assert [tuple(plan.student.shape[1:]) for plan in distiller.plans] == [(96, 2, 2), (48, 8, 8)]
        assert [tuple(plan.teacher.shape[1:]) for plan in distiller.plans] == [(256, 4, 4), (128, 8, 8)]
        distiller.eval()
        out = distiller(images)
        out.loss.backward()
        assert len(out.student) == 5
        # the first of a list of features is no class map: different channels get an adapter
        Distiller(student, teacher, [term(student="output[0]", teacher="output[1]")], images)

    def test_stage_of_a_classifier(self) -> None:
        student, teacher = self.make("test_resnet"), self.make("resnet10t")
        images = torch.rand(2, 3, 64, 64)
        Distiller(student, teacher, [term(student="layer3", teacher="layer3")], images)(images).loss.backward()
        with pytest.raises(TapError, match=r"expected a spatial map.*\(2, 1000\).*before the pooling"):
            Distiller(student, teacher, [term()], images)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "tap", "words"),
        [
            ("vit_tiny_patch16_224", "blocks.3", "one per 16 pixels behind 1 leading token"),
            ("deit_tiny_distilled_patch16_224", "blocks", "one per 16 pixels behind 2 leading tokens"),
            ("vit_small_patch14_reg4_dinov2", "norm", "one per 14 pixels behind 5 leading tokens"),
        ],
    )
    def test_tokens_to_a_convolution_map(self, name: str, tap: str, words: str) -> None:
        size = (56, 84) if "14" in name.split("patch")[1][:2] else (64, 96)
        vit = self.make(name, img_size=size, **({"num_classes": 0} if "reg4" in name else {}))
        images = torch.rand(1, 3, *size)
        for turned in (False, True):
            conv = self.make("resnet18")
            student, teacher = (vit, conv) if turned else (conv, copy.deepcopy(vit))
            taps = {"student": tap, "teacher": "layer3"} if turned else {"student": "layer3", "teacher": tap}
            distiller = Distiller(student, teacher, [term(**taps)], images).eval()
            assert any(words in line for line in distiller.notices)
            distiller(images).loss.backward()

    def test_tokens_stand_where_the_pixels_were(self) -> None:
        """The map of a ViT's patch embedding equals the convolution's own."""
        vit = self.make("test_vit", img_size=(64, 96)).eval()
        images = torch.rand(2, 3, 64, 96)
        distiller = Distiller(self.make("test_resnet"), vit, [term(student="layer3", teacher="pos_drop")], images)
        maps = distiller.source.maps(Batch((images,), {}))
        found = distiller.plans[0].teacher.layout.to_nchw(maps["pos_drop"], (64, 96))
        expected = vit.patch_embed.proj(images) + vit.pos_embed[:, 1:].transpose(1, 2).reshape(1, -1, 4, 6)
        torch.testing.assert_close(found, expected)

    @pytest.mark.slow
    def test_channels_last_maps(self) -> None:
        swin = self.make("swin_tiny_patch4_window7_224", img_size=(64, 96), window_size=2)
        images = torch.rand(1, 3, 64, 96)
        distiller = Distiller(swin, self.make("resnet18"), [term(student="layers.1", teacher="layer3")], images)
        assert any("student map read as (N, H, W, C)" in line for line in distiller.notices)
        assert distiller.plans[0].student.shape == (1, 192, 8, 12)
        distiller(images).loss.backward()
