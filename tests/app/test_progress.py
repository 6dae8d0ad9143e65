"""Events of a run, and the lines that are made of them."""

import json

import pytest
import torch
from projects import FAST, interrupted, run

from bise_prune import MaskSet
from bise_prune.app import cli, pipeline
from bise_prune.app.display import line_of
from bise_prune.app.progress import EpochFigures, ProgressEvent, StageClock
from bise_prune.app.stages import search as searching
from bise_prune.errors import BiseError
from bise_prune.report.files import STATE_FILE


def test_an_event_is_one_line():
    figures = EpochFigures(loss=0.41234, unbiased_accuracy=0.713, num_open=1432, num_channels=2880, cost=0.64)
    assert line_of(ProgressEvent("search", 3, 12, figures, 130.0)) == (
        "search 3/12: loss 0.412, validation unbiased 71.3%, 1,432 of 2,880 channels open, cost 64%, 2 min left"
    )
    assert line_of(ProgressEvent("search", 12, 12, EpochFigures(1.0), 0.0)) == "search 12/12: loss 1.000"
    assert line_of(ProgressEvent("prune")) == "prune"
    assert line_of(ProgressEvent("search", 4, resumed_from=STATE_FILE)) == (
        "search: resumed after epoch 4, from search-state.pt"
    )
    assert line_of(ProgressEvent("search", 0, resumed_from=STATE_FILE)) == (
        "search: resumed within epoch 1, from search-state.pt"
    )


def test_the_time_left_is_that_of_the_epochs_that_this_run_has_finished():
    now, events = [100.0], []
    clock = StageClock(events.append, "point/", lambda: now[0])
    with clock.stage("search"):
        clock.resumed("search", 4, STATE_FILE)
        now[0] += 10
        clock.epoch("search", 5, 12, EpochFigures(1.0))
        now[0] += 20
        clock.epoch("search", 6, 12, EpochFigures(1.0))
    assert [event.seconds_left for event in events] == [None, None, 70.0, 90.0]
    assert {event.stage for event in events} == {"point/search"} and clock.timings == {"search": 30.0}
    with clock.stage("finetune"):
        now[0] += 2
        clock.epoch("finetune", 1, 3, EpochFigures(1.0))
    assert events[-1].seconds_left == 4.0


def test_a_run_without_a_terminal_has_one_line_for_each_stage_and_epoch(project, tmp_path, capsys):
    record = run(project, tmp_path / "out", "--finetune", "2", "--finetune-lr", "0.01")
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("the dense", "warning"))]
    epochs = len(record["history"])
    assert lines[:2] == ["load", "search"] and "\x1b" not in "".join(lines)
    searched, last = lines[2 : 2 + epochs], record["history"][-1]
    assert [line.split(":")[0] for line in searched] == [f"search {epoch}/10" for epoch in range(1, epochs + 1)]
    assert (
        f"loss {last['objective']:.3f}" in searched[-1] and f"{14 - last['closed']} of 14 channels open" in searched[-1]
    )
    assert f"validation unbiased {last['validation']['unbiased_accuracy']:.1%}" in searched[-1]
    rest = [line.split(":")[0] for line in lines[2 + epochs :]]
    assert rest == ["prune", "finetune", "finetune 1/2", "finetune 2/2", "ladder", "evaluate", "export", "measure"]
    masks = MaskSet.load(tmp_path / "out" / "masks.safetensors")
    assert masks.num_channels == 14


def test_a_line_comes_as_soon_as_its_epoch_is_over(project, tmp_path, capsys, monkeypatch):
    search, seen = searching.search, []

    def listening(*arguments, on_epoch, **options):
        def heard(record, total):
            on_epoch(record, total)
            seen.append(capsys.readouterr().err.splitlines()[-1].partition(":")[0])

        return search(*arguments, on_epoch=heard, **options)

    monkeypatch.setattr(searching, "search", listening)
    run(project, tmp_path / "out")
    assert seen == [f"search {epoch}/10" for epoch in range(1, len(seen) + 1)]


def test_a_resumed_search_says_so(project, tmp_path, capsys, monkeypatch):
    command = [project / "net.pt", "--data", project / "data", "--output", tmp_path / "out", *FAST]
    command = [str(argument) for argument in command]
    with monkeypatch.context() as patch:
        patch.setattr(searching, "search", interrupted(searching.search, after=2))
        assert cli.main(command) == 130
    capsys.readouterr()
    assert cli.main(command) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("the dense", "warning"))]
    assert lines[1:3] == ["search", "search: resumed after epoch 2, from search-state.pt"]
    assert lines[3].startswith("search 3/10: ")


def test_the_first_line_of_the_result_is_the_outcome(done, ran, tmp_path, capsys):
    project, record = ran
    sentence = "On the test split, the slim network's unbiased accuracy "
    page, card = ((project / "out" / name).read_text() for name in ("report.html", "README.md"))
    assert f'<p class="verdict {record["verdict"]}">{sentence}'.replace("'", "&#39;") in page
    assert f"slim\n\n**{sentence}" in card
    first = [done[0] / "net.pt", "--data", done[0] / "data", "--masks", done[0] / "out" / "masks.safetensors"]
    assert cli.main([str(a) for a in [*first, "--output", tmp_path / "out", "--device", "cpu"]]) == 0
    assert capsys.readouterr().out.startswith(sentence)


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_a_state_that_cannot_be_read_is_an_error(tmp_path, content):
    path = tmp_path / STATE_FILE
    if content is not None:
        path.write_bytes(content)
    else:
        torch.save([1], path)
    with pytest.raises(BiseError, match="delete it to start the search anew"):
        searching.finished_epochs(path)
    assert searching.finished_epochs(tmp_path / "none") is None


def test_a_function_of_ones_own_gets_the_events(project, tmp_path):
    events = []
    _, values = cli.command_settings([str(a) for a in (project / "net.pt", "--data", project / "data", *FAST)])
    record = pipeline.run(cli.run_config({**values, "output": tmp_path / "out", "resume": False}), events.append)
    assert json.dumps(record["verdict"]) and {event.stage for event in events} >= {"load", "search", "export"}
    (final,) = [e.figures for e in events if e.stage == "search" and e.done == len(record["history"])]
    assert final.loss == record["history"][-1]["objective"] and final.num_channels == 14
