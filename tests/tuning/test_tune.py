"""The whole search on an emulated Cortex-M7: from the command line, killed in the middle, and what build() makes of its records."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tvm import tirx

import tvm_tinytrain as tt
from tests.patience import wait_until
from tvm_tinytrain.cli import main
from tvm_tinytrain.errors import ArchiveError, BoardError, PlanError, TargetError, TinyTrainError
from tvm_tinytrain.schedules.blocks import describe
from tvm_tinytrain.schedules.journal import Outcome
from tvm_tinytrain.schedules.records import load_records
from tvm_tinytrain.schedules.tune import UntunableError
from tvm_tinytrain.tuning import Progress, distinct_kernels, tune

pytest.importorskip("xgboost")
IMAGE = torch.zeros(1, 6, 5, 5)


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Conv2d(6, 10, 1)
        self.b = torch.nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).mean((2, 3)))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return Network().eval()


@pytest.mark.host_compiler
@pytest.mark.emulator
def test_killed_half_way_it_goes_on_and_ends_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes that are killed in the middle, then one that goes on, against one from the start."""
    torch.export.save(torch.export.export(network(), (IMAGE,)), tmp_path / "net.pt2")

    def command(name: str, jobs: int) -> list[str]:
        place = ["--work", str(tmp_path / name), "-o", str(tmp_path / f"{name}.json"), "--jobs", str(jobs)]
        return [
            "tune",
            "--network",
            str(tmp_path / "net.pt2"),
            "--trials",
            "4",
            "--update",
            "last-layer",
            *place,
        ]

    def lines(name: str) -> list[str]:
        return sorted(t for p in (tmp_path / name).rglob("*.jsonl") for t in p.read_text().splitlines())

    start = "import sys; from tvm_tinytrain.cli import main; sys.exit(main())"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    killed = subprocess.Popen(
        [sys.executable, "-c", start, *command("cut", 2)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    try:
        wait_until(lambda: len(lines("cut")) >= 4 or killed.poll() is not None)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    before = lines("cut")
    assert len(before) >= 4
    assert list((tmp_path / "cut").rglob("scratch-*")) and not list(temporary.glob("tinytrain-*"))
    assert main(command("whole", 1)) == 0 and main(command("cut", 1)) == 0
    assert not list(tmp_path.rglob("scratch-*")), "what the killed search left is cleared by the next one"
    assert len(before) < len(lines("cut")), "it was at its end before it was killed"
    assert set(before) <= set(lines("cut")) and lines("cut") == lines("whole")
    cut, whole = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("cut", "whole"))
    assert cut["records"] == whole["records"] and cut["command"] == shlex.join(
        ["tinytrain", *command("cut", 1)]
    )
    assert "wrote" in capsys.readouterr().out

    # build() finds the records, and the kernels change where they differ from the rule's own choice
    given = {"example_inputs": (IMAGE,), "update": tt.LastLayer(), "optimizer": tt.SGD(0.1)}
    own = tt.build(network(), "c -mcpu=cortex-m7", records=(), **given)
    tuned = tt.build(network(), "c -mcpu=cortex-m7", records=tmp_path / "cut.json", **given)
    better = [r for r in load_records(tmp_path / "cut.json") if r.cost < r.default_cost]
    assert (own.files != tuned.files) == bool(better)
    words = ["--update", "last-layer", "--lr", "0.1", "--records", str(tmp_path / "cut.json")]
    assert main(["compile", str(tmp_path / "net.pt2"), *words, "-o", str(tmp_path / "net.tar")]) == 0
    compiled = tt.load(tmp_path / "net.tar").files
    assert compiled["tt_model_kernels.c"] == tuned.files["tt_model_kernels.c"]


class Free:
    """Every candidate costs the same."""

    def __call__(self, kernels: Mapping[str, object]) -> dict[str, Outcome]:
        return {name: Outcome(1.0) for name in kernels}


def test_progress_and_modules(tmp_path: Path) -> None:
    module = tt.build(network(), "c -mcpu=cortex-m7", example_inputs=(IMAGE,), update=tt.FullTrain())
    seen: list[Progress] = []
    found = tune(module, trials=2, work_dir=tmp_path, progress=seen.append, measure=lambda func: Free())
    assert {r.kernel for r in found} == {
        "conv2d",
        "linear",
        "linear_input_grad",
        "conv2d_weight_grad",
        "linear_weight_grad",
    }
    assert seen[-1].index == seen[-1].kernels - 1 == len(found) - 1
    assert seen[-1].trials == seen[-1].most == 2


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    """The journals' folder cannot be written: the error of the process is raised here."""
    (tmp_path / "mps2-an500").mkdir()
    module = tt.build(network(), "c -mcpu=cortex-m7", example_inputs=(IMAGE,), update=tt.LastLayer())
    for key in distinct_kernels([module]):
        (tmp_path / "mps2-an500" / f"{key}.jsonl").write_text('{"search": "another"}\n')
    with pytest.raises(ArchiveError, match="another folder"):
        tune(module, trials=2, work_dir=tmp_path, processes=2)


class FreeButSome(Free):
    """Fails for kernels of which the description holds a text."""

    def __init__(self, func: tirx.PrimFunc, failing: str) -> None:
        self.fails = failing in describe(func)

    def __call__(self, kernels: Mapping[str, object]) -> dict[str, Outcome]:
        return dict.fromkeys(kernels, Outcome(None, "too large")) if self.fails else super().__call__(kernels)


def test_kernels_whose_own_choice_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Some of them are told; where it is all of them, the records of before stay."""
    module = tt.build(network(), "c -mcpu=cortex-m7", example_inputs=(IMAGE,), update=tt.LastLayer())
    given = {"trials": 2, "output": tmp_path / "r.json"}
    some = tune(module, work_dir=tmp_path, measure=lambda f: FreeButSome(f, "linear"), **given)
    assert [r.kernel for r in some] == ["conv2d"]
    assert load_records(tmp_path / "r.json") == some
    told = [r.getMessage() for r in caplog.records if r.name == "tvm_tinytrain.tuning"]
    assert len(told) == 2 and all("linear" in text and "found too large" in text for text in told)
    with pytest.raises(UntunableError, match="too large"):
        tune(module, work_dir=tmp_path / "all", measure=lambda f: FreeButSome(f, ""), **given)
    assert load_records(tmp_path / "r.json") == some


def test_ctrl_c_is_for_the_process_that_began_the_others() -> None:
    """In a process of its own: multiprocessing lets signals through with the first process that it starts."""
    program = (
        "import multiprocessing, pathlib, time\n"
        "from tvm_tinytrain.interrupts import ctrl_c_waits\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(60,), daemon=True)\n"
        "    with ctrl_c_waits():\n"
        "        child.start()\n"
        "    for pid in ('self', child.pid):\n"
        "        print(pathlib.Path(f'/proc/{pid}/status').read_text())\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    blocked = [int(line.split()[1], 16) for line in told.splitlines() if line.startswith("SigBlk")]
    assert [bool(mask >> signal.SIGINT - 1 & 1) for mask in blocked] == [False, True]


def test_one_folder_holds_one_search(tmp_path: Path) -> None:
    given: dict[str, Any] = {"trials": 2, "work_dir": tmp_path, "measure": lambda func: Free()}
    module = tt.build(network(), "c -mcpu=cortex-m7", example_inputs=(IMAGE,), update=tt.LastLayer())
    tune(module, **given)
    with pytest.raises(ArchiveError, match=r"another search: found {'seed': 0}; allowed {'seed': 1}"):
        tune(module, seed=1, **given)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"board": "raspberry-pi-4"}, BoardError, "raspberry-pi-4: found no port; .*tune-worker --port"),
        ({"port": "/dev/x", "measure": lambda func: Free()}, BoardError, "port /dev/x: .*tune-worker --port"),
        ({"target": "llvm -mcpu=x86-64-v3", "board": "host"}, TargetError, "kernels by LLVM; .* C target"),
        (
            {"target": "c -mcpu=cortex-m55"},
            TargetError,
            "found cortex-m55; allowed cortex-m7; choose a board",
        ),
        ({"seed": -1}, PlanError, "seed: found -1; allowed a whole number, 0 or more"),
        ({"trials": True}, PlanError, "trials: found True; allowed a whole number, 1 or more"),
        ({"processes": "2"}, PlanError, "processes: found '2'"),
        ({"processes": 0}, PlanError, "processes: found 0"),
        (
            {"processes": 2, "board": "host"},
            PlanError,
            "processes: found 2; allowed 1, or more on an emulated",
        ),
        (
            {"update": tt.FullTrain(), "nonsense": 3},
            PlanError,
            "update, nonsense: found beside a built library",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_before_any_work(
    given: dict[str, Any], error: type[TinyTrainError], message: str, tmp_path: Path
) -> None:
    module = tt.build(network(), "c -mcpu=cortex-m7", example_inputs=(IMAGE,), update=tt.LastLayer())
    with pytest.raises(error, match=message):
        tune(module, work_dir=tmp_path / "work", output=tmp_path / "r.json", **given)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    module = tt.build(network(), "c -mcpu=cortex-m7", example_inputs=(IMAGE,), update=tt.LastLayer())
    (tmp_path / "file").write_text("")
    given: dict[str, Any] = {"trials": 1, "measure": lambda func: pytest.fail("it was measured")}
    for places in (
        {"output": tmp_path},
        {"output": tmp_path / "file" / "r.json"},
        {"work_dir": tmp_path / "file"},
    ):
        with pytest.raises(ArchiveError, match="output"):
            tune(module, **{"work_dir": tmp_path / "w", **given, **places})
    with pytest.raises(PlanError, match="libraries: found none"):
        tune([], work_dir=tmp_path / "w")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--board raspberry-pi-4", "found no port"),
        ("--tracker 127.0.0.1:1 --board raspberry-pi-4 --port x", "beside another measurement"),
        ("--jobs 0", "--jobs: found 0; allowed 1 or more"),
        ("--seed -1", "--seed: found -1; allowed 0 or more"),
        ("--board host --jobs 2", "processes: found 2; allowed 1, or more on an emulated board"),
        ("--network net.pt2 --size 64", "--size: found 64 for net.pt2; allowed none here"),
        ("--network net.onnx --classes 3", "--classes: found 3 for net.onnx; allowed none here"),
        ("--network net.pt2 --weights net.pt", "--weights: found net.pt for net.pt2; allowed none here"),
        ("--weights net.pt --classes 3", "--classes: found 3 for a backbone of given weights"),
    ],
)
def test_the_command_refuses_it_in_one_line(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["tune", "--network", "mcunet", "-o", str(tmp_path / "r.json"), "--work", str(tmp_path / "w")]
    assert main([*given, *words.split()]) == 1
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_worker_without_a_board_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["tune-worker", "--tracker", "127.0.0.1:1"]
    assert main([*given, "--board", "raspberry-pi-4"]) == 1 and main([*given, "--count", "0"]) == 1
    said = capsys.readouterr().err
    assert "found no port" in said and "--count: found 0" in said


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match="no-such"):
        tune(network(), board="no-such", example_inputs=(IMAGE,))
    with pytest.raises(PlanError, match="trials"):
        tune(network(), trials=0, example_inputs=(IMAGE,))
    with pytest.raises(PlanError, match="tune-worker"):
        tune(network(), processes=2, measure=lambda func: Free(), example_inputs=(IMAGE,))
    torch.export.save(torch.export.export(network(), (IMAGE,)), tmp_path / "net.pt2")
    given = ["tune", "--network", str(tmp_path / "net.pt2"), "-o", str(tmp_path / "records.json")]
    for wrong in (
        "tail:x",
        "tail:3:7",
        "tail:3:0.5:7",
        "adaptive:none",
        "sparse:none",
        "adapterdrop:x",
        str(tmp_path / "none.json"),
    ):
        assert main([*given, "--update", wrong]) == 1
    assert not (tmp_path / "records.json").exists()
