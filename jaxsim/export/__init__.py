"""Networks out of the house: StableHLO programs, ONNX graphs and GGUF files."""

from jaxsim.export.gguf_file import gguf
from jaxsim.export.onnx_file import onnx
from jaxsim.export.program import stablehlo

__all__ = ["gguf", "onnx", "stablehlo"]
