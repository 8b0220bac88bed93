"""What is built for others has all that it needs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[1])
import jax
start = time.process_time()
import jaxsim
seconds = time.process_time() - start
assert seconds < 1, seconds
assert jaxsim.__file__.startswith(sys.argv[1]), jaxsim.__file__
assert all(hasattr(jaxsim, name) for name in jaxsim.__all__)
from jaxsim.data import fashion_mnist
print(len(fashion_mnist("train", source="subset").labels))
"""


def ran(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_alone_is_the_package(tmp_path):
    """Its dependencies are this environment's; the checkout is not on the path."""
    pip = sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"
    ran(*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    ran(*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel)
    held = {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    source = {str(p.relative_to(ROOT)) for p in ROOT.glob("jaxsim/**/*.py")}
    assert source <= held
    assert {"jaxsim/py.typed", "jaxsim/data/fashion_mnist_subset.npz"} <= held
    assert all(name.startswith("jaxsim/") for name in held)
    assert ran(sys.executable, "-I", "-c", SCRIPT, tmp_path / "site", cwd=tmp_path) == "7000\n"
    command = tmp_path / "site" / "bin" / "jaxsim"
    path = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    assert "demo" in ran(sys.executable, command, "--help", cwd=tmp_path, env=path)
