"""What the tests of the example scripts share."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch

from hf_tokaccel.evaluation import Result


def load_script(script):
    """A script as a module, in this process."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_main(script):
    """The `main` of a script, to be called in this process."""
    return load_script(script).main


def launch(script: Path, *arguments: str) -> str:
    """Run a script in a process of its own, with one thread, and return what it printed."""
    paths = os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, str(script), *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def launch_two(script: Path, *arguments: str) -> str:
    """Run a script on two processes with one thread each, and return what they printed."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", str(script), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_one_and_two(main, script, options, folder):
    """The results of one process and of two, and what the two printed; all with one thread, which rounds alike."""
    printed = launch_two(script, *options, "--output", str(folder / "two"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main([*options, "--output", str(folder / "one")]) == 0
    finally:
        torch.set_num_threads(threads)
    one, two = (Result.load(folder / name / "result.json") for name in ("one", "two"))
    assert (one.num_processes, two.num_processes) == (1, 2)
    return one, two, printed
