"""Decoders. A new kind is a new module here and its public names below and in `gorl`."""

from ._base import AbstractDecoder as AbstractDecoder, AbstractDecoderConfig as AbstractDecoderConfig
from ._flow import FlowDecoder as FlowDecoder, FlowMatching as FlowMatching
from ._identity import Identity as Identity, IdentityDecoder as IdentityDecoder
