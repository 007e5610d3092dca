"""The shell: every command shows an example; a network goes from compile to a board that has adapted, without Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.building.adaptive_net import SHAPE, network
from tvm_tinytrain.cli import main

COMMANDS = ("compile", "adapt", "tune", "report", "boards", "bench", "project", "evaluate", "meta-train")
CLASSES = ("cat", "dog", "owl")


def run(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """The JSON that a command printed."""
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives (adaptive, and a plain one) and samples as a folder of class folders and as arrays."""
    from PIL import Image

    root = tmp_path_factory.mktemp("shell")
    program = torch.export.export(network(), (torch.zeros(SHAPE),))
    torch.export.save(program, root / "net.pt2")
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (len(CLASSES), 12, 12, 3))
    for part in ("support", "query"):
        arrays, labels = [], []
        for k, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(3):
                pixels = np.clip(patterns[k] + rng.normal(0, 25, patterns[k].shape), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
                arrays.append(pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - 1)
                labels.append(k)
        np.savez(root / f"{part}.npz", images=np.stack(arrays), labels=np.array(labels))
    net = str(root / "net.pt2")
    adaptive = ["--loss", "prototypical", "--accumulate", "--optimizer", "adam", "--update", "adaptive"]
    budgets = ["--memory", "20KB", "--compute", "0.6"]
    assert (
        main(["compile", net, *adaptive, *budgets, "--name", "adaptive", "-o", str(root / "adaptive.tar")])
        == 0
    )
    assert main(["compile", net, "--lr", "0.05", "--name", "plain", "-o", str(root / "plain.tar")]) == 0
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert f"example:\n  tinytrain {command}" in text
    assert "--json" in text


def test_compile_prints_its_metadata(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = ["--optimizer", "adam", "--state", "int8", "--recompute", "lowest"]
    archive = tmp_path / "new" / "deep" / "x.tar"
    found = run(capsys, "compile", folder / "net.pt2", "--update", "last-layer", *memory, "-o", archive)
    assert found["options"]["optimizer"]["fields"]["state"] == "int8"
    assert found["options"]["memory"]["fields"]["recompute"] == "lowest"
    assert found["archive"] == str(archive) and archive.stat().st_size > 1000
    assert found["entries"] == ["init", "predict", "step"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optimizer", "adam", "--momentum", "0.9"], "--momentum: found 0.9"),
        (["--state", "int8"], "--state: found int8"),
        (["--compute", "0.5", "--update", "last-layer"], "--compute: found 0.5"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    words: list[str], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(folder / "net.pt2"), "-o", str(tmp_path / "x.tar"), *words]) == 1
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_candidates_by_what_they_do(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compile", folder / "net.pt2", "-o", tmp_path / "x.tar", "--update"]
    every = run(capsys, *words, "adaptive")["adaptive"]["candidates"]
    assert run(capsys, *words, "adaptive:auto")["adaptive"]["candidates"] == every  # nothing widens there
    (tmp_path / "x.tar").unlink()
    for kind, found in (("expansions", "no expansion among layers"), ("some", "layer_kind: found 'some'")):
        assert main([*map(str, words), f"adaptive:{kind}"]) == 1
        assert found in capsys.readouterr().err
    assert not (tmp_path / "x.tar").exists()


def test_an_update_that_there_is_not(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compile", str(folder / "net.pt2"), "-o", str(tmp_path / "x.tar"), "--update"]
    for wrong in ("last_layer", "mcunet-99kb", ""):
        assert main([*words, wrong]) == 1
        said = f"--update {wrong}: found no such update; allowed full, last-layer, "
        assert said in (told := capsys.readouterr().err) and "adaptive:all, adaptive:expansions" in told
    for wrong in ("plan.json", "none/plan"):
        assert main([*words, wrong]) == 1
        assert f"No such file or directory: '{wrong}'; allowed full" in capsys.readouterr().err


def test_what_compile_says_to_a_person_is_the_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(folder / "net.pt2"), "-o", str(tmp_path / "x.tar")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model for c -mcpu=cortex-m7" and lines[-1] == f"wrote {tmp_path / 'x.tar'}"


@pytest.mark.emulator
def test_an_adaptive_library_learns_folders_of_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["adapt", folder / "adaptive.tar", "--board", "mps2-an500", "--iterations", 3]
    more = ["-o", tmp_path / "task.tt", "--record", tmp_path / "new" / "session.json"]
    found = run(capsys, *words, "--support", folder / "support", "--query", folder / "query", *more)
    assert found["classes"] == list(CLASSES)
    assert found["samples"] == 9 and found["iterations"] == 3
    assert found["query_accuracy_after"] >= 0.8
    assert sum(found["trained_channels"].values()) > 0
    assert 0 < found["arena_high_water_bytes"] <= found["arena_bytes"]
    assert (tmp_path / "task.tt").read_bytes()[:4] == b"TTCK"
    same = run(
        capsys,
        *words[:3],
        "host",
        *words[4:],
        "--support",
        folder / "support.npz",
        "--query",
        folder / "query.npz",
    )
    assert same["plan_digest"] == found["plan_digest"]
    assert same["loss_last"] == pytest.approx(found["loss_last"], rel=1e-4)
    assert (
        main(
            [
                "report",
                "--session",
                str(tmp_path / "new" / "session.json"),
                "--html",
                str(tmp_path / "page.html"),
            ]
        )
        == 0
    )


@pytest.mark.host_compiler
def test_a_plain_library_learns_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["adapt", folder / "plain.tar", "--board", "host", "--iterations", "8", "--lr", "0.05"]
    found = run(capsys, *words, "--support", folder / "support.npz", "--query", folder / "query.npz")
    assert found["loss_last"] < 0.8 * found["loss_first"]
    assert found["plan_digest"] is None and found["query_accuracy_after"] is not None


@pytest.mark.host_compiler
def test_a_library_of_steps_selects_and_learns_labels(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adaptive = ["--update", "adaptive", "--no-accumulate", "--optimizer", "adam", "--memory", "20KB"]
    made = run(capsys, "compile", folder / "net.pt2", *adaptive, "-o", tmp_path / "steps.tar")
    assert "step_cached" in made["entries"] and "accumulate" not in made["entries"]
    words = ["adapt", tmp_path / "steps.tar", "--board", "host", "--iterations", "8", "--lr", "0.01"]
    found = run(capsys, *words, "--support", folder / "support.npz", "-o", tmp_path / "task.tt")
    assert found["loss_last"] < 0.8 * found["loss_first"]
    assert sum(found["trained_channels"].values()) > 0
    assert (tmp_path / "task.tt").read_bytes()[:4] == b"TTCK"


@pytest.mark.emulator
def test_bench_counts_every_entry(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["bench", folder / "adaptive.tar", "--by-function", "--estimate", "stm32f746g-disco"]
    found = run(capsys, *words)
    assert found["unit"] == "instructions"
    rows = {row["entry"]: row for row in found["entries"]}
    assert {"fisher", "select", "accumulate", "apply", "predict"} <= set(rows)
    assert rows["accumulate"]["count"] > rows["predict"]["count"] > 0
    assert all(row["macs"] is None for row in rows.values())  # they depend on what is selected
    assert sum(rows["predict"]["functions"].values()) <= rows["predict"]["count"]
    assert rows["predict"]["estimates"][0]["seconds"] > 0
    plain = run(capsys, "bench", folder / "plain.tar", "--entries", "predict")["entries"][0]
    assert plain["count"] > plain["macs"] > 1000  # a core without vectors takes more than one for each
    monkeypatch.setenv("COLUMNS", "60")
    assert main([*map(str, words), "--entries", "accumulate_cached"]) == 0
    shown = capsys.readouterr().out
    assert "accumulate_cached" in shown and "MAC" not in shown
    again = run(capsys, *words, "--entries", "fisher_begin,fisher,select")
    assert [row["count"] for row in again["entries"]] == [
        rows[row["entry"]]["count"] for row in again["entries"]
    ]


@pytest.mark.emulator
def test_a_project_is_written_and_built(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(capsys, "project", folder / "plain.tar", "-o", tmp_path / "board", "--build")
    assert Path(found["program"]).exists() and 0 < found["flash_bytes"] < 1 << 20
    assert str(tmp_path / "board" / "README.md") in found["files"]
    found = run(capsys, "project", folder / "plain.tar", "--kind", "arduino", "-o", tmp_path / "arduino")
    assert str(tmp_path / "arduino" / "library.properties") in found["files"]


def test_tuning_prints_its_records(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two records that a search might find: what is measured is tested in tests/tuning."""
    from tvm_tinytrain import tuning
    from tvm_tinytrain.schedules.records import Record

    records = [
        Record("0123456789abcdef", "conv2d", "gemm", {"rows": 2}, cost, 100.0, "instructions")
        for cost in (60.0, 100.0)
    ]
    monkeypatch.setattr(tuning, "tune", lambda modules, **given: records)
    words = ["tune", "--network", folder / "net.pt2", "-o", tmp_path / "r.json"]
    found = run(capsys, *words, "--update", "last-layer")
    assert (found["kernels"], found["kernels_better"], found["unit"]) == (2, 1, "instructions")
    assert (found["default_cost"], found["cost"]) == (200.0, 160.0)
    assert [Record(**record) for record in found["records"]] == records
    assert (found["board"], found["output"]) == ("mps2-an500", str(tmp_path / "r.json"))


def test_tuning_takes_every_update_that_compile_takes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvm_tinytrain import tuning

    seen: list[Any] = []
    monkeypatch.setattr(tuning, "tune", lambda modules, **given: seen.extend(modules) or [])
    words = ["tune", "--network", folder / "net.pt2", "-o", tmp_path / "r.json"]
    run(capsys, *words, "--update", "bias-only", "adaptive", "tail:1:0.5")
    words[2:3] = ["mcunet", "--size", SHAPE[-1]]
    run(capsys, *words, "--update", "adaptive:expansions")
    bias, adaptive, tail, expansions = seen
    assert all(layer["bias"] and not layer["weight"] for layer in bias.metadata["plan"]["layers"])
    assert len(adaptive.metadata["adaptive"]["candidates"]) == len(adaptive.layers)
    assert len(tail.metadata["plan"]["layers"]) == 1
    assert [c["layer"] for c in expansions.metadata["adaptive"]["candidates"]] == [27, 30, 33, 36, 39]


def test_meta_training_prints_its_epochs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["meta-train", "--network", "mcunet", "--size", 32, "--data", folder / "support", "-o", tmp_path]
    few = ["--epochs", 2, "--warmup", 1, "--episodes", 1, "--ways", 2, "--shots", 1]
    found = run(capsys, *words, *few, "--validate", folder / "query")
    assert [epoch["epoch"] for epoch in found["epochs"]] == [1, 2]
    assert all(np.isfinite(epoch["loss"]) and 0 <= epoch["validation"] <= 1 for epoch in found["epochs"])
    assert Path(found["network"]).stat().st_size > 1000 and found["scale"] > 0
    torch.export.load(found["network"])


def test_boards_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {row["name"]: row for row in run(capsys, "boards")}
    assert {"host", "mps2-an500", "qemu-arm", "stm32f746g-disco", "jetson-nano"} <= set(rows)
    assert {m["kind"]: m["bytes"] for m in rows["stm32f746g-disco"]["memories"]} == {
        "flash": 1 << 20,
        "sram": 320 << 10,
    }
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["boards"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in rows.values():
        assert [row["name"], row["core"]] in [line[:2] for line in shown]
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setenv("PATH", "")
    assert main(["boards"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["mps2-an500", "qemu-system-arm,"] in [[*line[:1], *line[-2:-1]] for line in shown]
    rows = {row["name"]: row for row in run(capsys, "boards")}
    assert "qemu-system-arm" in rows["mps2-an500"]["missing"]
    assert any("apt-get install" in line for line in rows["mps2-an500"]["how_to_get"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adapt", "{}/plain.tar", "--support", "{}/net.pt2"], "arrays images and labels"),
        (["adapt", "{}/net.pt2", "--support", "{}/support"], "load: "),
        (["bench", "{}/none.tar"], "none.tar: found no such file; allowed a model library archive"),
        (["evaluate", "--network", "mcunet", "--data", "{}/none"], "none: found no such folder"),
        (["compile", "{}/net.pt2", "--lr", "-1", "-o", "{}/x.tar"], "SGD lr: found -1.0"),
        (["compile", "{}/net.pt2", "-o", "{}/net.pt2/x.tar"], "net.pt2: found a file; allowed a folder"),
        (
            ["bench", "{}/plain.tar", "--board", "host", "--entries", "fly"],
            "entry: found 'fly'; allowed predict, step",
        ),
        (
            ["bench", "{}/plain.tar", "--board", "mps2-an385", "--estimate", "stm32f746g-disco"],
            "found a count on mps2-an385 (cortex-m3); allowed instructions of an emulated core like cortex-m7",
        ),
        (["project", "{}/plain.tar", "--kind", "zephyr", "--build", "-o", "{}/z"], "--kind board"),
        (["project", "{}/plain.tar", "--board", "mars", "-o", "{}/z"], "'mars'; allowed host"),
        (
            ["project", "{}/plain.tar", "--kind", "cmake", "--board", "nrf52840-dk", "-o", "{}/z"],
            "board of kind cmake: found nrf52840-dk; allowed a board for kind bare-metal",
        ),
        (["bench", "{}/plain.tar", "--port", "/dev/ttyNOPE"], "port: found '/dev/ttyNOPE'; allowed no port"),
    ],
)
@pytest.mark.emulator
def test_errors_are_one_line(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("{}", str(folder)) for word in words]) == 1
    error = capsys.readouterr().err.strip()
    assert error.splitlines()[-1].startswith("tinytrain: error: ") and message in error
    assert "Traceback" not in error


def test_evaluate_says_before_its_work_where_it_cannot_write(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build").write_text("a file")
    monkeypatch.chdir(tmp_path)
    given = ["evaluate", "--network", "absent.pt2", "--data", str(folder / "support")]
    assert main(given) == 1 and "build: found a file; allowed a folder" in capsys.readouterr().err
    assert main([*given, "--state", "elsewhere/state.json"]) == 1
    assert "absent.pt2" in capsys.readouterr().err


def test_a_reader_that_has_enough_sees_no_traceback() -> None:
    """As in `tinytrain boards | head -1`."""
    command = [sys.executable, "-m", "tvm_tinytrain", "boards"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 1)
