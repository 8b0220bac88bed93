"""What papers claim, and how records decide whether it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from benchmarks.common.results import Number, Results, number

Verdict = Literal["holds", "holds in part", "not seen", "not recorded"]


class Claim(NamedTuple):
    """One claim of a paper.

    Attributes:
      paper: Authors, title and number.
      says: The claim, in our words.
      rule: When it holds; "in part" where some of it does.
      judge: `results -> (verdict, measured)`.
      command: Topic of the benchmarks that records it, with its options.
      page: Page of the docs that tells more.
    """

    paper: str
    says: str
    rule: str
    judge: Callable[[Results], tuple[Verdict, str]]
    command: str
    page: str


def _share(held: int, of: int) -> Verdict:
    return "holds" if held == of else "holds in part" if held else "not seen"


def _converters(r: Results) -> tuple[Verdict, str]:
    exact = number(r.cell("analog_accuracy", "cells", "none", network="ResNet-14", array=PAIR))
    eight = number(r.cell("analog_accuracy", "ADC bits", "8", network="ResNet-14", array=PAIR))
    offset = r.cell("analog_accuracy", "ADC bits", "8", network="ResNet-14", array="offset")
    shown = f"{eight.value} % with 8 bits, {exact.value} % without converters; offset {offset} %"
    return _share(int(exact.value - eight.value <= 1), 1), shown


def _pairs(r: Results) -> tuple[Verdict, str]:
    ahead, shown = 0, []
    for network in ("ResNet-14", "ResNet-20"):
        pair, offset = (
            r.cell("analog_accuracy", "cells", "proportional 10 %", network=network, array=array)
            for array in (PAIR, "offset")
        )
        ahead += number(pair).value - number(offset).value > 10
        shown.append(f"{network} {pair} against {offset} %")
    return _share(ahead, 2), "; ".join(shown)


def _slices(r: Results) -> tuple[Verdict, str]:
    near, shown = 0, []
    for kind in ("proportional 10 %", "independent 2 %"):
        whole, sliced = (
            r.cell("analog_accuracy", "cells", kind, network="ResNet-14", array=array)
            for array in (PAIR, f"{PAIR}, 4 slices")
        )
        near += number(sliced).value - number(whole).value <= 3
        shown.append(f"{kind}: {whole} whole, {sliced} % in four slices")
    return _share(near, 2), "; ".join(shown)


def _designs(r: Results) -> tuple[Verdict, str]:
    """How far three designs are behind the first, and the offset behind all."""
    held, shown, rows = 0, [], r.rows("designs", "right")
    rows = [row for row in rows if "reported" not in str(row["cells"])]
    for row in rows:
        right = {name: number(str(row[name])).value for name in "ABCDE"}
        held += all(right["A"] - right[name] <= 3 for name in "BCD")
        held += right["A"] - right["E"] > 10
        found = ", ".join(f"{name} {row[name]}" for name in "ABCDE")
        shown.append(f"{str(row['network, float %']).split(',')[0]}, {row['cells']}: {found}")
    return _share(held, 2 * len(rows)), "; ".join(shown)


def _second_array(r: Results) -> tuple[Verdict, str]:
    """What asymmetric cells cost, and what a second array gives back."""

    def of(training: str) -> Number:
        return number(r.cell("on_chip", "", "accuracy, %", training=training))

    symmetric, asymmetric = of("pulses, symmetric cells"), of("pulses, asymmetric cells")
    tiki_taka = of("Tiki-Taka")
    held = (symmetric.value - asymmetric.value > 1) + (symmetric.value - tiki_taka.value <= 1)
    return _share(held, 2), (
        f"descent {symmetric.value} % on symmetric, {asymmetric.value} % on asymmetric cells; "
        f"Tiki-Taka {tiki_taka.value} % on asymmetric ones"
    )


def _zero_point(r: Results) -> tuple[Verdict, str]:
    """What a reference that is off costs."""
    rows = {str(row["training"]): number(str(row["accuracy, %"])) for row in r.rows("on_chip")}
    found = {name: rows[name].value for name in ("TTv2", "AGAD, no reference")}
    off = {
        name: next(n.value for row, n in rows.items() if row == f"{name}, off by 0.1")
        for name in ("TTv2", "c-TTv2")
    }
    held = found["TTv2"] - off["TTv2"] > 1
    held += found["TTv2"] - off["c-TTv2"] <= 1
    held += found["TTv2"] - found["AGAD, no reference"] <= 1
    return _share(held, 3), (
        f"TTv2 {found['TTv2']} %, {off['TTv2']} % with its reference off; c-TTv2 then "
        f"{off['c-TTv2']} %; AGAD {found['AGAD, no reference']} % without one"
    )


def _blocks(r: Results) -> tuple[Verdict, str]:
    held, shown = 0, []
    for title, column, end in (
        ("Fashion", "difference to int8, points", ", statistics settled"),
        ("CIFAR", "difference, points", ""),
    ):
        for search in ("network", "layers"):
            row = {"network": f"search, {search}{end}"}
            lost = r.cell("blocked_accuracy", title, column, **row)
            gain = r.cell("blocked_accuracy", title, "energy gain", **row)
            held += number(lost).value > -1 and number(gain).value > 1.1
            shown.append(f"{title}, by {search}: modeled energy {gain} times less at {lost}")
    for search, name in (("network", "the network"), ("layers", "each layer")):
        row = {"network": f"blocks, chosen for {name}"}
        lost = r.cell("imagenet_blocked", "", "to float, points", **row)
        gain = r.cell("imagenet_blocked", "", "energy, times less", **row)
        held += number(lost).value > -1 and number(gain).value > 1.1
        shown.append(f"ImageNet, by {search}: modeled energy {gain} times less at {lost}")
    return _share(held, 6), "; ".join(shown)


def _gradients(r: Results) -> tuple[Verdict, str]:
    errors = [number(e).value for e in r.cells("pipeline", "time", "gradient error")]
    return _share(int(max(errors) < 1e-5), 1), f"at most {max(errors):.0e} apart, relative"


def _bubble(r: Results) -> tuple[Verdict, str]:
    held, shown = 0, []
    for row in r.rows("schedules"):
        if row["schedule"] == "gpipe" and row["model"] == "dense":
            expected = 100 / (row["M"] + 1)
            held += abs(number(row["simulated bubble"]).value - expected) < 0.1
            shown.append(f"M = {row['M']}: {row['simulated bubble']}")
    return _share(held, 2), f"equal stages on two devices, {'; '.join(shown)}"


def _largest(r: Results) -> tuple[Verdict, str]:
    rows = r.rows("gpipe", "largest")
    held = [
        abs(number(row["layers"].split("(")[1]).value / number(str(row["K"])).value - 1) < 0.1
        for row in rows
    ]
    shown = ", ".join(f"{row['layers']}" for row in rows)
    stages = ", ".join(str(row["K"]) for row in rows)
    return _share(sum(held), len(held)), f"layers (of one device's) at K = {stages}: {shown}"


def _throughput(r: Results) -> tuple[Verdict, str]:
    held, shown = 0, []
    for model in ("equal stages", "EfficientNet-lite0"):
        (row,) = (x for x in r.rows("gpipe", "throughput") if x["model"] == model and x["M"] == 32)
        ours = [str(row[f"K = {stages}"]) for stages in (2, 4, 8)]
        theirs = [str(row[f"K = {stages}, as reported"]) for stages in (2, 4, 8)]
        held += all(
            abs(number(own).value / number(their).value - 1) < 0.1
            for own, their in zip(ours, theirs, strict=True)
        )
        shown.append(f"{model} {', '.join(ours)} (their {row['theirs']} {', '.join(theirs)})")
    return _share(held, 2), "simulated, K = 2, 4, 8: " + "; ".join(shown)


def _dilation(r: Results) -> tuple[Verdict, str]:
    kinds = ("quanvolution s1", "quanvolution s2", "trained quantum")
    found = [
        row
        for row in r.rows("qdcnn_accuracy", "Paired")
        if row["difference"] in {f"{kind} d2 − {kind} d1" for kind in kinds}
    ]
    higher = sum(row["at 5 %"] == "higher" for row in found)
    lower = sum(row["at 5 %"] == "lower" for row in found)
    shown = f"of {len(found)} comparisons, corrected, {higher} higher and {lower} lower"
    return _share(higher, len(found)), shown


def _collaborative(r: Results) -> tuple[Verdict, str]:
    found = [
        row
        for row in r.rows("coconet_accuracy", "Paired")
        if row["difference"] == "collaborative − CRC after softmax"
    ]
    ahead = sum(row["at 5 %"] == "higher" for row in found)
    return _share(ahead, len(found)), _joined(found, "set", "points, 95 %")


def _joined(rows: list[dict[str, str]], name: str, value: str) -> str:
    return "; ".join(f"{row[name]} {row[value]}" for row in rows)


def _learned(r: Results) -> tuple[Verdict, str]:
    games: dict[str, Number] = {}
    skill = "difference, 95 %"
    games["skill"] = number(r.cell("nac_skill", "NAC", skill, against="PSRO-Nash, LP"))
    for name, record, title in (
        ("modes in the plane", "nac_rps", ""),
        ("pennies", "nac_pennies", ""),
        ("Lotto", "nac_lotto", ""),
        ("Kuhn, exact answers", "nac_poker", "Kuhn, exact"),
        ("Leduc, exact answers", "nac_poker", "Leduc, exact"),
        ("Leduc, approximate answers", "nac_poker", "Leduc, approximate"),
    ):
        cell = r.cell(record, title, "more than NAC", **{"meta-solver": "PSRO-Nash, LP"})
        found = number(cell)
        games[name] = Number(-found.value, 2 * found.error)
    ahead = [name for name, d in games.items() if d.value < -d.error]
    behind = [name for name, d in games.items() if d.value > d.error]
    level = [name for name in games if name not in ahead + behind]
    shown = f"ahead: {', '.join(ahead)}; level: {', '.join(level)}"
    shown += f"; behind: {', '.join(behind)}" if behind else "; behind: none"
    return ("holds" if not behind else _share(len(ahead) + len(level), len(games))), shown


def _published(r: Results) -> tuple[Verdict, str]:
    cell = r.cell("nac_published", "NAC GRU", "difference, 95 %", against="PSRO-Nash, LP")
    found = number(cell)
    shown = f"NashConv {cell} above PSRO-Nash's on games of skill, after 100 meta-steps"
    return _share(int(found.value <= found.error), 1), shown


def _pyramid(r: Results) -> tuple[Verdict, str]:
    held, shown = 0, []
    for texts in ("AG News", "SST-2"):
        row = _at_half_a_point(r, texts, "pruning and exit")
        share = 1 - 1 / number(row["GFLOPs, times fewer"]).value
        held += share >= 0.7 and number(row["to the whole, points"]).value > -0.5
        shown.append(f"{texts} {share:.0%} fewer at {row['to the whole, points']}")
    return _share(held, 2), "; ".join(shown)


def _at_half_a_point(r: Results, texts: str, kind: str) -> dict[str, str]:
    """The setting of fewest GFLOPs that costs half a point on the validation rows."""
    return next(
        row
        for row in r.rows("pyramid_accuracy", texts)
        if (row["what is left out"], row["may cost, points"]) == (kind, "0.5")
    )


def _together(r: Results) -> tuple[Verdict, str]:
    held, shown = 0, []
    for texts in ("AG News", "SST-2"):
        both = _at_half_a_point(r, texts, "pruning and exit")
        lost, fewer = (
            number(both["to the whole, points"]),
            number(both["GFLOPs, times fewer"]).value,
        )
        alone = 0.0
        for kind in ("pruning alone", "exit alone"):
            row = _at_half_a_point(r, texts, kind)
            other = number(row["to the whole, points"])
            error = (lost.error**2 + other.error**2) ** 0.5
            if other.value > lost.value - error:
                alone = max(alone, number(row["GFLOPs, times fewer"]).value)
        held += fewer > alone
        shown.append(f"{texts} {fewer} times fewer together, {alone} by the better one alone")
    return _share(held, 2), "; ".join(shown)


def _by_length(r: Results) -> tuple[Verdict, str]:
    held, shown = 0, []
    for texts in ("AG News", "SST-2"):
        ends: dict[str, tuple[Number, Number]] = {}
        for kind in ("pruning alone", "exit alone"):
            rows = [
                number(row["times fewer"])
                for row in r.rows("pyramid_lengths", texts)
                if row["what is left out"] == kind
            ]
            ends[kind] = rows[0], rows[-1]
        (short, long), (early, late) = ends["pruning alone"], ends["exit alone"]
        held += _above(long, short) and _above(early, late)
        shown.append(
            f"{texts} pruning {short.value} times on the shortest quarter and {long.value} on the "
            f"longest, exit {early.value} and {late.value}"
        )
    return _share(held, 2), "; ".join(shown)


def _above(a: Number, b: Number) -> bool:
    """Whether a is more than b by two standard errors of the difference."""
    return a.value - b.value > 2 * (a.error**2 + b.error**2) ** 0.5


def _interpreters(r: Results) -> tuple[Verdict, str]:
    held, shown = 0, []
    for against in ("parameters, 1 layer", "FLOPs, 9 layers"):
        for images in ("clothes", "digits"):
            cell = r.cell(
                "interpreters_joint",
                "",
                f"to the interpreter, {images}",
                body=f"transformer of equal {against}",
            )
            held += number(cell).value <= number(cell).error
            shown.append(f"equal {against.split(',')[0]}, {images} {cell}")
    return _share(held, 4), "transformer above the interpreter: " + "; ".join(shown)


def _functions(r: Results) -> tuple[Verdict, str]:
    held, shown = 0, []
    column = "what is trained"
    for digits in ("200 digits, %", "2000 digits, %"):
        head, more = (
            r.cell("interpreters_extend", "", digits, **{column: kind})
            for kind in ("a head alone", "a head and 2 functions")
        )
        held += number(more).value - number(more).error > number(head).value
        shown.append(f"{digits.split(',')[0]}: {more} with functions, {head} % without")
    return _share(held, 2), "; ".join(shown)


def _rules(r: Results) -> tuple[Verdict, str]:
    ours, theirs = (
        r.cell("interpreters_reasoning", "", "a rule held out, %", model=model)
        for model in ("Neural Interpreter", "transformer of equal FLOPs")
    )
    ahead = number(ours).value - number(ours).error > number(theirs).value + number(theirs).error
    return _share(int(ahead), 1), f"{ours} % against {theirs} %, one of eight answers"


def _certified(r: Results) -> tuple[Verdict, str]:
    rows = r.rows("influence", "50 certified")
    held = sum(str(row["certified"]) == "True" for row in rows)
    shown = ", ".join(f"{row['graph']} {row['ratio']}" for row in rows)
    return _share(held, len(rows)), f"certified share of the best (1 − 1/e − 0.1 asked): {shown}"


def _gradual(r: Results) -> tuple[Verdict, str]:
    held, shown = 0, []
    for row in r.rows("sparsity_curves", "the same"):
        if row["method"] in ("iterative", "cubic"):
            points, p = row["points"], row["p"]
            held += number(points).value > 0 and number(p).value < 0.05
            shown.append(f"{row['method']} {points} points, p = {p}")
    return _share(held, 2), f"{'; '.join(shown)} (three seeds)"


def _footprint(r: Results) -> tuple[Verdict, str]:
    """What codes of 4 bits and 2 take off memory and time."""
    held, shown = 0, []
    for title in ("a decoder", "ResNet-20"):
        rows = [
            row for row in r.rows("footprint", title) if row["weights / inputs, bits"][0] in "42"
        ]
        best = {
            column: max(number(str(row[column])).value for row in rows)
            for column in ("in memory", "time, one", "time, many")
        }
        held += best["in memory"] >= 4
        held += max(best["time, one"], best["time, many"]) >= 4
        found = ", ".join(f"{column} {value:g}" for column, value in best.items())
        shown.append(f"{title}, times less by 4 bits or 2 at best: {found}")
    return _share(held, 4), "; ".join(shown)


def _large_sparse(r: Results) -> tuple[Verdict, str]:
    sparse = r.cell("sparsity_curves", "accuracy", "80 %", method="one shot")
    small = r.cell("sparsity_curves", "controls", "accuracy, %", network="small, from scratch")
    ahead = number(sparse).value - number(small).value
    error = (number(sparse).error ** 2 + number(small).error ** 2) ** 0.5
    shown = f"{sparse} % with a fifth of the weights, {small} % of a dense network with a quarter"
    return _share(int(ahead > 2 * error), 1), shown


PAIR = "differential"

XIAO = "Xiao et al., accuracy of analog inference accelerators, arXiv 2109.01262"
AX_BXP = "Elangovan et al., Ax-BxP, arXiv 2011.13000"
GPIPE = "Huang et al., GPipe, arXiv 1811.06965"
NAC = "Feng et al., Neural Auto-Curricula, arXiv 2106.02745"
PYRAMID = "He et al., Magic Pyramid, arXiv 2111.00230"
INTERPRETERS = "Rahaman et al., Neural Interpreters, arXiv 2110.06399"

CLAIMS = (
    Claim(
        XIAO,
        "8 bits of ADC do for pairs of cells; a full-precision guarantee is not needed",
        "at most a point below no converter",
        _converters,
        "analog_accuracy",
        "analog.md",
    ),
    Claim(
        XIAO,
        "where cell errors are proportional, pairs lose far less than an offset",
        "more than 10 points, on two networks",
        _pairs,
        "analog_accuracy",
        "analog.md",
    ),
    Claim(
        XIAO,
        "weights stored whole are nearly as resilient as weights in slices",
        "at most 3 points less, under errors of two kinds",
        _slices,
        "analog_accuracy",
        "analog.md",
    ),
    Claim(
        XIAO,
        "four designs by pairs are about as accurate, one by offsets far less",
        "B, C and D at most 3 points below A, E more than 10, for each network and device",
        _designs,
        "designs",
        "accelerator.md",
    ),
    Claim(
        "Gokmen and Haensch, Tiki-Taka, arXiv 1909.07908",
        "on asymmetric devices Tiki-Taka is as accurate as descent on symmetric ones",
        "descent loses more than a point on asymmetric cells, Tiki-Taka at most a point",
        _second_array,
        "on_chip",
        "on_chip.md",
    ),
    Claim(
        "Rasch et al., fast and robust analog training, Nature Communications 15:7133",
        "c-TTv2 and AGAD need no precise zero point, as algorithms before do",
        "with references off by 0.1 TTv2 loses more than a point; c-TTv2, and AGAD without one, "
        "are at most a point behind TTv2 with exact ones",
        _zero_point,
        "on_chip",
        "on_chip.md",
    ),
    Claim(
        AX_BXP,
        "1.1 to 1.74 times less energy by one configuration a network, 1.12 to 2.23 by layer, at "
        "less than 1 % (synthesized hardware)",
        "above 1.1 times, less than a point lost, three networks each way",
        _blocks,
        "blocked_accuracy",
        "blocked.md",
    ),
    Claim(
        GPIPE,
        "gradients do not depend on stages and micro-batches",
        "to 1e-5",
        _gradients,
        "pipeline",
        "pipeline.md",
    ),
    Claim(
        GPIPE,
        "the bubble is (K − 1)/(M + K − 1)",
        "to 0.1 points",
        _bubble,
        "schedules",
        "pipeline.md",
    ),
    Claim(
        GPIPE,
        "the largest model grows in proportion to the devices",
        "to a tenth, for every K",
        _largest,
        "gpipe",
        "pipeline.md",
    ),
    Claim(
        GPIPE,
        "at M = 32, 1.8, 3.4 and 6.3 times the speed on 2, 4, 8 devices for a Transformer, 1.21, "
        "1.84 and 3.48 for a convolutional network (as reported)",
        "a simulation without communication within a tenth",
        _throughput,
        "gpipe",
        "pipeline.md",
    ),
    Claim(
        "Chen, quantum dilated convolution, arXiv 2110.15667",
        "dilation is generally better than none",
        "higher in every paired comparison, corrected",
        _dilation,
        "qdcnn",
        "quantum.md",
    ),
    Claim(
        "Chakraborti et al., CoCoNet, arXiv 1901.09886",
        "a collaborative head beats collaborative codes fitted to the features afterwards",
        "higher on every set, paired, corrected",
        _collaborative,
        "coconet",
        "collaborative.md",
    ),
    Claim(
        "Chen et al., influence from samples, arXiv 2106.03403",
        "seeds are chosen within a constant of the best (a theorem)",
        "certified on every graph",
        _certified,
        "influence",
        "cascades.md",
    ),
    Claim(
        NAC,
        "a learned meta-solver is competitive with or better than PSRO",
        "behind PSRO-Nash in no game",
        _learned,
        "nac",
        "nac.md",
    ),
    Claim(
        NAC,
        "so is the published network, on games of skill (trained far longer there)",
        "not behind, at 95 %",
        _published,
        "nac --only skill",
        "nac.md",
    ),
    Claim(
        PYRAMID,
        "up to 70 % fewer GFLOPs at less than 0.5 % accuracy (12 layers there, 6 here)",
        "at least 70 %, on two sets, at what validation rows choose for half a point",
        _pyramid,
        "pyramid --only accuracy",
        "pyramid.md",
    ),
    Claim(
        PYRAMID,
        "pruning and exit together leave out more than either alone",
        "more than either with a loss within the error of theirs, at what validation rows choose "
        "for half a point",
        _together,
        "pyramid --only accuracy",
        "pyramid.md",
    ),
    Claim(
        PYRAMID,
        "pruning tokens and leaving early serve other lengths of texts",
        "pruning saves more of long texts than of short ones and exit less, by two standard "
        "errors, on two sets",
        _by_length,
        "pyramid --only lengths",
        "pyramid.md",
    ),
    Claim(
        INTERPRETERS,
        "on par with transformers, with fewer parameters",
        "not behind transformers of equal parameters and of equal FLOPs, two sets each",
        _interpreters,
        "interpreters",
        "interpreters.md",
    ),
    Claim(
        INTERPRETERS,
        "new functions extend a trained interpreter",
        "above a new head alone, beyond the error",
        _functions,
        "interpreters",
        "interpreters.md",
    ),
    Claim(
        INTERPRETERS,
        "rules held out of training are solved better than by transformers",
        "above one of equal FLOPs, beyond the errors",
        _rules,
        "interpreters",
        "interpreters.md",
    ),
    Claim(
        "Gholami et al., survey of quantization, arXiv 2103.13630",
        "four bits or fewer could take memory and latency down 16 times; 4 to 8 times are had",
        "4 times less memory, and 4 times less time, of two networks",
        _footprint,
        "footprint",
        "quantization.md",
    ),
    Claim(
        "Surveys of pruning",
        "pruning by and by is better than at once, at equal steps",
        "two schedules, mean over four sparsities, paired and corrected at 5 %",
        _gradual,
        "sparsity",
        "sparsity.md",
    ),
    Claim(
        "Surveys of pruning",
        "a large sparse network is better than a small dense one",
        "beyond two errors",
        _large_sparse,
        "sparsity",
        "sparsity.md",
    ),
)
