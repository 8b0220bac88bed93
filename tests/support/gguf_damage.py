"""Files of a tiny decoder, damaged at random, and what becomes of reading them.

`python -m tests.support.gguf_damage 20000` reads that many; the suite reads a few.
"""

import collections
import struct
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np

from jaxsim.models.llama import from_gguf, gguf_codes
from tests.support.llama_files import fields, gguf_file, tensors

LENGTHS = (0, 1, 2, 7, 31, 33, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1)


def damaged(content, draws):
    """The bytes of a file, damaged in one way or several."""
    content = bytearray(content)
    head = content.find(b"token_embd.weight") + 1500  # what describes the numbers
    for _ in range(draws.choice([1, 1, 1, 2, 4])):
        end = min(head, len(content)) if draws.random() < 0.8 else len(content)
        at = int(draws.integers(max(end - 8, 1)))
        match draws.choice(["cut", "flip", "byte", "length", "swap", "out", "in", "again"]):
            case "cut":
                del content[int(draws.integers(len(content) + 1)) :]
            case "flip":
                for place in draws.integers(end, size=draws.integers(1, 9)):
                    content[int(place) % len(content)] ^= 1 << int(draws.integers(8))
            case "byte":
                content[at : at + 1] = bytes([int(draws.integers(256))])
            case "length":
                form = "<Q" if draws.random() < 0.6 else "<I"
                value = int(draws.choice(np.array(LENGTHS, np.uint64))) % 256 ** struct.calcsize(
                    form
                )
                content[at : at + struct.calcsize(form)] = struct.pack(form, value)
            case "swap":
                other = int(draws.integers(max(end - 8, 1)))
                one, two = bytes(content[at : at + 8]), bytes(content[other : other + 8])
                content[at : at + len(one)] = two
                content[other : other + len(two)] = one
            case "out":
                del content[at : at + int(draws.integers(1, 40))]
            case "in":
                content[at:at] = draws.bytes(int(draws.integers(1, 40)))
            case "again":
                content[at:at] = content[at : at + int(draws.integers(1, 200))]
        if not content:
            break
    return bytes(content)


def outcome(path):
    """What reading a file comes to: "read", "refused" in one sentence, or what went wrong."""
    said = []
    for read in (from_gguf, gguf_codes):
        try:
            read(path)
            said.append("read")
        except ValueError as error:
            text = str(error)
            plain = text.startswith(repr(str(path))) and "\n" not in text and len(text) < 500
            said.append("refused" if plain else f"{read.__name__} said {text[:300]!r}")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of another language is no Exception
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            said.append(f"{read.__name__} raised {type(error).__name__} at {where}: {error}"[:300])
    return next((text for text in said if text not in ("read", "refused")), said[0])


def outcomes(count, folder, seed=0):
    """How often each outcome came, of damaged files of several kinds."""
    path, found = Path(folder) / "model.gguf", collections.Counter()
    whole = [gguf_file(fields(), tensors(), kind) for kind in ("Q4_1", "Q8_0", "F32")]
    for i in range(count):
        draws = np.random.default_rng((seed, i))
        path.write_bytes(damaged(whole[i % len(whole)], draws))
        found[outcome(path)] += 1
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for said, times in outcomes(int(sys.argv[1]), folder).most_common():
            print(times, said)
