"""Networks out of the house: StableHLO programs, ONNX graphs and GGUF files."""

from jaxsim.export.program import stablehlo

__all__ = ["stablehlo"]
