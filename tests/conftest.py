"""What the tests share: the scripts as a user runs them, the drawn sample, one trained run."""
import contextlib
import importlib
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"     # before torch is imported; the tests run in a process for each core
# for the tests that ask for one; an empty variable is inherited from a process of these tests
WITH_GPUS = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES" or value}
os.environ["CUDA_VISIBLE_DEVICES"] = ""         # the others compare figures to the last digit

import datasets  # noqa: E402

# a shell's background job ignores Ctrl-C, and so would the scripts that it starts
signal.signal(signal.SIGINT, signal.default_int_handler)


def run(script: str, *args, cwd: Path, status: int = 0, launcher: tuple = (),
        **options) -> subprocess.CompletedProcess:
    """Run a script of the project in `cwd`; it must end with `status`, with 2 after one line on stderr.

    It runs in this process; with a launcher or options of subprocess.run, in a new one.
    """
    args = list(map(str, args))
    if launcher or options:
        command = [*map(str, launcher or (sys.executable,)), ROOT / script, *args]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, **options)
    else:
        out, err = io.StringIO(), io.StringIO()
        module = importlib.import_module(script.removesuffix(".py"))
        with (pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out),
              contextlib.redirect_stderr(err)):
            patch.setattr(sys, "argv", [script, *args])
            patch.chdir(cwd)
            with pytest.raises(SystemExit) as ended:
                datasets.script(module.main)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)       # the script handles it
        done = subprocess.CompletedProcess(args, ended.value.code or 0, out.getvalue(), err.getvalue())
    assert done.returncode == status, f"{done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    if status == 2:
        assert re.fullmatch(r"\S+: error: .+\n", done.stderr), done.stderr
    return done


def figures(log: Path) -> list[str]:
    """A log's lines of figures, without their times: the same for runs of the same settings."""
    texts = [re.sub(r"^\[.*?\] ", "", line) for line in log.read_text().splitlines()]
    return [text for text in texts if re.match(r"lr :|Train epoch| {10}|\[Valid\]|----", text)]


def picture(path: Path, seed: int = 0, size: tuple = (20, 20)) -> Path:
    """A small JPEG or PNG of noise at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    """A working folder with data/sample in it."""
    folder = tmp_path_factory.mktemp("work")
    datasets.draw_sample(folder / "data/sample")
    return folder


@pytest.fixture(scope="session")
def trained(work) -> Path:
    """The log of a run of all three tasks on the sample, two epochs; work/checkpoints has what it saved."""
    run("train.py", "--data", "sample", "--image-size", 32, "--epochs", 2, cwd=work, env=None)
    (log,) = (work / "logs").glob("*.txt")
    return log
