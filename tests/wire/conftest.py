"""The codecs of both wires, one a module."""

import pytest
from kits.codec_kit import TASKS

from fluidfast.wire._codec import Codec


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(dict(TASKS))


@pytest.fixture(scope="module")
def packer() -> Codec:
    return Codec(dict(TASKS), msgpack=True)
