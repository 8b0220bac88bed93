"""Networks side by side: accuracy, agreement with the reference, and cost."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxsim.console.table import render, si
from jaxsim.cores.partition import Parts
from jaxsim.inputs.batches import joined, labelled, row_count, take_rows
from jaxsim.inputs.samples import check_batch, check_labels
from jaxsim.network.arguments import call_arguments
from jaxsim.network.network import Network
from jaxsim.numerics.checks import checked_int


class Row(NamedTuple):
    """One network of a comparison; costs are for one input.

    Attributes:
      name: as given.
      accuracy: share of right answers, and its binomial standard error.
      error: that standard error.
      agreement: share of answers equal to the reference's.
      params: entries of all parameters.
      nonzero: those that pruning left.
      weight_bits: bits stored at the sites.
      macs: multiply-accumulates in the hardware.
      conversions: ADC conversions.
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


class Comparison(NamedTuple):
    """Rows of a comparison, the reference first. Printing shows a table."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        return render(self.__rich__())

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title="networks, cost per input")
        table.add_column("network", overflow="fold")
        for column in ("right %", "agree %", "kept", "KiB", "MACs", "ADC reads"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(
                row.name,
                f"{100 * row.accuracy:.2f}±{100 * row.error:.2f}",
                f"{100 * row.agreement:.2f}",
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
) -> Comparison:
    """Runs networks on the same data.

    Args:
      reference: what the others are to agree with, usually the untransformed network.
      networks: one network, or several by name.
      data: a tuple of inputs and labels [N], the inputs a batch of N rows (an array, a tuple of
        positional arguments, or a dict of keyword arguments) or an iterable of batches; or an
        iterable of such pairs. All of it is read into memory.
      key: for cores that draw at every call.
      batch_size: inputs a call.

    Returns:
      A row a network. Weight bits count at sites only; a site without a core stores floats.

    Raises:
      ValueError: no data, lengths that differ, inputs that are not finite, labels that are no
        classes, a network named "reference", or one whose outputs
        are not [N, classes].
    """
    inputs, labels = labelled(data)
    if np.shape(labels) != (count := row_count(inputs, "data"),):
        raise ValueError(f"data: {count} inputs and labels {list(np.shape(labels))}")
    check_batch("data[0]", *inputs)
    few = call_arguments(*take_rows(inputs, slice(0, 1)))
    outputs = jax.eval_shape(_outputs, reference, few, key)
    check_labels(
        "data[1]", labels, outputs.shape[-1] if isinstance(outputs, jax.ShapeDtypeStruct) else None
    )
    if isinstance(networks, Network):
        networks = {"transformed": networks}
    if not isinstance(networks, Mapping) or "reference" in networks:
        raise ValueError("networks: must be a network, or a dict without the name 'reference'")
    expected, rows, one = None, list[Row](), take_rows(inputs, slice(1))
    for name, net in {"reference": reference, **networks}.items():
        answers = classify(net, inputs, key=key, batch_size=batch_size)
        expected = answers if expected is None else expected
        accuracy = float(np.mean(answers == labels))
        cost = net.cost(*one.args, **one.kwargs)
        rows.append(
            Row(
                name=name,
                accuracy=accuracy,
                error=float(np.sqrt(accuracy * (1 - accuracy) / len(labels))),
                agreement=float(np.mean(answers == expected)),
                params=cost.params,
                nonzero=cost.nonzero,
                weight_bits=cost.total("weight_bits"),
                macs=cost.total("macs"),
                conversions=cost.total("conversions"),
            )
        )
    return Comparison(tuple(rows))


def classify(
    net: Network,
    inputs: Any,
    *,
    key: Key[Array, ""] | None = None,
    batch_size: int = 500,
) -> Int[np.ndarray, " N"]:
    """The class of largest logit for each input.

    Args:
      net: a network whose output is logits [N, classes].
      inputs: a batch of N rows (an array, a tuple of positional arguments, or a dict of keyword
        arguments) or an iterable of batches.
      key: for cores that draw at every call; batch i uses `fold_in(key, i)`.
      batch_size: inputs a call, at least 1.

    Raises:
      ValueError: batch_size out of range, inputs that are not finite, or outputs of another form.
    """
    batch_size = checked_int("batch_size", batch_size, 1)
    answers: list[np.ndarray] = []
    whole = joined(inputs)
    check_batch("inputs", *whole)
    count = row_count(whole)
    for i, start in enumerate(range(0, count, batch_size)):
        batch_key = None if key is None else jax.random.fold_in(key, i)
        few = take_rows(whole, slice(start, start + batch_size))
        rows = min(batch_size, count - start)
        answers.append(np.asarray(_classes(net, call_arguments(*few), batch_key, rows)))
    return np.concatenate(answers)


def _outputs(net: Network, arguments: Parts, key: Key[Array, ""] | None) -> Any:
    args, kwargs = arguments.whole()
    return net(*args, key=key, **kwargs)


@partial(jax.jit, static_argnames=("rows",))
def _classes(
    net: Network, arguments: Parts, key: Key[Array, ""] | None, rows: int
) -> Int[Array, " N"]:
    logits = _outputs(net, arguments, key)
    if not isinstance(logits, jax.Array) or logits.shape != (rows, logits.shape[-1]):
        raise ValueError("networks: outputs must be one array of logits, [N, classes]")
    return jnp.argmax(logits, -1)
