"""A page about networks on an accelerator, to be opened in a browser."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jaxsim.accelerators.accelerator import Accelerator
from jaxsim.accelerators.estimate import estimate
from jaxsim.accelerators.result import Estimate
from jaxsim.files import atomic
from jaxsim.network.network import Network
from jaxsim.search.front import Front, Point

_UNITS = {"energy": "energy, pJ", "latency": "time, s", "area": "area, mm²"}


def report(
    found: Front | Mapping[str, Network],
    path: str | Path,
    *,
    accelerator: Accelerator | None = None,
    accuracy: Mapping[str, float] | None = None,
    title: str = "Networks on an accelerator",
) -> None:
    """Writes one page of HTML with all that it needs: it opens anywhere, without a network.

    It shows accuracy over cost, and of a point that is chosen its energy by component, its sites,
    what it changes of another point, and its recipe. Needs the `plotly` package, which `pip install
    "jaxsim[report]"` brings.

    Args:
      found: What `explore` found, or networks by name.
      path: File to write.
      accelerator: Hardware of the networks; None for a front, which knows its own.
      accuracy: Accuracy of each network by name; None for a front.
      title: Title of the page.

    Raises:
      ValueError: No networks or points, networks without an accelerator, accuracies of others, or
        what `js.estimate` raises.

    Examples:
      >>> import pathlib, tempfile
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.eye(8)}, jnp.ones((4, 8)))
      >>> nets = {"8": js.quantize(8, 8)(net), "4": js.quantize(4, 8)(net)}
      >>> folder = tempfile.TemporaryDirectory()
      >>> path = pathlib.Path(folder.name, "report.html")
      >>> js.report(nets, path, accelerator=js.accelerators.systolic_45nm())
      >>> path.stat().st_size > 1e6
      True
      >>> folder.cleanup()
    """
    from plotly.offline import get_plotlyjs

    if isinstance(found, Front):
        if accelerator is not None or accuracy is not None:
            raise ValueError("accelerator, accuracy: a front has its own; leave them out")
        data = _front_data(found)
    else:
        data = _network_data(found, accelerator, accuracy)
    text = resources.files("jaxsim.search").joinpath("page.html").read_text("utf-8")
    # A page ends a script at "</", wherever it stands.
    held = json.dumps(_finite(data), ensure_ascii=False).replace("</", "<\\/")
    parts = {"title": html.escape(title), "data": held, "plotly": get_plotlyjs()}
    atomic.write_text(path, re.sub("@@(title|data|plotly)@@", lambda m: parts[m[1]], text))


def _front_data(front: Front) -> dict[str, Any]:
    if not front.tried:
        raise ValueError("found: has no points")
    best = set(map(id, front.points))
    points: list[dict[str, Any]] = []
    for i, point in enumerate(front.tried):
        spent = front.estimate(point)
        facts = {"accuracy": point.accuracy, **_totals(spent), "predicted error": point.predicted}
        points.append(
            {
                "name": f"{i + 1}: {', '.join(_counted(point))}",
                "group": point.found_by[0],
                "best": id(point) in best,
                "cost": getattr(point, front.minimize),
                "accuracy": point.accuracy,
                "deviation": point.deviation,
                "facts": facts,
                "components": {**spent.components, **spent.memory},
                "sites": _front_sites(front, point, spent),
                "recipe": front.recipe(point),
            }
        )
    return {
        "about": f"{front.evaluations} evaluations; accuracy {front.exact:.4f} as given. Energy, "
        "time and area are of an analytic model and no measurement.",
        "cost": _UNITS[front.minimize],
        "accuracy": "accuracy",
        "points": points,
    }


def _front_sites(front: Front, point: Point, spent: Estimate) -> list[list[Any]]:
    rows: list[list[Any]] = []
    chosen: dict[str, tuple[str, float]] = {}
    for reason, place in zip(front.why(point), front.fit.places, strict=True):
        chosen |= dict.fromkeys(place.sites, (reason.option, reason.error))
    for name, site in spent.sites.items():
        option, error = chosen.get(name, ("as it was", 0.0))
        rows.append([name, option, site.part, error, site.energy, site.latency, site.area])
    return rows


def _network_data(
    networks: Mapping[str, Network],
    accelerator: Accelerator | None,
    accuracy: Mapping[str, float] | None,
) -> dict[str, Any]:
    if not isinstance(networks, Mapping) or not networks:
        raise ValueError(f"found={networks!r}: must be a front, or a dict of networks by name")
    if accelerator is None:
        raise ValueError("accelerator=None: give the hardware that the networks run on")
    if accuracy is not None and accuracy.keys() != networks.keys():
        raise ValueError(f"accuracy: is of {[*accuracy]}; expected {[*networks]}")
    points: list[dict[str, Any]] = []
    for name, net in networks.items():
        spent = estimate(net, accelerator)
        reached = float("nan") if accuracy is None else accuracy[name]
        facts = _totals(spent) if accuracy is None else {"accuracy": reached, **_totals(spent)}
        chains = {s: " ".join(map(repr, chain)) for s, chain in net.cores.items()}
        sites = [
            [n, chains.get(n, "float"), s.part, None, s.energy, s.latency, s.area]
            for n, s in spent.sites.items()
        ]
        points.append(
            {
                "name": name,
                "group": "networks",
                "best": False,
                "cost": spent.energy,
                "accuracy": reached if accuracy is not None else spent.latency,
                "deviation": 0.0,
                "facts": facts,
                "components": {**spent.components, **spent.memory},
                "sites": sites,
                "recipe": "\n".join(f"{site}: {chain}" for site, chain in chains.items()),
            }
        )
    return {
        "about": "Energy, time and area are of an analytic model and no measurement.",
        "cost": _UNITS["energy"],
        "accuracy": _UNITS["latency"] if accuracy is None else "accuracy",
        "points": points,
    }


def _counted(point: Point) -> list[str]:
    counts: dict[str, int] = {}
    for name in point.by_place.values():
        counts[name] = counts.get(name, 0) + 1
    return [f"{count} × {name}" for name, count in counts.items()]


def _totals(spent: Estimate) -> dict[str, float]:
    return {unit: getattr(spent, name) for name, unit in _UNITS.items()}


def _finite(value: Any) -> Any:
    """JSON has no infinite numbers."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
