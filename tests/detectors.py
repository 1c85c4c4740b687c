"""Small detection networks of every kind that torchvision has, on the levels of a small pyramid.

With random weights no box scores high, most leave the picture, and how many are left depends on rounding. So here every
score counts, no box is suppressed, and each stays near its anchor: the number of boxes is the same whatever is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.ops import MultiScaleRoIAlign

from hfp.model.inputs import Arguments

WIDTH, CLASSES, KEYPOINTS, SIZE, FOUND = 16, 5, 3, 64, 8
NEAR = (1000.0, 1000.0, 1000.0, 1000.0)
"""Weights of a box coder that move boxes a thousandth as far."""


def body() -> nn.Sequential:
    widths = (3, 8, 12, 20)
    blocks = [
        (nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        for i, o in zip(widths, widths[1:], strict=False)
    ]
    return nn.Sequential(*(layer for block in blocks for layer in block))


def pyramid(width: int = WIDTH) -> nn.Module:
    """Maps of a quarter, an eighth and a sixteenth of the size."""
    return BackboneWithFPN(body(), {"5": "0", "8": "1"}, [12, 20], width)


def anchors(shapes: int = 3) -> AnchorGenerator:
    return AnchorGenerator(((8,), (16,), (32,)), ((0.5, 1.0, 2.0)[:shapes],) * 3)


def pooled(size: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(["0", "1"], size, 2)


def of_two_stages(kind: Callable[..., nn.Module], **parts: Any) -> nn.Module:
    model: Any = kind(
        pyramid(),
        min_size=SIZE,
        max_size=SIZE + 32,
        rpn_anchor_generator=anchors(),
        rpn_pre_nms_top_n_train=20,
        rpn_pre_nms_top_n_test=20,
        rpn_post_nms_top_n_train=FOUND,
        rpn_post_nms_top_n_test=FOUND,
        rpn_nms_thresh=1.0,
        rpn_batch_size_per_image=16,
        box_roi_pool=pooled(5),
        box_head=TwoMLPHead(WIDTH * 25, 24),
        box_predictor=FastRCNNPredictor(24, CLASSES),
        box_score_thresh=-1.0,
        box_nms_thresh=1.0,
        box_detections_per_img=FOUND,
        box_batch_size_per_image=8,
        bbox_reg_weights=NEAR,
        **parts,
    )
    model.rpn.box_coder.weights = NEAR
    return model  # type: ignore[no-any-return]


def faster_rcnn() -> nn.Module:
    return of_two_stages(FasterRCNN)


def mask_rcnn() -> nn.Module:
    return of_two_stages(
        MaskRCNN,
        mask_roi_pool=pooled(6),
        mask_head=MaskRCNNHeads(WIDTH, (12, 14), 1),
        mask_predictor=MaskRCNNPredictor(14, 10, CLASSES),
    )


def keypoint_rcnn() -> nn.Module:
    return of_two_stages(
        KeypointRCNN,
        keypoint_roi_pool=pooled(6),
        keypoint_head=KeypointRCNNHeads(WIDTH, (12, 14)),
        keypoint_predictor=KeypointRCNNPredictor(14, KEYPOINTS),
    )


ALL = {"score_thresh": -1.0, "nms_thresh": 1.0, "detections_per_img": FOUND, "topk_candidates": 20}


def retinanet() -> nn.Module:
    return RetinaNet(pyramid(), CLASSES, min_size=SIZE, max_size=SIZE + 32, anchor_generator=anchors(), **ALL)


def fcos() -> nn.Module:
    """Its heads have group norms of 32 groups."""
    return FCOS(pyramid(64), CLASSES, min_size=SIZE, max_size=SIZE + 32, anchor_generator=anchors(1), **ALL)


def ssd() -> nn.Module:
    boxes = DefaultBoxGenerator([[2], [2, 3], [2]])
    head = SSDHead([WIDTH] * 3, boxes.num_anchors_per_location(), CLASSES)
    return SSD(pyramid(), boxes, (SIZE, SIZE), CLASSES, head=head, **ALL)


DETECTORS = (faster_rcnn, mask_rcnn, keypoint_rcnn, retinanet, fcos, ssd)


def pictures(model: nn.Module, dtype: torch.dtype = torch.float32, seed: int = 0) -> Arguments:
    """Two pictures, and what is to be found on them."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, SIZE, width, generator=generator, dtype=dtype) for width in (SIZE + 8, SIZE)]
    targets = []
    for image in images:
        corner = torch.rand(3, 2, generator=generator, dtype=dtype) * SIZE / 2
        boxes = torch.cat([corner, corner + SIZE / 3], dim=1)
        target = {"boxes": boxes, "labels": torch.randint(1, CLASSES, (3,), generator=generator)}
        if isinstance(model, MaskRCNN):
            target["masks"] = (torch.rand(3, *image.shape[1:], generator=generator) > 0.5).to(torch.uint8)
        if isinstance(model, KeypointRCNN):
            middle = ((boxes[:, None, :2] + boxes[:, None, 2:]) / 2).float()
            target["labels"] = torch.ones(3, dtype=torch.long)
            target["keypoints"] = torch.cat([middle, torch.ones_like(middle[..., :1])], dim=2).repeat(1, KEYPOINTS, 1)
        targets.append(target)
    return (images, targets), {}
