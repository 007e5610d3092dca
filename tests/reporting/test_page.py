"""The page: self-contained, complete, readable by a browser without a network."""

from __future__ import annotations

import html
import json
import math
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tvm_tinytrain as tt
from tests.needs import TOOLS
from tvm_tinytrain.cli import main
from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.fewshot.methods import METHODS
from tvm_tinytrain.reporting import Report, SessionRecord
from tvm_tinytrain.reporting.charts import method_looks
from tvm_tinytrain.selection import FisherMap

ROWS = [
    {
        "network": "small", "sampler": "5-way 5-shot", "domain": domain, "method": method, "rate_by": "domain", "tasks": 20,
        "accuracy": 0.6 + 0.05 * i, "interval": 0.02, "gain": 0.05 * i, "gain_interval": 0.01, "memory_bytes": 65536.0,
        "peak_bytes": 65536, "backward_macs": 1.5e6, "seconds": 1.0,
    }
    for domain in ("Signs-43", "Textures-10")
    for i, method in enumerate(("none", "lastlayer", "tinytrain"))
]  # fmt: skip


def build(**options: Any) -> tt.TrainModule:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)
    )
    return tt.build(net, "host", example_inputs=(torch.zeros(1, 3, 8, 8),), name="net", **options)


@pytest.fixture(scope="module")
def module() -> tt.TrainModule:
    return build()


@pytest.fixture(scope="module")
def adaptive() -> tt.TrainModule:
    return build(update=tt.TaskAdaptive(candidates=2))


def session() -> SessionRecord:
    rng = np.random.default_rng(0)
    fisher = FisherMap({0: rng.random(4).astype(np.float32), 1: np.array([0.0, 1e-9, 1.0], np.float32)})
    return SessionRecord((1.5, 1.1, 0.7), (0.4, 0.6, 0.9), fisher, tt.UpdatePlan.from_channels({1: [2]}))


def test_the_page_holds_every_section_and_loads_nothing(adaptive: tt.TrainModule, tmp_path: Path) -> None:
    files = Report(adaptive, session(), ROWS).write(tmp_path / "page.html", pictures=True)
    text = files[0].read_text(encoding="utf-8")
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles[:4] == [
        "Adaptation",
        "Fisher map and selection",
        "Accuracy: small, 5-way 5-shot, rate by domain",
        "Cost by layer",
    ]
    assert {"Memory plan of predict", "Memory plan of accumulate", "Bytes by role"} <= set(titles)
    assert (
        not re.search(r"(?:src|href)=\"(?!data:)", text) and "<script" not in text and "@import" not in text
    )
    pictures = {f.name for f in files[1:]}
    assert {"page-loss.png", "page-fisher.png", "page-accuracy.png", "page-layers.png"} <= pictures
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files[1:])


def test_an_archive_is_drawn_as_the_module_it_was_made_from(module: tt.TrainModule, tmp_path: Path) -> None:
    back = tt.load(module.export(tmp_path / "net.tar"))
    pages = [
        Report(m).write(tmp_path / f"{i}.html")[0].read_text("utf-8") for i, m in enumerate((module, back))
    ]
    pictures = [re.findall(r"src=\"data:image/png[^\"]*", page) for page in pages]
    assert len(pictures[0]) == 3 and pictures[0] == pictures[1]  # the layers, the plans of both entries


def test_what_the_device_will_choose_is_not_called_frozen(adaptive: tt.TrainModule) -> None:
    """A task-adaptive module has candidates, and trains nothing before a session."""
    before, after = Report(adaptive).html(), Report(adaptive, session()).html()
    assert "layers to choose from, on the device</span><b>2 of 2" in before and "<td>?/3</td>" in before
    assert "trained layers" not in before and "the device chooses what it trains" in before
    assert "trained layers</span><b>1 of 2" in after and "<td>1/3</td>" in after


def test_bytes_that_have_no_place_are_among_the_bytes(adaptive: tt.TrainModule) -> None:
    """The device's channels: their weights, optimizer state and gradients are no tensors of a role."""
    page, training = Report(adaptive).html(), adaptive.metadata["training"]
    rows = dict(re.findall(r"<tr><td[^>]*>([^<]*) of trained channels</td><td[^>]*>([\d,]+)", page))
    assert int(rows["gradients"].replace(",", "")) == training["gradient_bytes"] > 0
    assert set(rows) == {"weights", "gradients", "lists of channels"}  # SGD keeps no state
    assert "of trained channels" not in Report(build()).html()


def test_no_two_methods_look_alike() -> None:
    for methods in (METHODS, METHODS[1:], ("none",)):
        looks = method_looks(methods)
        assert list(looks) == list(methods) and len(set(looks.values())) == len(methods)


def test_the_same_report_gives_the_same_bytes(adaptive: tt.TrainModule) -> None:
    assert Report(adaptive, session(), ROWS).html() == Report(adaptive, session(), ROWS).html()


def test_parts_may_be_missing_and_a_notebook_shows_it() -> None:
    page = Report(accuracy=ROWS).html()
    assert "<h2>Accuracy" in page and "Mean over 20 tasks" in page
    single = [{**row, "tasks": 1, "interval": None} for row in ROWS]
    assert "One task for each domain: there is no interval" in Report(accuracy=single).html()
    assert "<h2>Adaptation" in Report(session=SessionRecord((1.0,)))._repr_html_()


def test_what_a_picture_cannot_show_is_said() -> None:
    missing = [{**row, "domain": row["domain"].replace("Signs", "花")} for row in ROWS[:-1]]
    page = Report(accuracy=missing).html()
    assert "Not every method has all 2 domains: there is no mean." in page
    assert "domain 1 is 花-43" in page and "domain 2 is" not in page
    with pytest.raises(ArchiveError, match="rows 0 and 6: none on Signs-43 twice"):
        Report(accuracy=[*ROWS, ROWS[0]])
    page = Report(
        session=SessionRecord((1.0, math.nan), fisher=FisherMap({0: np.zeros(2, np.float32)}))
    ).html()
    assert "In 1 of 2 iterations the loss is no finite number" in page and "All potentials are 0." in page


def test_the_pool_of_the_cache_and_the_order_of_entries(tmp_path: Path) -> None:
    """An archive's JSON is sorted by name."""
    pooled = build(update=tt.TaskAdaptive(candidates=2, cache_bytes=4096))
    for shown in (pooled, tt.load(pooled.export(tmp_path / "net.tar"))):
        assert "cache pool (TT_CACHE_SECTION)</span><b>4.0 KiB" in Report(shown).html()
        text = shown.report()
        assert "cache pool 4096 B, in TT_CACHE_SECTION" in text
        entries = re.findall(r"^  (\w+): peak", text, re.MULTILINE)
        assert re.findall("<h2>Memory plan of (.*?)</h2>", Report(shown).html()) == entries
        assert entries == [e for e in shown.metadata["entries"] if e in entries] and len(entries) > 2


def test_a_session_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    session().save(path)
    assert SessionRecord.load(path) == session()
    path.write_text("{}")
    with pytest.raises(ArchiveError):
        SessionRecord.load(path)


def test_a_session_whose_accuracies_are_too_few_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    SessionRecord((1.5, 1.1, 0.7), (0.4, 0.6)).save(path)
    with pytest.raises(ArchiveError, match="3 losses and 2 accuracies"):
        SessionRecord.load(path)
    SessionRecord((1.5, 1.1, 0.7)).save(path)  # of `learn`
    assert SessionRecord.load(path).accuracies == ()


def test_the_session_of_another_library_is_refused(
    module: tt.TrainModule, adaptive: tt.TrainModule, tmp_path: Path
) -> None:
    """Also by layers and channels: files of before do not say whose they are."""
    path = tmp_path / "session.json"
    named = replace(session(), library=adaptive.metadata["digest"])
    named.save(path)
    assert SessionRecord.load(path) == named and Report(adaptive, named).html()
    fields = json.loads(path.read_text())
    del fields["library"]
    path.write_text(json.dumps(fields))
    assert SessionRecord.load(path) == session()
    other = replace(named, library="0" * 64)
    for record, says in (
        (other, f"of library {other.library}; allowed of library {adaptive.metadata['digest']}"),
        (replace(session(), plan=tt.UpdatePlan.from_channels({2: [0]})), "1 channels of layer 2"),
        (replace(session(), plan=tt.UpdatePlan.from_channels({1: [3]})), "4 channels of layer 1"),
        (replace(session(), fisher=FisherMap({0: np.ones(3, np.float32)})), "3 channels of layer 0"),
    ):
        with pytest.raises(ArchiveError, match=f"report: session: found {says}"):
            Report(adaptive, record)
    with pytest.raises(ArchiveError, match="the library trains a fixed plan"):
        Report(module, session())
    assert Report(module, SessionRecord((1.0,), library=module.metadata["digest"])).html()


def test_the_file_of_a_session_that_diverged_is_json(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    SessionRecord((1.5, math.inf, math.nan)).save(path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["losses"] == [1.5, None, None]
    again = SessionRecord.load(path).losses
    assert again[0] == 1.5 and all(map(math.isnan, again[1:]))


def test_the_command(adaptive: tt.TrainModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = adaptive.export(tmp_path / "net.tar")
    session().save(tmp_path / "session.json")
    page = tmp_path / "page.html"
    assert (
        main(["report", str(archive), "--html", str(page), "--session", str(tmp_path / "session.json")]) == 0
    )
    assert f"wrote {page}" in capsys.readouterr().out and "<h2>Fisher map" in page.read_text(encoding="utf-8")
    assert main(["report", str(archive), "--html", str(page), "--json"]) == 0
    said = capsys.readouterr()
    shown = json.loads(said.out)
    assert shown["digest"] == adaptive.metadata["digest"] and shown["files"] == [str(page)]
    assert f"wrote {page}" in said.err
    assert main(["report", str(archive)]) == 0
    assert "net for host" in capsys.readouterr().out
    accuracy = (
        tmp_path / "accuracy.json"
    )  # as benchmarks.accuracy writes it, with sections that are no accuracies
    accuracy.write_text(
        json.dumps({"rows": [{"section": "agreement", "network": "net"}, *ROWS]}), encoding="utf-8"
    )
    assert main(["report", "--html", str(page), "--accuracy", str(accuracy)]) == 0
    assert "<h2>Accuracy" in page.read_text(encoding="utf-8")
    capsys.readouterr()
    accuracy.write_text('{"rows": [{"network": "net"}]}', encoding="utf-8")
    assert main(["report", "--html", str(page), "--accuracy", str(accuracy)]) == 1
    assert "no rows of accuracies" in capsys.readouterr().err
    assert main(["report"]) == 1
    assert "name an archive" in capsys.readouterr().err


def test_a_full_disk_leaves_what_was_there(
    module: tt.TrainModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a page in the place of a whole one would be no page at all."""
    page, record = tmp_path / "page.html", tmp_path / "session.json"
    for path in (page, record):
        path.write_text("as it was")
    wrote, count = Path.write_bytes, 0

    def full(path: Path, content: bytes) -> int:
        nonlocal count
        count += 1
        wrote(path, content[:100])
        if count > 1:
            raise OSError(28, "No space left on device")
        return 100

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Path, "write_text", lambda path, text, encoding: full(path, text.encode()))
    with pytest.raises(ArchiveError, match="No space left"):
        Report(module).write(page, pictures=True)
    with pytest.raises(ArchiveError, match="No space left"):
        session().save(record)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        "page.html": b"as it was",
        "session.json": b"as it was",
    }


@pytest.mark.needs("chromium")
def test_a_browser_shows_it_without_complaint(adaptive: tt.TrainModule, tmp_path: Path) -> None:
    page = Report(adaptive, session(), ROWS).write(tmp_path / "page.html")[0]
    shot = tmp_path / "shot.png"
    browser = next(name for name in TOOLS["chromium"].found_by if _found(name))
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1100,3000", f"--screenshot={shot}", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert shot.exists() and shot.stat().st_size > 20_000
    assert "CONSOLE" not in done.stderr


@pytest.mark.needs("chromium")
def test_nothing_is_wider_than_a_telephone(adaptive: tt.TrainModule, tmp_path: Path) -> None:
    """Pictures and tables are scrolled on their own there, and pictures stay large enough to be read."""
    page = Report(adaptive, session(), ROWS).html().replace("<details>", "<details open>")
    frame, measure = tmp_path / "frame.html", (
        "const d=f.contentDocument;document.title=[d.documentElement.scrollWidth,"
        "...[...d.images].map(i=>i.naturalWidth>0?i.width:0)].join()"
    )  # fmt: skip
    frame.write_text(
        f'<iframe id=f width=390 height=900 style="border:0" onload="{measure}" srcdoc="{html.escape(page)}"></iframe>'
    )
    browser = next(name for name in TOOLS["chromium"].found_by if _found(name))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r"<title>([\d,]+)</title>", done.stdout)
    assert found is not None, done.stderr[-2000:]
    width, *pictures = map(int, found[1].split(","))
    assert width <= 390
    assert len(pictures) == page.count("<img") >= 5 and min(pictures) >= 600


def _found(name: str) -> bool:
    import shutil

    return shutil.which(name) is not None


def test_a_module_shows_itself_in_a_notebook(module: tt.TrainModule, tmp_path: Path) -> None:
    text = module._repr_html_()
    assert text == Report(module).fragment()
    assert text.count("<img") >= 2
    assert "Memory plan of step" in text and "<html" not in text
    style = re.sub(r"@media[^{]*{(.*)}", r"\1", text[text.index("<style>") + 7 : text.index("</style>")])
    selectors = [s.strip() for rule in re.findall(r"([^{}]+){", style) for s in rule.split(",")]
    assert len(selectors) > 15 and all(
        re.match(r"\.tt\b", s) for s in selectors
    )  # other cells stay as they are
    assert tt.load(module.export(tmp_path / "net.tar"))._repr_html_() == text
