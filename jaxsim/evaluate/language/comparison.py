"""Language models side by side: what each loses on the same windows of text, and what it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Array, Key

from jaxsim.console.table import shown_as_table, si
from jaxsim.evaluate.comparison import named_networks
from jaxsim.evaluate.language.estimate import Estimate, agreement, perplexity
from jaxsim.evaluate.language.scores import Scores, score
from jaxsim.evaluate.language.window import Reader, checked_rows
from jaxsim.network.network import Network


class LanguageRow(NamedTuple):
    """What one network loses and takes; costs are for one token of a window.

    Attributes:
      name: Name of the network.
      perplexity: Its perplexity.
      ratio: Its perplexity over the reference's, with a paired error.
      agreement: Fraction of places at which it chooses the reference's next token.
      params: Number of entries of all parameters.
      nonzero: Number of entries that pruning left.
      weight_bits: Number of bits that the hardware stores at the sites.
      held: Bytes of the arrays that the network holds, `Network.nbytes`.
      macs: Number of multiply-accumulates in the hardware.
      conversions: Number of ADC conversions.
      transformed: Fraction of the parameters that transforms have reached, in [0, 1]; see
        `Network.coverage`.

    Examples:
      >>> from jaxsim.evaluate.language import Estimate, LanguageRow
      >>> one, loss = Estimate(1.0, 0.0, 1.0, 1.0), Estimate(32.0, 2.0, 28.0, 36.0)
      >>> row = LanguageRow("float", loss, one, one, 100, 100, 3200.0, 400, 100.0, 0.0, 0.0)
      >>> row.name, row.perplexity.value, row.held
      ('float', 32.0, 400)
    """

    name: str
    perplexity: Estimate
    ratio: Estimate
    agreement: Estimate
    params: int
    nonzero: int
    weight_bits: float
    held: int
    macs: float
    conversions: float
    transformed: float


@shown_as_table
class LanguageComparison(NamedTuple):
    """Rows of a comparison, the reference first. Printing shows a table.

    Attributes:
      rows: A row for each network.

    Examples:
      >>> from jaxsim.evaluate.language import LanguageComparison
      >>> from jaxsim.evaluate.language import Estimate, LanguageRow
      >>> one, loss = Estimate(1.0, 0.0, 1.0, 1.0), Estimate(32.0, 2.0, 28.0, 36.0)
      >>> row = LanguageRow("float", loss, one, one, 100, 100, 3200.0, 400, 100.0, 0.0, 0.0)
      >>> "32±2" in str(LanguageComparison((row,)))
      True
    """

    rows: tuple[LanguageRow, ...]

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title="language models, cost per token")
        table.add_column("network", overflow="fold", min_width=8)
        for column in ("perplexity", "ratio", "same %", "changed %", "MiB", "MACs"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(
                row.name,
                f"{row.perplexity.value:.4g}±{row.perplexity.error:.2g}",
                f"{row.ratio.value:.3f}±{row.ratio.error:.3f}" if row is not self.rows[0] else "",
                f"{100 * row.agreement.value:.1f}",
                f"{100 * row.transformed:.1f}",
                f"{row.held / 2**20:,.1f}",
                si(row.macs),
            )
        return table


def compare(
    reference: Network,
    networks: Network | Mapping[str, Network],
    windows: Any,
    *,
    key: Key[Array, ""] | None = None,
    batch_size: int = 4,
    output: Reader | None = None,
    cache: Callable[[int, int], Any] | None = None,
    checkpoints: str | Path | None = None,
    quiet: bool = True,
) -> LanguageComparison:
    """Measures language models on the same windows of text: perplexity, agreement and cost.

    Args:
      reference: Network that the others are compared with, usually the untransformed one.
      networks: One network, or several by name.
      windows: Tokens, [W, n], as `windows` cuts them.
      key: Random key for cores that draw at every call.
      batch_size: Number of windows per call, at least 1.
      output: Function from what a network returns to its logits; None where it returns them.
      cache: Makes an empty cache to read windows through, as `score` takes it.
      checkpoints: Folder in which each network has one to go on from, as `score` takes them.
      quiet: Show no progress bars.

    Raises:
      ValueError: A network named "reference", or as `score` raises.

    Examples:
      >>> import jax
      >>> import jaxsim as js
      >>> from jaxsim.models.llama import tiny
      >>> model, ids = tiny(), jax.random.randint(jax.random.key(1), (4, 12), 0, 96)
      >>> net = js.trace(model, model.init(jax.random.key(0), ids), ids)
      >>> found = js.language.compare(net, {"8 bits": js.quantize(8, None)(net)}, ids)
      >>> [row.name for row in found.rows], abs(found.rows[1].ratio.value - 1) < 0.01
      (['reference', '8 bits'], True)
    """
    rows, first = list[LanguageRow](), None
    for i, (name, net) in enumerate(named_networks(reference, networks).items()):
        folder = None if checkpoints is None else Path(checkpoints).expanduser() / str(i)
        scores = score(
            net,
            windows,
            key=key,
            batch_size=batch_size,
            output=output,
            cache=cache,
            checkpoints=folder,
            label=name,
            quiet=quiet,
        )
        first = scores if first is None else first
        rows.append(language_row(name, net, windows, scores, first))
    return LanguageComparison(tuple(rows))


def language_row(
    name: str, net: Network, windows: Any, scores: Scores, reference: Scores
) -> LanguageRow:
    """Makes the row of a network from its scores.

    Args:
      name: Name of the network.
      net: The network.
      windows: Tokens [W, n] that were scored.
      scores: Its scores.
      reference: Scores of the network to compare with.
    """
    window = checked_rows("windows", windows, 2)[:1]
    cost = net.cost(window)
    return LanguageRow(
        name=name,
        perplexity=perplexity(scores),
        ratio=perplexity(scores, reference),
        agreement=agreement(scores, reference),
        params=cost.params,
        nonzero=cost.nonzero,
        weight_bits=cost.total("weight_bits"),
        held=net.nbytes,
        macs=cost.total("macs") / window.size,
        conversions=cost.total("conversions") / window.size,
        transformed=net.coverage().share("transformed"),
    )
