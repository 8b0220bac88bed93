"""Completing a matrix by trying every rule in turn, a panel at a time."""

from itertools import pairwise


def _bits(value):
    return frozenset(i for i in range(16) if value >> i & 1)


def _rows_follow(kind, attribute, rows, levels):
    if kind == "constant":
        return all(row[0] == row[1] == row[2] for row in rows)
    if kind == "distribute":
        first = set(rows[0])
        return len(first) == 3 and all(set(row) == first for row in rows)
    if attribute == "position":
        sets = [[_bits(v) for v in row] for row in rows]
        if kind == "arithmetic":
            return all(a | b == c for a, b, c in sets) or all(a - b == c for a, b, c in sets)
        for step in (-2, -1, 1, 2):

            def on(places, step=step):
                return frozenset((i + step) % levels for i in places)

            if all(on(a) == b and on(b) == c and a != b for a, b, c in sets):
                return True
        return False
    if kind == "progression":
        gaps = {b - a for row in rows for a, b in pairwise(row)}
        return len(gaps) == 1 and gaps <= {-2, -1, 1, 2}
    if attribute == "size":
        rows = [[v + 1 for v in row] for row in rows]
    return all(a + b == c for a, b, c in rows) or all(a - b == c for a, b, c in rows)


def completing(panels, places):
    """Which of eight choices complete a matrix of panels [16][C][4].

    Args:
      panels: symbols.
      places: how many a component has, each.
    """
    kinds = ("constant", "progression", "arithmetic", "distribute")
    found = []
    for choice in range(8):
        matrix = [*panels[:8], panels[8 + choice]]
        good = True
        for c, m in enumerate(places):
            for column, name in enumerate(("places", "type", "size", "color")):
                values = [int(p[c][column]) for p in matrix]
                rows = [values[0:3], values[3:6], values[6:9]]
                if name == "places":
                    counts = [[len(_bits(v)) for v in row] for row in rows]
                    good &= any(
                        _rows_follow(k, "number", counts, m) or _rows_follow(k, "position", rows, m)
                        for k in kinds
                    )
                else:
                    good &= any(
                        _rows_follow(k, name, rows, None)
                        for k in kinds
                        if (name, k) != ("type", "arithmetic")
                    )
        if good:
            found.append(choice)
    return found
