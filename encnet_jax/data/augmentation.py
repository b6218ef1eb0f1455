"""The settings of augmentation, shared by the host's and the device's way to do it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training examples vary (PyTorch-Encoding since v1.0, paper section 4).

    Attributes:
        base_size: The long side is resized to this many pixels times a random scale.
        crop_size: Height and width of the crop; smaller images are padded below and on
            the right, black and ignored.
        scale_range: Least and greatest scale, uniform between.
        flip: Mirror left and right with probability 1/2.
        color_jitter: Brightness, contrast and saturation are multiplied by factors
            uniform in 1 - color_jitter to 1 + color_jitter.
    """

    base_size: int
    crop_size: int
    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    color_jitter: float = 0.0
