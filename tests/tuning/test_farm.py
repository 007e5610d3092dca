"""Two local workers at one tracker: shares of a batch, a worker that is killed, and a search over both."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tvm.rpc.tracker import Tracker as TvmTracker

from tests.patience import LATE_S, wait_until
from tests.schedules.kernel_cases import kernels
from tests.tuning.test_board_measure import does_not_fit, doubled, honest, unsafe, wrong
from tvm_tinytrain.board_measure import BoardMeasure, ImageError
from tvm_tinytrain.emit.kernel_set import emit_kernel_set
from tvm_tinytrain.errors import BoardError, TransportError
from tvm_tinytrain.farm import (
    FarmMeasure,
    Tracker,
    Workers,
    _serve,
    pack_request,
    process_of,
    unpack_answer,
    unpack_request,
)
from tvm_tinytrain.schedules.tune import Search, tune_kernel
from tvm_tinytrain.targets.boards import get_board

pytestmark = [pytest.mark.host_compiler, pytest.mark.emulator]
BOARD = get_board("mps2-an500")


@pytest.fixture(scope="module")
def tracker() -> Iterator[Tracker]:
    running = TvmTracker("127.0.0.1", port=9190, port_end=9390, silent=True)
    yield Tracker("127.0.0.1", running.port)
    running.terminate()


@pytest.fixture(scope="module")
def workers(tracker: Tracker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with Workers(BOARD, tracker, 2, work_dir=tmp_path_factory.mktemp("workers")) as made:
        wait_until(lambda: tracker.workers(BOARD.name) == 2)
        yield made


def test_a_batch_is_measured_as_on_one_board(tracker: Tracker, workers: Workers) -> None:
    candidates = {"a": unsafe(honest), "b": unsafe(wrong), "c": unsafe(honest)}
    assert tracker.workers(BOARD.name) == 2
    func = doubled(honest)
    assert FarmMeasure(func, BOARD, tracker, none_free_s=LATE_S)(candidates) == BoardMeasure(func, BOARD)(
        candidates
    )


def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    tracker: Tracker, workers: Workers, tmp_path: Path
) -> None:
    """A search over both workers, one of which is killed in the middle, ends with the records of one without accident."""
    pytest.importorskip("xgboost")
    func, core = kernels()["pointwise_primes"], BOARD.target.to_tvm()
    search = Search(10, 0, "instructions")
    alone = tune_kernel(func, core, BoardMeasure(func, BOARD), tmp_path / "alone", search)
    victim = process_of(workers.servers[0])
    killer = threading.Timer(0.3, lambda: os.kill(victim.pid, signal.SIGKILL))
    killer.start()
    farm = tune_kernel(
        func, core, FarmMeasure(func, BOARD, tracker, none_free_s=LATE_S), tmp_path / "farm", search
    )
    killer.join()
    wait_until(lambda: workers.replaced)
    assert victim.poll() is not None and workers.replaced == 1
    assert farm == alone
    lines = [sorted(next((tmp_path / n).glob("*.jsonl")).read_text().splitlines()) for n in ("alone", "farm")]
    assert lines[0] == lines[1]


def test_no_worker_and_no_tracker(tracker: Tracker) -> None:
    with pytest.raises(TransportError, match="tune-worker"):
        FarmMeasure(doubled(honest), get_board("mps2-an386"), tracker, none_free_s=0.3)({"a": unsafe(honest)})
    with pytest.raises(TransportError, match="rpc_tracker"):
        Tracker("127.0.0.1", 1).workers("x")
    for text in ("here", "here:", ":1", "here:x"):
        with pytest.raises(BoardError, match="host:port"):
            Tracker.parse(text)


def test_a_worker_whose_board_does_not_start_has_no_outcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that does not build is told apart: some candidate of it is to blame."""
    measure = BoardMeasure(doubled(honest), BOARD)
    library = emit_kernel_set("candidates", {"a": unsafe(honest)})
    request = pack_request(measure.problem, library, ["a"])
    (tmp_path / "qemu-system-arm").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "qemu-system-arm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(BoardError, match=BOARD.name) as caught:
        unpack_answer(_serve(BOARD.name, None, tmp_path / "work", request))
    assert not isinstance(caught.value, ImageError)
    library = emit_kernel_set("candidates", {"a": unsafe(does_not_fit)})
    with pytest.raises(ImageError, match="bytes too many"):
        unpack_answer(
            _serve(BOARD.name, None, tmp_path / "work", pack_request(measure.problem, library, ["a"]))
        )


def test_a_request_survives_the_way() -> None:
    measure = BoardMeasure(doubled(honest), BOARD)
    library = emit_kernel_set("candidates", {"a": unsafe(honest)})
    problem, again, names = unpack_request(pack_request(measure.problem, library, ["a"]))
    assert names == ["a"] and again.files == library.files and again.metadata == library.metadata
    assert problem.names == measure.problem.names and problem.written == measure.problem.written
    assert all((a == b).all() for a, b in zip(problem.expected, measure.problem.expected, strict=True))
