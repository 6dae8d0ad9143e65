"""Advice names options that exist, can help and are not set."""

from pathlib import Path

import pytest

from bise_prune.app.cli import command_settings
from bise_prune.config import FinetuneConfig, RunConfig, SearchConfig
from bise_prune.report.advice import ADVICE, advice


def config(**settings):
    return RunConfig(checkpoint=Path("net.pt"), output=Path("out"), **settings)


@pytest.mark.parametrize("flag", [entry.flag for entry in ADVICE if entry.flag])
def test_every_flag_is_an_option_that_takes_the_value(flag):
    command_settings(["net.pt", *flag.split()])


def test_options_of_the_search_are_named_only_if_one_ran_and_they_are_not_set():
    paper = config(search=SearchConfig(method="paper"))
    assert "--search paper" in advice(config(), True) and "--anneal-every" not in advice(config(), True)
    assert "--anneal-every" in advice(paper, True) and "--initial-logit" in advice(paper, True)
    assert "--search" not in advice(paper, True) and "--search" not in advice(config(), False)
    assert "--search" not in advice(config(target_sparsity=0.5), True)  # there its penalty fights the loss
    assert "--anneal-every" not in advice(paper, False) and "--initial-logit" not in advice(paper, False)
    given = config(search=SearchConfig(anneal_every=20, initial_logit=0.1), finetune=FinetuneConfig(epochs=2))
    assert advice(given, True) == ""
    assert advice(config(target_sparsity=0.5, finetune=FinetuneConfig(epochs=2)), False) == "a lower target sparsity"
    assert "--target-flops" in advice(config(target_flops=0.5), False)
