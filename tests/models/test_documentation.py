"""Every constructor argument of a model is documented: the help texts of training settings are read from there."""

import inspect
import re

import pytest

from cardiodit import (
    DiT3DTransformerModel,
    DiT4DTransformerModel,
    NoiseAndImageScheduler,
    PRDiTTransformerModel,
    TGCAAdapterModel,
    VQModel3D,
    VQModel4D,
)
from cardiodit.models.discriminator import PatchDiscriminator
from cardiodit.models.segmenter import HeartSegmenter

CLASSES = [
    DiT3DTransformerModel,
    DiT4DTransformerModel,
    HeartSegmenter,
    NoiseAndImageScheduler,
    PatchDiscriminator,
    PRDiTTransformerModel,
    TGCAAdapterModel,
    VQModel3D,
    VQModel4D,
]


def documented(kind: type) -> list[str]:
    """Arguments in the `Args:` section of the class or of the nearest base class that has one."""
    texts = (inspect.cleandoc(base.__doc__ or "") for base in kind.__mro__)
    section = next(text.split("Args:\n", 1)[1].split("\n\n")[0] for text in texts if "Args:\n" in text)
    return re.findall(r"^    (\w+): \S", section, re.MULTILINE)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_argument_is_documented_and_annotated(kind: type) -> None:
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    assert documented(kind) == [parameter.name for parameter in parameters]
    assert all(parameter.annotation is not parameter.empty for parameter in parameters)
