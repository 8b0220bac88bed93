"""An ONNX graph while it is written: nodes, constants, and sizes that are free."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxsim.internals import evaluate_size, symbols_of

if TYPE_CHECKING:
    import onnx

OPSET = 21
"""Version of the operators: the first that has all of these for int8, scales by axis, and bool."""

IR_VERSION = 10
"""Version of the file format that this one came with."""


class Tensor(NamedTuple):
    """A value of the graph.

    Attributes:
      name: Its name.
      shape: Its sizes, each an int or a symbol of `jax.export`; 1 where the value is the same
        along an axis and no operator has asked for all of it.
    """

    name: str
    shape: tuple[Any, ...]


def require_onnx() -> Any:
    """The package `onnx`.

    Raises:
      ModuleNotFoundError: It is not installed; the message names the extra that brings it.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'ONNX files need the package onnx: pip install "jaxsim[export]"', name=error.name
        ) from error
    return onnx


def is_fixed(size: Any) -> bool:
    """Whether a size is a number."""
    return isinstance(size, int | np.integer)


class Graph:
    """Nodes and constants of a graph; a node that is there already is not written again."""

    def __init__(self):
        """Begins without nodes."""
        self.onnx = require_onnx()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._known: dict[Any, str] = {}
        self._made: dict[Any, tuple[str, ...]] = {}
        self._names: set[str] = set()
        self._sizes: dict[str, tuple[str, int]] = {}

    def name(self, wanted: str) -> str:
        """A name that nothing has yet.

        Args:
          wanted: What it begins with.
        """
        found, i = wanted, 1
        while found in self._names:
            found, i = f"{wanted}.{i}", i + 1
        self._names.add(found)
        return found

    def dtype(self, dtype: Any) -> int:
        """ONNX's number of a type of numbers.

        Raises:
          ValueError: ONNX has none.
        """
        try:
            return self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        except (KeyError, ValueError, TypeError):
            raise ValueError(f"export.onnx: numbers of {dtype} have no type in ONNX") from None

    def met(self, value: Tensor) -> Tensor:
        """Notes where sizes that are free can be read."""
        for axis, size in enumerate(value.shape):
            if not is_fixed(size):
                self._sizes.setdefault(str(size), (value.name, axis))
        return value

    def constant(self, array: Any, name: str = "constant") -> Tensor:
        """A value that is known, once where it is the same along an axis.

        Args:
          array: The value.
          name: What its name begins with.
        """
        array = np.asarray(array)
        if array.size:
            once = tuple(slice(0, 1) if s == 0 else slice(None) for s in array.strides)
            array = array[once]
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = (str(array.dtype), array.shape, hashlib.blake2b(array.tobytes()).digest())
        if key not in self._known:
            self._known[key] = self.name(name)
            self.constants.append(
                self.onnx.helper.make_tensor(
                    self._known[key],
                    self.dtype(array.dtype),
                    array.shape,
                    array.tobytes(),
                    raw=True,
                )
            )
        return Tensor(self._known[key], array.shape)

    def tensor(self, value: Any) -> Tensor:
        """A value as one of the graph.

        Args:
          value: A `Tensor`, or an array.
        """
        return value if isinstance(value, Tensor) else self.constant(value)

    def add(
        self,
        operator: str,
        operands: Sequence[Any],
        shape: Sequence[Any],
        *,
        name: str = "",
        **attributes: Any,
    ) -> Tensor:
        """Adds a node of one result.

        Args:
          operator: Name of the operator.
          operands: What it reads: `Tensor`s or arrays; None for one that is left out.
          shape: Sizes of its result.
          name: What the name of its result begins with.
          **attributes: Attributes of the operator.
        """
        return self.add_several(operator, operands, [shape], name=name, **attributes)[0]

    def add_several(
        self,
        operator: str,
        operands: Sequence[Any],
        shapes: Sequence[Sequence[Any]],
        *,
        name: str = "",
        **attributes: Any,
    ) -> list[Tensor]:
        """Adds a node; see `add`.

        Args:
          operator: Name of the operator.
          operands: What it reads.
          shapes: Sizes of each of its results.
          name: What names of its results begin with.
          **attributes: Attributes of the operator.
        """
        names = ["" if a is None else self.tensor(a).name for a in operands]
        key = (operator, *names, repr(sorted(attributes.items())), len(shapes))
        if key not in self._made:
            made = tuple(self.name(name or operator.lower()) for _ in shapes)
            node = self.onnx.helper.make_node(operator, names, made, made[0], **attributes)
            self.nodes.append(node)
            self._made[key] = made
        return [
            self.met(Tensor(found, tuple(shape)))
            for found, shape in zip(self._made[key], shapes, strict=True)
        ]

    def output(self, value: Tensor, name: str) -> Tensor:
        """A value by a name that nothing else has.

        Args:
          value: The value.
          name: What its name begins with.
        """
        found = Tensor(self.name(name), value.shape)
        node = self.onnx.helper.make_node("Identity", [value.name], [found.name], found.name)
        self.nodes.append(node)
        return found

    def cast(self, value: Any, dtype: Any) -> Tensor:
        """A value in another type of numbers."""
        value = self.tensor(value)
        return self.add("Cast", [value], value.shape, to=self.dtype(dtype))

    def sizes(self, shape: Sequence[Any]) -> Any:
        """Sizes as a vector of whole numbers, those that are free read from a value that has them.

        Args:
          shape: The sizes.

        Raises:
          ValueError: No value has one of them.
        """
        if all(map(is_fixed, shape)):
            return np.asarray(shape, np.int64)
        parts = [
            np.asarray([size], np.int64) if is_fixed(size) else self._size(size) for size in shape
        ]
        return self.add("Concat", parts, (len(parts),), axis=0)

    def _size(self, size: Any) -> Tensor:
        """A size that is free, as a vector of one number."""
        if str(size) in self._sizes:
            name, axis = self._sizes[str(size)]
            return self.add("Shape", [Tensor(name, ())], (1,), start=axis, end=axis + 1)
        symbols = symbols_of(size)
        if missing := sorted(s for s in symbols if s not in self._sizes):
            raise ValueError(f"export.onnx: no input has the size {missing[0]} that {size} is of")
        found = {name: _Size(self, self._size(name)) for name in symbols}
        try:
            return evaluate_size(size, found).value
        except TypeError:
            raise ValueError(
                f"export.onnx: the size {size} is reckoned as no graph can; give sizes of the call"
            ) from None

    def reshape(self, value: Any, shape: Sequence[Any]) -> Tensor:
        """A value with other sizes; it holds as many numbers as before.

        Args:
          value: The value.
          shape: Its new sizes.
        """
        value, shape = self.tensor(value), tuple(shape)
        if list(map(str, value.shape)) == list(map(str, shape)):
            return value
        free = [i for i, size in enumerate(shape) if not is_fixed(size)]
        if len(free) == 1:
            sizes: Any = np.asarray([-1 if i in free else n for i, n in enumerate(shape)], np.int64)
        else:
            sizes = self.sizes(shape)
        return self.add("Reshape", [value, sizes], shape)

    def transpose(self, value: Any, order: Sequence[int]) -> Tensor:
        """A value with its axes in another order."""
        value, order = self.tensor(value), [int(a) for a in order]
        if order == sorted(order):
            return value
        return self.add("Transpose", [value], [value.shape[a] for a in order], perm=order)

    def full(self, value: Any, shape: Sequence[Any]) -> Tensor:
        """All of a value, where it may be the same along axes.

        Args:
          value: The value, of the rank of `shape`, or a single number.
          shape: Its sizes.
        """
        value, shape = self.tensor(value), tuple(shape)
        if list(map(str, value.shape)) == list(map(str, shape)):
            return value
        return self.add("Expand", [value, self.sizes(shape)], shape)

    def model(
        self,
        inputs: Sequence[tuple[Tensor, Any]],
        outputs: Sequence[tuple[Tensor, Any]],
        producer: str,
    ) -> onnx.ModelProto:
        """The graph as a model that was checked.

        Args:
          inputs: Values that a call gives, with their types.
          outputs: Values that it returns, with their types.
          producer: Name of what wrote it.
        """
        helper = self.onnx.helper

        def described(value: Tensor, dtype: Any) -> Any:
            sizes = [n if is_fixed(n) else str(n) for n in value.shape]
            return helper.make_tensor_value_info(value.name, self.dtype(dtype), sizes)

        graph = helper.make_graph(
            self.nodes,
            "network",
            [described(*one) for one in inputs],
            [described(*one) for one in outputs],
            self.constants,
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, producer_name=producer)
        model.ir_version = IR_VERSION
        return model


class _Size:
    """A size that is known when the graph runs, to be reckoned with."""

    def __init__(self, graph: Graph, value: Tensor):
        self.graph, self.value = graph, value

    def _with(self, operator: str, other: Any) -> _Size:
        value = other.value if isinstance(other, _Size) else np.asarray([other], np.int64)
        return _Size(self.graph, self.graph.add(operator, [self.value, value], (1,)))

    def __add__(self, other: Any) -> _Size:
        return self._with("Add", other)

    def __mul__(self, other: Any) -> _Size:
        return self._with("Mul", other)

    __radd__, __rmul__ = __add__, __mul__

    def __divmod__(self, other: Any) -> tuple[_Size, _Size]:
        rest = self._with("Mod", other)
        return self._with("Sub", rest)._with("Div", other), rest
