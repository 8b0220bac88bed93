"""Tokens followed through the equations of a traced model."""

from __future__ import annotations

from collections.abc import Sequence

import jax.extend.core as jex
import jax.extend.core.primitives as prims

from jaxsim import internals
from jaxsim.internals import inner_jaxprs, parameters
from jaxsim.network.plan import Contraction
from jaxsim.sparsity.channels.axes import AxisGroup, factor_count, same
from jaxsim.sparsity.channels.axis_rules import ELEMENTWISE, describe_place
from jaxsim.sparsity.channels.propagate import EquationAxes
from jaxsim.staged.bodies import Body, runs_in_place
from jaxsim.staged.token_marks import Last, Mark, Path, Pool, Scores, Values
from jaxsim.staged.value_products import ValueProduct


class TokenFlow:
    """Follows the tokens of a call through its equations, and marks what does something with them.

    Attributes:
      tokens: What an axis of tokens runs over.
      rows: What an axis of rows runs over.
      names: Names of the products of values where tokens may leave.
      marks: What equations do with tokens.
      degrees: For sites, along how many of their axes tokens run.
      first: Number of tokens that have to stay in front.
      last: Number that have to stay at the end.
    """

    def __init__(self, tokens: AxisGroup, rows: AxisGroup):
        """Begins with nothing marked.

        Args:
          tokens: What an axis of tokens runs over.
          rows: What an axis of rows runs over.
        """
        self.tokens, self.rows = tokens, rows
        self.names: list[str] = []
        self.marks: dict[Path, Mark] = {}
        self.degrees: dict[str, int] = {}
        self.first = self.last = 0

    def _along(self, axes: Sequence[AxisGroup]) -> list[int]:
        """Axes that hold tokens."""
        return [i for i, group in enumerate(axes) if same(group, self.tokens)]

    def _row_axis(self, axes: Sequence[AxisGroup]) -> int | None:
        """The axis that holds rows."""
        found = [i for i, group in enumerate(axes) if same(group, self.rows)]
        return found[0] if len(found) == 1 else None

    def mark_attention(self, one: ValueProduct) -> None:
        """Marks one attention to tokens.

        Args:
          one: Its product of values.

        Raises:
          ValueError: Its axes are merged.
        """
        body = one.body
        axes, scores = one.axes, body.axes[one.scores].results[0]
        rows, rows_of_scores = self._row_axis(axes), self._row_axis(scores)
        if rows is None or rows_of_scores is None:
            raise ValueError(
                f"prune_tokens cannot follow {one.name} "
                f"({describe_place(body.eqns[one.values])}): no axis of its probabilities holds "
                "the rows of the batch alone (heads merged with them, or windows)"
            )
        self.marks[(*body.path, one.scores)] = Scores(rows_of_scores, one.keys_of_scores)
        queries = [i for i in one.attended_axes if i != one.keys]
        if len(queries) == 1:
            self.names.append(one.name)
            self.marks[one.place] = Values(one.operand, rows, queries[0], one.keys)

    def mark_others(
        self, body: Body, found: Sequence[ValueProduct], begin: Path, computed: set[int]
    ) -> None:
        """Marks what else reads tokens behind the first attention.

        Args:
          body: Equations of the call, or inside of one.
          found: Attentions to tokens, marked already.
          begin: Position of the first.
          computed: Positions of the equations of the call that depend on a product.

        Raises:
          ValueError: An equation that mixes tokens in a way that is not known.
        """
        between = {(*f.body.path, i) for f in found for i in (*f.between, f.values)}
        for i, (eqn, entry, own) in enumerate(zip(body.eqns, body.entries, body.axes, strict=True)):
            path = (*body.path, i)
            if isinstance(entry, Contraction):
                self.degrees[entry.site.name] = self._degree(eqn, own)
            late = path > begin and path[0] in computed
            if not late or path in self.marks or path in between or runs_in_place(entry, eqn):
                continue
            if isinstance(entry, Contraction) and entry.site.multiplies and self._sums(eqn, own):
                raise ValueError(_mixes(eqn))
            self._other(path, eqn, own)

    def _sums(self, eqn: jex.JaxprEqn, own: EquationAxes) -> bool:
        """Tells if a product sums over tokens."""
        if eqn.primitive is not prims.dot_general_p:
            return any(map(self._share, own.operands[0])) and not any(
                map(self._share, own.results[0])
            )
        summed = parameters(eqn)["dimension_numbers"][0][0]
        return any(self._share(own.operands[0][i]) for i in summed)

    def _degree(self, eqn: jex.JaxprEqn, own: EquationAxes) -> int:
        """Along how many axes of a product tokens run, those summed over among them."""
        axes = list(own.results[0])
        if eqn.primitive is prims.dot_general_p:
            (summed, _), _ = parameters(eqn)["dimension_numbers"]
            axes += [own.operands[0][i] for i in summed]
        return sum(self._share(group) for group in axes)

    def _share(self, group: AxisGroup) -> int:
        """How often tokens are a factor of an axis."""
        return factor_count(group, self.tokens)

    def _other(
        self, path: Path, eqn: jex.JaxprEqn, own: EquationAxes, *, whole: bool = True
    ) -> None:
        """Marks an equation that is no attention's, if it reduces over tokens.

        Args:
          path: Where it stands.
          eqn: Equation.
          own: Axis groups of what it reads and makes.
          whole: False within an equation that does not run in place, where none can be marked.

        Raises:
          ValueError: It mixes tokens in another way, or in one that is not known.
        """
        if not any(self._share(group) for axes in own.operands for group in axes):
            return
        if inner := inner_jaxprs(eqn):
            if eqn.primitive is prims.scan_p:
                first = internals.scan(eqn).first_slice
                if any(self._share(axes[0]) for axes in own.operands[first:]):
                    raise ValueError(_mixes(eqn))
            for (jaxpr, _), axes in zip(inner, own.inner, strict=True):
                for each, groups in zip(jaxpr.eqns, axes, strict=True):
                    self._other(path, each, groups, whole=False)
            return
        if (pool := self._reduced(eqn, own)) is not None:
            if not whole:
                raise ValueError(_mixes(eqn))
            how, axis = pool
            self._pool(path, eqn, own, how, axis)
        elif not (self._keeps(eqn, own) or (whole and self._slice(path, eqn, own))):
            raise ValueError(_mixes(eqn))

    def _reduced(self, eqn: jex.JaxprEqn, own: EquationAxes) -> tuple[str, int | None] | None:
        """How an equation reduces over tokens, and along which axis; None if it does not."""
        name, along = eqn.primitive.name, self._along(own.operands[0])
        if name == "dot_general" and self._sums(eqn, own):
            return "sum", _one(along, parameters(eqn)["dimension_numbers"][0][0])
        if name in _POOLS:
            axes = [i for i in parameters(eqn)["axes"] if self._share(own.operands[0][i])]
            return (_POOLS[name], _one(along, axes)) if axes else None
        return None

    def _keeps(self, eqn: jex.JaxprEqn, own: EquationAxes) -> bool:
        """Tells if an equation does to each token what it does to any other."""
        name = eqn.primitive.name
        if name in ELEMENTWISE or name in _PASSING or name == "dot_general" or name in _POOLS:
            return True
        params, read = parameters(eqn), own.operands[0]
        match name:
            case "reshape":
                return self._most(own.operands) == self._most(own.results)
            case "gather":
                numbers = params["dimension_numbers"]
                found = {*numbers.start_index_map, *numbers.collapsed_slice_dims}
                return not any(self._share(read[i]) for i in found)
            case "dynamic_slice":
                sizes = params["slice_sizes"]
                return all(n == g.size for g, n in zip(read, sizes, strict=True) if self._share(g))
            case "dynamic_update_slice":
                pairs = zip(read, own.operands[1], strict=True)
                return all(a.size == b.size for a, b in pairs if self._share(a) or self._share(b))
            case "concatenate":
                at = params["dimension"]
                return not any(self._share(axes[at]) for axes in (*own.operands, *own.results))
            case "pad":
                pairs = zip(read, params["padding_config"], strict=True)
                return not any(self._share(g) for g, width in pairs if any(width))
            case "split" | "unstack":
                return not self._share(read[params["axis"]])
            case "tile":
                pairs = zip(read, params["reps"], strict=True)
                return not any(self._share(g) for g, n in pairs if n > 1)
            case "top_k":
                return not self._share(read[params.get("axis", -1)])
            case "conv_general_dilated":
                return self._convolves_each(eqn, own)
            case _ if name in _ALONG:
                keys = ("axes", "axis", "dimension", "dimensions")
                axes = next(params[k] for k in keys if k in params)
                axes = axes if isinstance(axes, Sequence) else [axes]
                return not any(self._share(read[i]) for i in axes)
            case _ if name.startswith("reduce_window"):
                pairs = zip(read, params["window_dimensions"], strict=True)
                return not any(self._share(g) for g, n in pairs if n > 1)
            case _:
                return False

    def _convolves_each(self, eqn: jex.JaxprEqn, own: EquationAxes) -> bool:
        """Tells if a convolution looks at one token at a time."""
        numbers = parameters(eqn)["dimension_numbers"]
        x, w = own.operands
        _, feature, *places = numbers.lhs_spec
        windows = [w[i].size for i in numbers.rhs_spec[2:]]
        wide = [self._share(x[i]) for i, n in zip(places, windows, strict=True) if n > 1]
        return not (any(wide) or self._share(x[feature]) or any(map(self._share, w)))

    def _most(self, groups: Sequence[Sequence[AxisGroup]]) -> int:
        """Along how many axes tokens run in what has most of them."""
        return max((sum(map(self._share, axes)) for axes in groups), default=0)

    def _slice(self, path: Path, eqn: jex.JaxprEqn, own: EquationAxes) -> bool:
        """Marks a slice of the first or the last tokens; False if it is another equation."""
        if eqn.primitive.name != "slice":
            return False
        params = parameters(eqn)
        if params["strides"] is not None and set(params["strides"]) != {1}:
            return False
        for i, group in enumerate(own.operands[0]):
            start, stop = params["start_indices"][i], params["limit_indices"][i]
            if (start, stop) == (0, group.size):
                continue
            if not self._share(group):
                continue
            rows = self._row_axis(own.operands[0])
            if not same(group, self.tokens) or rows is None:
                return False
            if start == 0:
                self.first = max(self.first, stop)
            elif stop == group.size:
                self.last = max(self.last, stop - start)
                self.marks[path] = Last(stop - start, rows, i)
            else:
                return False
        return True

    def _pool(
        self, path: Path, eqn: jex.JaxprEqn, own: EquationAxes, how: str, axis: int | None
    ) -> None:
        rows, after = self._row_axis(own.operands[0]), self._row_axis(own.results[0])
        if axis is None or rows is None or after is None:
            raise ValueError(_mixes(eqn))
        self.marks[path] = Pool(how, 0, rows, axis, after)


def _one(along: Sequence[int], axes: Sequence[int]) -> int | None:
    found = [i for i in along if i in axes]
    return found[0] if len(found) == 1 else None


def _mixes(eqn: jex.JaxprEqn) -> str:
    return (
        f"prune_tokens cannot follow {describe_place(eqn)}: behind the first attention it mixes "
        "tokens in a way that has no meaning once some have left"
    )


_POOLS = {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min"}


_PASSING = {
    *("broadcast_in_dim", "expand_dims", "squeeze", "stack", "transpose"),
    *("random_seed", "random_fold_in"),
}


_ALONG = {
    *("argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "rev", "sort"),
    *("reduce_and", "reduce_or", "reduce_prod", "reduce_xor"),
}
