"""Checkpoints of the training loop, whenever the process is killed."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from killing import kill_everywhere
from torch import nn

from hf_tokaccel.checks import UserError
from hf_tokaccel.training.loop import LOG, Loop, last_checkpoint


class Counting(Loop):
    """Its only weight is the number of its steps."""

    def __init__(self, work, resume=False, **options):
        settings = SimpleNamespace(work=work, log_every=1, save_every=1, stop_at=None, **options)
        super().__init__(Accelerator(cpu=True), settings, total=3)
        model = nn.Linear(1, 1, bias=False)
        self.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))
        if resume:
            self.restore(self.stored())
        else:
            self.check_new()

    def advance(self):
        self.state["step"] += 1
        with torch.no_grad():
            self.plain.weight.fill_(self.step)
        self.log(loss=0.0)
        self.save()

    def batches(self, last):
        return iter(())


def steps_of_log(work):
    return [json.loads(line)["step"] for line in (work / LOG).read_text().splitlines()]


def test_killed_at_every_point_of_a_checkpoint(tmp_path):
    """What is resumed is one of the two checkpoints, whole, and the log ends with its step."""
    work, found = tmp_path / "work", []
    (tmp_path / "before").mkdir()
    Counting(tmp_path / "before").advance()

    def prepare():
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(tmp_path / "before", work)

    def check(count):
        run = Counting(work, resume=True)
        assert run.plain.weight.item() == run.step
        assert steps_of_log(work) == list(range(1, run.step + 1))
        found.append(run.step)
        # It goes on, and the next checkpoint has the usual name.
        run.advance()
        assert last_checkpoint(work) == work / "checkpoint"
        assert sorted(path.name for path in work.iterdir()) == ["checkpoint", LOG]

    assert kill_everywhere(prepare, lambda: Counting(work, resume=True).advance(), check) > 10
    assert found == sorted(found)
    assert {1, 2} == set(found)


def test_a_checkpoint_that_older_versions_left_gutted(tmp_path):
    run = Counting(tmp_path)
    run.advance()
    run.accelerator.save_state(str(tmp_path / "checkpoint.new"))
    (tmp_path / "checkpoint.new" / "run.json").write_text(json.dumps({**run.state, "step": 2, "losses": []}))
    (tmp_path / "checkpoint" / "model.safetensors").unlink()
    assert Counting(tmp_path, resume=True).step == 2


def test_no_run_is_written_over(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        Counting(tmp_path, resume=True)
    (tmp_path / LOG).write_text('{"step": 1}\n')
    run = Counting(tmp_path)
    run.go()
    assert (tmp_path / "training_log-1.jsonl").read_text() == '{"step": 1}\n'
    run.advance()
    with pytest.raises(UserError, match="holds a checkpoint: add --resume"):
        Counting(tmp_path)
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"checkpoint .*checkpoint cannot be read \(\w+: "):
        Counting(tmp_path, resume=True)
