"""CTR models over dense columns and embedded features: ``build(name, dense_width=..., widths=...)``.

>>> import torch
>>> model = build("dcn", dense_width=2, widths=[8, 16], hidden=(32,))
>>> model(torch.zeros(5, 2), torch.zeros(5, 24)).shape
torch.Size([5])
"""

from .dcn import Dcn, DcnSettings
from .deepfm import DeepFm, DeepFmSettings
from .dlrm import Dlrm, DlrmSettings
from .dnn import Dnn, DnnSettings
from .layers import MlpSettings, parameter_count
from .registry import build, names, register

__all__ = [
    "Dcn",
    "DcnSettings",
    "DeepFm",
    "DeepFmSettings",
    "Dlrm",
    "DlrmSettings",
    "Dnn",
    "DnnSettings",
    "MlpSettings",
    "build",
    "names",
    "parameter_count",
    "register",
]
