"""Short elements in small blocks that share a scale: MX formats and NVFP4."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float8e4m3fn, Num, UInt8

from jaxsim.numerics.scaling import divide, power_below

Element = Literal["e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "int8"]
"""Elements by exponent and mantissa bits; "int8" has none and six binary places."""


class ElementKind(NamedTuple):
    """What an element can be.

    Attributes:
      bits: Its width.
      mantissa: Binary places of its digits.
      least: Exponent of its smallest normal numbers, below which steps stay as they are.
      most: Exponent of its largest.
      largest: Its largest number.
    """

    bits: int
    mantissa: int
    least: int
    most: int
    largest: float


ELEMENTS: dict[str, ElementKind] = {
    "e4m3": ElementKind(8, 3, -6, 8, 448.0),
    "e5m2": ElementKind(8, 2, -14, 15, 57344.0),
    "e3m2": ElementKind(6, 2, -2, 4, 28.0),
    "e2m3": ElementKind(6, 3, 0, 2, 7.5),
    "e2m1": ElementKind(4, 1, 0, 2, 6.0),
    "int8": ElementKind(8, 6, 0, 0, 127 / 64),
}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["steps", "tensor"],
    meta_fields=["element", "rows", "scale"],
)
@dataclass(frozen=True)
class Microscaled:
    """Blocks of short elements with a scale each; made by `mx` and `nvfp4`.

    Attributes:
      element: Kind of the elements.
      rows: Elements of a block, along the products that an output sums.
      scale: "e8m0", a power of two; or "e4m3", a float of eight bits times a scale of the tensor
        in float32.
      steps: Scales that the blocks of weights have, [*stack, K / rows, N], set by
        `js.round_weights`; None for scales from the weights. Traced.
      tensor: Scales of the tensors, [*stack], likewise.
    """

    element: Element
    rows: int
    scale: Literal["e8m0", "e4m3"]
    steps: Float[Array, "..."] | None = None
    tensor: Float[Array, "..."] | None = None

    def __str__(self) -> str:
        given = "" if self.steps is None else ", given"
        return f"{self.element} in blocks of {self.rows}, scales {self.scale}{given}"

    def checked(self, side: Literal["weights", "inputs"]) -> Microscaled:
        """This format, of elements and scales that there are.

        Args:
          side: The operand that it is to store.

        Raises:
          ValueError: Another element, scale or size of a block.
        """
        if self.element not in get_args(Element):
            elements = ", ".join(map(repr, get_args(Element)))
            raise ValueError(f"{side}: element={self.element!r}: must be one of {elements}")
        if (self.rows, self.scale) not in ((32, "e8m0"), (16, "e4m3")):
            raise ValueError(
                f"{side}: rows={self.rows} with scale={self.scale!r}: blocks are of 32 with "
                "'e8m0' (js.mx) or of 16 with 'e4m3' (js.nvfp4)"
            )
        if side == "inputs" and self.steps is not None:
            raise ValueError("inputs: scales are given for weights alone")
        return self

    @property
    def kind(self) -> ElementKind:
        """What its elements can be."""
        return ELEMENTS[self.element]


def mx(element: Element = "e4m3") -> Microscaled:
    """Blocks of 32 elements whose scale is a power of two, for weights and inputs.

    The scale is the power below the largest magnitude of a block, less the exponent of the largest
    element; what is then beyond the largest element is that element. Those of inputs are of each
    block of each vector. Scales below 2^-126 are 2^-126.

    Args:
      element: "e4m3", "e5m2", "e3m2", "e2m3", "e2m1" or "int8".

    Examples:
      >>> import jaxsim as js
      >>> print(js.mx("e2m1"))
      e2m1 in blocks of 32, scales e8m0

    Source: OCP Microscaling Formats (MX) specification 1.0, sections 5 and 6.3.
    """
    return Microscaled(element, 32, "e8m0").checked("weights")


def nvfp4() -> Microscaled:
    """Blocks of 16 floats of four bits, a scale e4m3 each, and one in float32 for the tensor.

    The tensor's scale takes its largest magnitude to 6 · 448; that of inputs is the batch's.

    Examples:
      >>> import jaxsim as js
      >>> print(js.nvfp4())
      e2m1 in blocks of 16, scales e4m3

    Source: NVIDIA, Pretraining Large Language Models with NVFP4, arXiv 2509.25149, section 2.
    """
    return Microscaled("e2m1", 16, "e4m3")


class MicroCodes(NamedTuple):
    """Numbers as elements and scales.

    Attributes:
      elements: Elements, as floats.
      scale: Scale of each block, as floats.
      tensor: Scale of all, float32; None where there is none.
    """

    elements: Float[Array, "..."]
    scale: Float[Array, "..."]
    tensor: Float[Array, ""] | None


def encode_micro(
    form: Microscaled,
    x: Float[Array, "..."],
    axes: tuple[int, ...],
    given: tuple[Array, Array | None] | None = None,
) -> MicroCodes:
    """Rounds numbers to blocks of elements, half to even.

    Args:
      form: The format.
      x: Numbers in float32.
      axes: Axes that the numbers of a block are along.
      given: Scale of each block and of all; None for those of the numbers.
    """
    kind = form.kind
    scale, tensor = micro_scales(form, x, axes) if given is None else given
    step = scale if tensor is None else scale * tensor
    elements = round_element(kind, divide(x, jnp.where(step > 0, step, 1.0)))
    return MicroCodes(jnp.where(step > 0, elements, 0.0), scale, tensor)


def micro_scales(
    form: Microscaled, x: Float[Array, "..."], axes: tuple[int, ...], times: float | Array = 1.0
) -> tuple[Array, Array | None]:
    """Scales of blocks and of all numbers, by the largest of each.

    Args:
      form: The format.
      x: Numbers in float32.
      axes: Axes that the numbers of a block are along.
      times: What scales of blocks are multiplied by before they are rounded.

    Returns:
      The scale of each block, and that of all; None where there is none.
    """
    kind = form.kind
    most = jnp.max(jnp.abs(x), axes, keepdims=True)
    if form.scale == "e8m0":
        least = 2.0 ** (kind.most - 126)
        return jnp.maximum(power_below(most * times), least) * 2.0**-kind.most, None
    scales = ELEMENTS["e4m3"]
    tensor = jnp.max(most) / (kind.largest * scales.largest)
    tensor = jnp.where(tensor > 0, tensor, 1.0)
    return round_element(scales, divide(divide(most, kind.largest), tensor) * times), tensor


def element_levels(kind: ElementKind) -> Float[np.ndarray, " n"]:
    """All numbers that an element can be, rising.

    Args:
      kind: Kind of the elements.
    """
    binades = 2.0 ** np.arange(kind.least, kind.most + 1)[:, None]
    digits = 1 + np.arange(2**kind.mantissa) * 2.0**-kind.mantissa
    small = np.arange(2**kind.mantissa) * 2.0 ** (kind.least - kind.mantissa)
    sizes = np.concatenate([small, (binades * digits).ravel()])
    sizes = np.unique(sizes[sizes <= kind.largest])
    return np.unique(np.concatenate([-sizes, sizes])).astype(np.float32)


def decode_micro(held: MicroCodes) -> Float[Array, "..."]:
    """The numbers that elements and scales stand for.

    Args:
      held: Elements and scales.
    """
    step = held.scale if held.tensor is None else held.scale * held.tensor
    return held.elements * step


def round_element(kind: ElementKind, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The nearest element to each number, the even one of two; the largest beyond it.

    Args:
      kind: Kind of the elements.
      x: Numbers in float32.
    """
    held = jnp.clip(x, -kind.largest, kind.largest)
    power = jnp.clip(power_below(held), 2.0**kind.least, 2.0**kind.most)
    step = power * 2.0**-kind.mantissa
    return jnp.clip(jnp.round(held / step) * step, -kind.largest, kind.largest)


def stored_elements(form: Microscaled, elements: Float[Array, "..."]) -> Num[Array, "..."]:
    """Elements as they are stored, those of four bits not packed yet.

    Args:
      form: Their format.
      elements: Elements, as floats.
    """
    match form.element:
        case "e2m1":
            return to_four_bits(elements)
        case "int8":
            return (64 * elements).astype(jnp.int8)
        case "e5m2":
            return elements.astype(jnp.float8_e5m2)
        case _:  # e4m3 has the floats of six bits among its own
            return elements.astype(jnp.float8_e4m3fn)


def to_elements(form: Microscaled, stored: Num[Array, "..."]) -> Float[Array, "..."]:
    """Elements as floats, from `stored_elements`.

    Args:
      form: Their format.
      stored: Elements as they are stored.
    """
    match form.element:
        case "e2m1":
            return from_four_bits(stored)
        case "int8":
            return stored.astype(jnp.float32) / 64
        case _:
            return stored.astype(jnp.float32)


def to_four_bits(x: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """Codes of e2m1 elements: a sign, two bits of exponent and one of mantissa.

    Args:
      x: Elements.
    """
    size = jnp.abs(x)
    code = jnp.where(size <= 2, 2 * size, jnp.where(size < 4, 5, jnp.where(size < 6, 6, 7)))
    return code.astype(jnp.uint8) | jnp.where(x < 0, jnp.uint8(8), jnp.uint8(0))


def from_four_bits(code: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """Elements of e2m1 by their codes.

    Args:
      code: Codes, 0 to 15.
    """
    bits = code.astype(jnp.int32)
    size = bits & 7
    # The bits of a float32 with another bias, but for zero and a half.
    held = lax.bitcast_convert_type((size << 22) + (126 << 23), jnp.float32)
    held = jnp.where(size < 2, 0.5 * size.astype(jnp.float32), held)
    signed = lax.bitcast_convert_type(held, jnp.int32) | ((bits & 8) << 28)
    return lax.bitcast_convert_type(signed, jnp.float32)


def exponents(scale: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """Powers of two as a byte each, e8m0.

    Args:
      scale: Powers of two, normal float32.
    """
    return (lax.bitcast_convert_type(scale, jnp.int32) >> 23).astype(jnp.uint8)


def powers(byte: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """Powers of two of bytes in e8m0.

    Args:
      byte: Bytes from `exponents`.
    """
    return lax.bitcast_convert_type(byte.astype(jnp.int32) << 23, jnp.float32)


def from_e4m3(scale: Float8e4m3fn[Array, "..."]) -> Float[Array, "..."]:
    """Scales that are floats of eight bits, as float32.

    The cast is the same, and slower on a CPU, where it is made again for each element of a block.

    Args:
      scale: Numbers of at least 0, or NaN.
    """
    bits = lax.bitcast_convert_type(scale, jnp.uint8).astype(jnp.int32)
    held = lax.bitcast_convert_type((bits << 20) + (120 << 23), jnp.float32)
    held = jnp.where(bits < 127, held, jnp.nan)
    return jnp.where(bits < 8, bits.astype(jnp.float32) * 2.0**-9, held)
