"""Damaged files give every reader arrays, or a ValueError that says what is wrong; nothing else.

`python -m tests.data.test_readers 100000` damages that many files of each kind.
"""

import gzip
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from jaxsim.cascades.labeled import load_edgelist
from jaxsim.cascades.sample import load_cascades
from jaxsim.checkpoint.packing import Form, pack, unpack
from jaxsim.cli.recipe import read_recipe
from jaxsim.data import read_idx, read_torch_weights
from jaxsim.data.safetensors import read_safetensors
from jaxsim.data.text import ag_news, sst2
from tests.cli.test_recipe import RECIPE
from tests.data.test_safetensors import GOOD as SAFETENSORS
from tests.data.test_torch_weights import content as torch_weights

CODES = np.arange(24, dtype=np.int8).reshape(4, 6) - 12
IDX = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]) + bytes(range(24))
EDGES = "# nodes 4\n0 1 0.5\n1\t2\t1e-1\n2,3,1\n-7 0 .25\n"
NEWS = '"3","Shares up","They rose by 2\\% on ""news""."\n"1","Vote","It is over."\n'
FILMS = "a fine film\t1\nit is long , and dull\t0\n"
CASCADES = "first a,0 b,1.5 c,2\nb,0 a,0.25\n\nc,1e1\n"


def packed(path):
    forms = [Form(CODES.shape, CODES.dtype), Form((5,), np.dtype("float32"))]
    return unpack(path.read_bytes(), forms)


def named(name, read):
    """A reader of a folder that looks for a file of this name."""
    return lambda path: read(path.rename(path.with_name(name)).parent)


READERS = {
    "idx": (IDX, read_idx),
    "idx, compressed": (gzip.compress(IDX, mtime=0), read_idx),
    "weights of PyTorch": (torch_weights("zipped"), read_torch_weights),
    "weights of PyTorch, older": (torch_weights("older"), read_torch_weights),
    "packed network": (pack([CODES, np.linspace(0, 1, 5, dtype=np.float32)]), packed),
    "edges": (EDGES.encode(), lambda path: load_edgelist(path, probabilities=True)),
    "cascades": (CASCADES.encode(), lambda path: load_cascades(path, width=1.0)),
    "safetensors": (SAFETENSORS, read_safetensors),
    "AG News": (NEWS.encode(), named("ag_news_test.csv", lambda path: ag_news("test", path))),
    "SST-2": (FILMS.encode(), named("sst2_dev.tsv", lambda path: sst2("dev", path))),
    "recipe": (RECIPE.encode(), read_recipe),
}


def damaged(content, rng):
    """One to three bits flipped, runs of bytes replaced, left out, put in or repeated; or cut."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at, run = int(rng.integers(len(content) + 1)), int(rng.integers(1, 9))
        match rng.integers(6):
            case 0 if at < len(content):
                content[at] ^= 1 << rng.integers(8)
            case 1:
                content[at : at + run] = rng.bytes(run)
            case 2:
                del content[at : at + run]
            case 3:
                content[at:at] = rng.bytes(run)
            case 4:
                content[at:at] = content[at : at + run]
            case _:
                del content[at:]
    return bytes(content)


def hunt(name, count, folder, seed=0):
    """How many of `count` damaged files a reader refuses."""
    content, read = READERS[name]
    path, refused = Path(folder) / "damaged", 0
    for i in range(count):
        # of the kind and the number alone, so that one that is found can be made again
        path.write_bytes(damaged(content, np.random.default_rng((seed, i, len(content)))))
        try:
            read(path)
        except ValueError:
            refused += 1
        except BaseException as error:
            error.add_note(f"{name}, file {i} of seed {seed}")
            raise
    return refused


@pytest.mark.filterwarnings("ignore:.*input contained no data:UserWarning")
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path):
    (tmp_path / "damaged").write_bytes(READERS[name][0])
    READERS[name][1](tmp_path / "damaged")
    assert hunt(name, 200, tmp_path) > 20


if __name__ == "__main__":
    for kind in READERS:
        with tempfile.TemporaryDirectory() as made:
            print(kind, hunt(kind, int(sys.argv[1]), made), "refused of", sys.argv[1], flush=True)
