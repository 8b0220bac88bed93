"""Comparison of networks: accuracy, agreement with a reference, and cost, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxsim.console.table import shown_as_table, si
from jaxsim.cores.partition import Partitioned
from jaxsim.inputs.batches import join_batches, row_count, split_labels, take_rows
from jaxsim.inputs.samples import check_batch, check_labels
from jaxsim.network.arguments import call_arguments
from jaxsim.network.network import Network
from jaxsim.numerics.checks import checked_int

Reader = Callable[[Any], Array]
"""A function from what a network returns to its logits, [N, ..., classes]."""


class ComparisonRow(NamedTuple):
    """Accuracy and cost of one network; costs are for one input.

    Attributes:
      name: Name of the network.
      accuracy: Fraction of right answers, in [0, 1].
      error: Standard error of the accuracy, over rows.
      agreement: Fraction of answers equal to the reference's, in [0, 1].
      params: Number of entries of all parameters.
      nonzero: Number of entries that pruning left.
      weight_bits: Number of bits stored at the sites.
      macs: Number of multiply-accumulates in the hardware.
      conversions: Number of ADC conversions.
      transformed: Fraction of the parameters that transforms have reached, in [0, 1]; see
        `Network.coverage`.
    """

    name: str
    accuracy: float
    error: float
    agreement: float
    params: int
    nonzero: int
    weight_bits: float
    macs: float
    conversions: float
    transformed: float


@shown_as_table
class Comparison(NamedTuple):
    """Rows of a comparison, the reference first. Printing shows a table.

    Attributes:
      rows: A row for each network.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.eye(4)
      >>> net = js.trace(lambda params, x: x @ params["w"], {"w": jnp.eye(4)}, x)
      >>> found = js.compare(net, {"four bits": js.quantize(4, 8)(net)}, (x, jnp.arange(4)))
      >>> [(row.name, row.accuracy, row.weight_bits) for row in found.rows]
      [('reference', 1.0, 512), ('four bits', 1.0, 64)]
    """

    rows: tuple[ComparisonRow, ...]

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title="networks, cost per input")
        table.add_column("network", overflow="fold")
        for column in ("right %", "agree %", "changed %", "kept", "KiB", "MACs", "ADC reads"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(
                row.name,
                f"{100 * row.accuracy:.2f}±{100 * row.error:.2f}",
                f"{100 * row.agreement:.2f}",
                f"{100 * row.transformed:.1f}",
                si(row.nonzero),
                f"{row.weight_bits / 8192:,.1f}",
                si(row.macs),
                si(row.conversions) if row.conversions else "–",
            )
        return table


def compare(
    reference: Network,
    networks: Network | Mapping[str, Network],
    data: Any,
    *,
    key: Key[Array, ""] | None = None,
    batch_size: int = 500,
    output: Reader | None = None,
) -> Comparison:
    """Measures networks on the same data: accuracy, agreement and cost.

    Args:
      reference: Network that the others are to agree with, usually the untransformed one.
      networks: One network, or several by name.
      data: Tuple of inputs and labels [N, ...], the inputs a batch of N rows (an array, a tuple of
        positional arguments, or a dict of keyword arguments) or an iterable of batches; or an
        iterable of such pairs. All of it is read into memory.
      key: Random key for cores that draw at every call.
      batch_size: Number of inputs per call, at least 1.
      output: Function from what a network returns to its logits, as of `classify`.

    Returns:
      A row a network. Weight bits count at sites only; a site without a core stores floats. Where
      a row has several labels, the error is that of the mean over rows of their means.

    Raises:
      ValueError: No data, lengths that differ, inputs that are not finite, labels that are not
        classes or not as many as the answers, a network named "reference", or one whose logits are
        not [N, ..., classes].

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x, labels = jnp.eye(3), jnp.arange(3)
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(3)}, x)
      >>> rows = js.compare(net, {"8 bits": js.quantize(8, 8)(net)}, (x, labels)).rows
      >>> [(row.name, row.accuracy, row.weight_bits) for row in rows]
      [('reference', 1.0, 288), ('8 bits', 1.0, 72)]
    """
    inputs, labels = split_labels(data)
    if np.shape(labels)[:1] != (count := row_count(inputs, "data"),):
        raise ValueError(f"data: {count} inputs and labels {list(np.shape(labels))}")
    check_batch("data[0]", *inputs)
    few = call_arguments(*take_rows(inputs, slice(0, 1)))
    logits = jax.eval_shape(partial(_logits, output=output), reference, few, key)
    check_labels("data[1]", labels, logits.shape[-1])
    if np.shape(labels)[1:] != logits.shape[1:-1]:
        raise ValueError(
            f"data[1]: labels {list(np.shape(labels))} of logits "
            f"{[count, *logits.shape[1:]]}; expected {[count, *logits.shape[1:-1]]}"
        )
    named = named_networks(reference, networks)
    expected, rows, one = None, list[ComparisonRow](), take_rows(inputs, slice(1))
    for name, net in named.items():
        answers = classify(net, inputs, key=key, batch_size=batch_size, output=output)
        expected = answers if expected is None else expected
        right = (answers == labels).reshape(count, -1).mean(1)
        cost = net.cost(*one.args, **one.kwargs)
        rows.append(
            ComparisonRow(
                name=name,
                accuracy=float(right.mean()),
                error=float(right.std() / np.sqrt(count)),
                agreement=float(np.mean(answers == expected)),
                params=cost.params,
                nonzero=cost.nonzero,
                weight_bits=cost.total("weight_bits"),
                macs=cost.total("macs"),
                conversions=cost.total("conversions"),
                transformed=net.coverage().share("transformed"),
            )
        )
    return Comparison(tuple(rows))


def named_networks(
    reference: Network, networks: Network | Mapping[str, Network]
) -> dict[str, Network]:
    """Names the networks of a comparison, the reference first.

    Args:
      reference: Network that the others are compared with.
      networks: One network, or several by name.

    Raises:
      ValueError: Something else, or one that is named "reference".
    """
    if isinstance(networks, Network):
        networks = {"transformed": networks}
    if not isinstance(networks, Mapping) or "reference" in networks:
        raise ValueError("networks: must be a network, or a dict without the name 'reference'")
    return {"reference": reference, **networks}


def classify(
    net: Network,
    inputs: Any,
    *,
    key: Key[Array, ""] | None = None,
    batch_size: int = 500,
    output: Reader | None = None,
) -> Int[np.ndarray, " N *rest"]:
    """Finds the class of the largest logit for each input.

    Args:
      net: Network whose output is logits [N, ..., classes], or holds them.
      inputs: Batch of N rows (an array, a tuple of positional arguments, or a dict of keyword
        arguments) or an iterable of batches.
      key: Random key for cores that draw at every call; batch i uses `fold_in(key, i)`.
      batch_size: Number of inputs per call, at least 1.
      output: Function from what the network returns to its logits, such as `lambda y: y["logits"]`;
        None where it returns them. Compiled with the call: another function compiles anew.

    Raises:
      ValueError: `batch_size` out of range, inputs that are not finite, or outputs of another form.

    Examples:
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(3)}, jnp.eye(3))
      >>> js.classify(net, jnp.eye(3)[::-1]).tolist()
      [2, 1, 0]
      >>> both = js.trace(lambda p, x: {"logits": x @ p["w"]}, {"w": jnp.eye(3)}, jnp.eye(3))
      >>> js.classify(both, jnp.eye(3), output=lambda y: y["logits"]).tolist()
      [0, 1, 2]
    """
    batch_size = checked_int("batch_size", batch_size, 1)
    answers: list[np.ndarray] = []
    whole = join_batches(inputs)
    check_batch("inputs", *whole)
    count = row_count(whole)
    for i, start in enumerate(range(0, count, batch_size)):
        batch_key = None if key is None else jax.random.fold_in(key, i)
        few = take_rows(whole, slice(start, start + batch_size))
        found = np.asarray(_classes(net, call_arguments(*few), batch_key, output))
        if len(found) != (rows := min(batch_size, count - start)):
            raise ValueError(f"networks: {len(found)} rows of logits of {rows} inputs")
        answers.append(found)
    return np.concatenate(answers)


def _logits(
    net: Network, arguments: Partitioned, key: Key[Array, ""] | None, output: Reader | None
) -> Array:
    args, kwargs = arguments.combine()
    logits = net(*args, key=key, **kwargs)
    if output is not None:
        logits = output(logits)
    if not isinstance(logits, jax.Array) or logits.ndim < 2:
        shown = list(logits.shape) if isinstance(logits, jax.Array) else type(logits).__name__
        raise ValueError(
            f"networks: outputs must be one array of logits [N, ..., classes], got {shown}; "
            'output=lambda y: y["logits"] says where they are'
        )
    return logits


@partial(jax.jit, static_argnames=("output",))
def _classes(
    net: Network,
    arguments: Partitioned,
    key: Key[Array, ""] | None,
    output: Reader | None,
) -> Int[Array, " N *rest"]:
    return jnp.argmax(_logits(net, arguments, key, output), -1)
