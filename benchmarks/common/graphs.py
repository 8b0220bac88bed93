"""The four real graphs that cascades are measured and tested on."""

from benchmarks.common import paths

DATA = paths.DATA / "influence"
FILES = {
    "email": ("email-Eu-core.txt", {}),
    "facebook": ("facebook_combined.txt", {"undirected": True}),
    "wiki": ("wiki-Vote.txt", {}),
    "NetHEPT": ("NetHEPT.txt", {"skip_lines": 1}),
}
# Ten nodes of high out-degree each.
SEEDS = {
    "facebook": [107, 1684, 1912, 3437, 0, 2543, 2347, 1888, 1800, 1663],
    "wiki": [2356, 702, 8, 431, 2471, 1066, 1427, 1054, 1261, 1038],
    "email": [160, 82, 121, 107, 86, 62, 13, 249, 183, 434],
    "NetHEPT": [196, 267, 66, 287, 474, 14, 239, 326, 592, 192],
}
