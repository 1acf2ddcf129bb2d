"""Fresh processes that need not import torch again: a server that has imported it and Transformers forks them.

To a test `run` is what `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)` is. Not fresh is
what the server has imported: torch, Transformers and the model files of its families, never this package. Of each kind
of start some test keeps a real process: a script by `accelerate launch` (test_evaluate_segmentation), a module by
`python -m` (test_scenes), and a script that loads with trust_remote_code before this package is imported (test_hub).
"""

import atexit
import functools
import gc
import importlib
import importlib.util
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path

# What the libraries read from the environment as they are imported, and so once for all processes of the server.
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "TORCH", "OMP_", "PYTHON")
PRELOADED = ("torch", "transformers", "transformers.modeling_utils", "transformers.pipelines")


def run(arguments, env=None, cwd=None, timeout=300) -> subprocess.CompletedProcess:
    """Run `python *arguments`, where these are (script, ...), ("-m", module, ...) or ("-c", code, ...).

    Args:
        env: changes of the environment.
        cwd: folder to run in, else that of the test.
        timeout: in seconds; then the process is killed and `subprocess.TimeoutExpired` is raised.
    """
    arguments, env = [str(argument) for argument in arguments], dict(env or {})
    fixed = [name for name in env if name.startswith(READ_AT_IMPORT) and env[name] != os.environ.get(name)]
    if fixed:
        raise ValueError(f"{fixed} cannot be changed here, since they are read at import: use subprocess.run")
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        order = {"arguments": arguments, "env": env, "cwd": str(cwd or os.getcwd()), "files": [*map(str, files)]}
        server.stdin.write(json.dumps(order | {"timeout": timeout}) + "\n")
        server.stdin.flush()
        code = json.loads(server.stdout.readline())
        written = [file.read_text() for file in files]
    if code is None:
        raise subprocess.TimeoutExpired(arguments, timeout, *written)
    return subprocess.CompletedProcess(arguments, code, *written)


@functools.cache
def _server() -> subprocess.Popen:
    """The server of this process, which ends with it."""
    command = [sys.executable, str(Path(__file__).resolve())]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    atexit.register(server.communicate, timeout=30)  # closes its input, upon which it ends
    return server


def _serve() -> None:
    """Answer each order, a line of JSON, with the exit code of its process, or null where it took too long."""
    del sys.path[0]  # this folder, which a fresh process does not see
    _preload()
    gc.collect()
    gc.freeze()  # so that children need not copy what they only collect
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        process = os.fork()
        if process == 0:
            _enter(order)
        answers.write(json.dumps(_wait(process, time.monotonic() + order["timeout"])) + "\n")


def _preload() -> None:
    """Import what takes long, in one thread, and see that it has started no other and nothing of ours."""
    for name in PRELOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    # Transformers imports a family's model as it is asked for; ours imports those that it accelerates.
    for file in sorted((Path(__file__).parents[1] / "hf_tokaccel" / "models").glob("[a-z]*.py")):
        package, name = f"transformers.models.{file.stem}", f"modeling_{file.stem}"
        if importlib.util.find_spec(package) and importlib.util.find_spec(f"{package}.{name}"):
            importlib.import_module(f"{package}.{name}")
    assert "hf_tokaccel" not in sys.modules


def _wait(process: int, end: float) -> int | None:
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return None
        time.sleep(0.01)


def _enter(order) -> None:
    """Become the process that was ordered; never return."""
    os.setsid()
    inputs = os.open(os.devnull, os.O_RDONLY)
    outputs = [os.open(file, os.O_WRONLY | os.O_CREAT, 0o600) for file in order["files"]]
    for source, target in zip((inputs, *outputs), range(3), strict=True):
        os.dup2(source, target)
    sys.stdin = os.fdopen(0, closefd=False)
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    try:
        _start(order["arguments"])
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        if not isinstance(exit.code, int | None):
            print(exit.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _start(arguments) -> None:
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    _serve()
