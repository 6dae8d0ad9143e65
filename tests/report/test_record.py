"""The command is told without its folders."""

import sys

from bise_prune.report.record import command_line


def test_a_command_is_told_without_its_folders(monkeypatch):
    argv = ["/usr/bin/bise-prune", "/home/me/net.pt", "--data=/home/me/birds", "--data", "biased_mnist:/m,rho=0.9"]
    monkeypatch.setattr(sys, "argv", [*argv, "--text-column", "the text"])
    assert command_line() == ("bise-prune net.pt --data=birds --data biased_mnist:m,rho=0.9 --text-column 'the text'")
