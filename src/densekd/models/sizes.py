"""Image sizes a network accepts, and class maps of images of any size."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from densekd.errors import ModelError
from densekd.taps import main_output


def input_multiple(network: nn.Module) -> int:
    """The number that image height and width must be multiples of: 1 where any size will do or nothing is known.

    Networks of segmentation-models-pytorch state it (the stride of their encoder) and refuse other sizes.
    """
    needed = getattr(network, "requires_divisible_input_shape", False)
    stride = getattr(getattr(network, "encoder", None), "output_stride", 1)
    return int(stride) if needed and isinstance(stride, int) else 1


def fitting_size(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The smallest (height, width) that holds `size` and whose sides are multiples of `multiple`."""
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def output_at_any_size(network: nn.Module, images: Tensor) -> Tensor:
    """The main output for images of any size: evaluation, prediction and the teacher's exam all see this one.

    Where the network needs sides of a multiple (`input_multiple`), the images are padded on the right and below with
    zeros, the mean colour of normalised images, and the class map is cropped back to the part over the images. A map of
    another size than the padded images is brought to it bilinearly (`align_corners=False`, float32) before that. Images
    that fit, and networks of which no multiple is known, go through untouched.

    Args:
        images: `(N, C, H, W)`, normalised.

    Returns:
        `(N, K, H, W)` where the images were padded, else the network's main output as it is.

    Raises:
        ModelError: the network gives another number of maps than it was given images.
    """
    height, width = int(images.shape[-2]), int(images.shape[-1])
    padded = fitting_size((height, width), input_multiple(network))
    if padded == (height, width):
        return _one_each(main_output(network(images)), images)
    output = main_output(network(F.pad(images, (0, padded[1] - width, 0, padded[0] - height))))
    _one_each(output, images)
    if tuple(output.shape[-2:]) != padded:
        output = F.interpolate(output.float(), padded, mode="bilinear", align_corners=False)
    return output[..., :height, :width]


def _one_each(output: Tensor, images: Tensor) -> Tensor:
    if output.shape[:1] != images.shape[:1]:
        raise ModelError(f"the network gives {tuple(output.shape)} for {len(images)} images; expected a map for each")
    return output
