"""The forked processes that stand for fresh ones: what the tests that use them rely on."""

import subprocess

import fresh
import pytest

STATE = """
import os, sys, torch
print(sys.argv[1:], "hf_tokaccel" in sys.modules, torch.get_num_threads(), os.environ.get("COLOUR"), os.getcwd())
print("a warning", file=sys.stderr)
torch.manual_seed(int(sys.argv[1]))
sys.exit(3)
"""


def test_a_process_gets_its_arguments_and_leaves_nothing_to_the_next(tmp_path):
    for number, colour in (("1", "red"), ("2", None)):
        done = fresh.run(["-c", STATE, number, "b"], env={"COLOUR": colour} if colour else None, cwd=tmp_path)
        assert done.stdout == f"{[number, 'b']} False 1 {colour} {tmp_path}\n"
        assert (done.returncode, done.stderr) == (3, "a warning\n")


def test_files_and_modules_start_as_python_starts_them(tmp_path):
    (tmp_path / "beside.py").write_text("NAME = 'beside'")
    script = tmp_path / "script.py"
    script.write_text("import sys, beside; print(__name__, sys.argv[1:], beside.NAME)")
    for arguments in ([script], ["-m", "script"]):
        done = fresh.run([*arguments, "x"], cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "__main__ ['x'] beside\n"), done.stderr


def test_errors_end_a_process_as_they_end_python():
    for code, status, said in (
        ("raise ValueError('no')", 1, "ValueError: no"),
        ("raise SystemExit('stop')", 1, "stop"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
    ):
        done = fresh.run(["-c", code])
        assert done.returncode == status
        assert said in done.stderr


def test_what_takes_too_long_is_ended():
    with pytest.raises(subprocess.TimeoutExpired):
        fresh.run(["-c", "import time; time.sleep(60)"], timeout=0.2)
    assert fresh.run(["-c", "print(1)"]).stdout == "1\n"


def test_what_libraries_have_read_already_cannot_be_changed():
    with pytest.raises(ValueError, match=r"\['HF_HOME'\] cannot be changed here.*subprocess.run"):
        fresh.run(["-c", ""], env={"HF_HOME": "/nowhere"})
