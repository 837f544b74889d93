"""The values of preprocessing options that recipes share. The command line reads them, so torch is not imported."""

from typing import Literal

Fit = Literal["pad", "crop", "stretch"]
Interpolation = Literal["bilinear", "bicubic"]
