"""Evaluators of several processes, brought together by torch.distributed."""

import numpy as np
import pytest

from gpubce import Evaluator
from gpubce.errors import OptionError, StateError
from tests.processes import finish, start

pytest.importorskip("torch", reason="PyTorch is not installed")

PROGRAM = """
import numpy as np, torch, torch.distributed as distributed
import gpubce
distributed.init_process_group("gloo", init_method="file://{file}", rank={rank}, world_size=2)
rng = np.random.default_rng(1)
logits, targets = torch.from_numpy(rng.normal(size=1000)), torch.from_numpy(rng.random(1000) < 0.3)
evaluator = gpubce.Evaluator(from_logits=True, metrics="all", threshold={threshold})
own = slice(0, 400) if {rank} == 0 else slice(400, 1000)
evaluator.update(logits[own], targets[own], groups=np.arange(1000)[own] % 2)
try:
    together = evaluator.sync()
    assert evaluator.report().count == own.stop - own.start
    assert str(evaluator.sync().state_dict()) == str(together.state_dict())
    print(together.state_dict())
except gpubce.errors.StateError as error:
    print(error)
distributed.barrier()
distributed.destroy_process_group()
"""


def in_two_processes(folder, thresholds=(0.5, 0.5)) -> list[str]:
    started = [
        start(PROGRAM.format(file=folder / "meeting", rank=rank, threshold=thresholds[rank])) for rank in range(2)
    ]
    return [finish(process) for process in started]


def test_every_process_has_what_all_have_seen(tmp_path):
    one, two = in_two_processes(tmp_path)
    assert one == two
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=1000), rng.random(1000) < 0.3
    expected = Evaluator(from_logits=True, metrics="all")
    for own in (slice(0, 400), slice(400, 1000)):
        part = Evaluator(from_logits=True, metrics="all")
        part.update(logits[own], targets[own], groups=np.arange(1000)[own] % 2)
        expected.merge(part)
    assert one == f"{expected.state_dict()}\n"


def test_other_options_are_refused_everywhere(tmp_path):
    for said in in_two_processes(tmp_path, (0.5, 0.25)):
        assert "different options" in said


def test_it_needs_a_group_and_no_window():
    with pytest.raises(StateError, match="init_process_group"):
        Evaluator().sync()
    with pytest.raises(OptionError, match="window"):
        Evaluator(window=3).sync()
