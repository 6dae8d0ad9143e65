"""Run what a table of the paper, or of the comparisons, needs; one JSON record a run, what is there is not run again.

    python benchmarks/run.py --table 7 --size full --seeds 0-2 --data-root data
    python benchmarks/run.py --table 1 8 peers --size small --seeds 0-4 --data-root data --minutes 10

``--data-root`` holds mnist/, cifar10/ and text/ (jigsaw_toxic_12k.csv.gz). Networks and masks stay in ``--work``, so
that tables share them; with ``--minutes`` the command ends in time with exit code 75, and the same command goes on
where it was, in the middle of a training or search if need be. ``python benchmarks/results.py`` writes pages
of docs from the records.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from records import RECORDS, base_record, peak_memory_bytes
from tables import trials
from tables.cases import Case, Clock, OutOfTime, rows_of
from tables.counts import counts
from tables.methods import METHODS
from tables.plans import PLANS, SAME
from tables.settings import SIZES, Setting

from bise_prune.errors import BiseError
from bise_prune.files import write_json

_ALONE = ("E.1", "trials")  # with a record of their own
_AGAIN = 75  # EX_TEMPFAIL: run the same command again


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", required=True, choices=[*PLANS, *SAME, *_ALONE], metavar="TABLE",
                        help=f"any of {', '.join([*PLANS, *SAME, *_ALONE])}")  # fmt: skip
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seeds", type=_seeds, default=[0, 1, 2], help="such as 0-2 or 0,3 (default: 0-2)")
    parser.add_argument("--rho", type=float, nargs="+", help="these shares of aligned samples alone")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help="these runs alone")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs"), help="folder for networks and masks (default: runs)")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder for the records")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, help="stop after this time; the same command goes on")
    arguments = parser.parse_args(argv)
    plans = [PLANS[SAME.get(table, table)] for table in arguments.table if table not in _ALONE]
    known = {rho for plan in plans for rho in plan.rhos(arguments.size)}
    if unknown := sorted(set(arguments.rho or ()) - known):
        there = ", ".join(f"{rho:g}" for rho in sorted(known)) if any(known) else "nothing to choose"
        parser.error(f"--rho: {unknown[0]:g} is in none of these tables at the size {arguments.size} (there: {there})")
    if arguments.device == "cpu":
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)  # gradients of memorised samples; arithmetic on them takes 40 times as long
    clock = Clock(arguments.minutes)
    try:
        if "E.1" in arguments.table:
            record = base_record([], "parameters and gates in the paper's places; nothing is trained", "cpu")
            write_json(arguments.records / "counts.json", {**record, "rows": counts()})
        if "trials" in arguments.table:
            record = base_record([0], " ".join((trials.__doc__ or "").split()), "cpu")
            write_json(
                arguments.records / "trials.json",
                {**record, "rows": trials.trials(arguments.data_root, arguments.work)},
            )
        for seed in arguments.seeds:
            for table in arguments.table:
                if table not in _ALONE:
                    _table(SAME.get(table, table), seed, arguments, clock)
    except OutOfTime:
        print("time is over; the same command goes on from here", file=sys.stderr)
        return _AGAIN
    except BiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _table(table: str, seed: int, arguments: argparse.Namespace, clock: Clock) -> None:
    plan = PLANS[table]
    setting = plan.setting(arguments.size)
    for rho in plan.rhos(arguments.size):
        if arguments.rho and rho not in arguments.rho:
            continue
        case: Case | None = None
        for name in plan.runs(arguments.size):
            path = arguments.records / record_name(setting, rho, name, seed)
            if path.exists() or (arguments.methods and name not in arguments.methods):
                continue
            if clock.is_over():
                raise OutOfTime
            case = case or Case(setting, rho, seed, arguments.data_root, arguments.work, arguments.device, clock)
            _one_run(case, name, path)


def record_name(setting: Setting, rho: float, method: str, seed: int) -> Path:
    """Where the record of a run lies in the folder of records."""
    return Path(setting.name, setting.size, *([f"rho-{rho:g}"] if rho else []), f"{method}-seed{seed}.json")


def _one_run(case: Case, name: str, path: Path) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    rows = rows_of(METHODS[name](case))
    record = base_record([case.seed], case.setting.protocol, case.device)
    record |= {
        "setting": case.setting.name,
        "size": case.setting.size,
        "rho": case.rho or None,
        "method": name,
        "seed": case.seed,
        "rule": case.setting.rule,
        "n": {"train": len(case.train), "test": len(case.test), "conflicting": case.num_conflicting},
        "rows": rows,
        "wall_seconds": round(time.perf_counter() - start, 1),  # of this run, beyond what the work folder had
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "process_peak_memory_bytes": peak_memory_bytes(),  # of this run and those before it in the process
    }
    write_json(path, record)
    told = {row: round(100 * figures["unbiased"], 1) for row, figures in rows.items() if figures.get("unbiased")}
    print(f"{path}: {told} {record['wall_seconds']} s", file=sys.stderr, flush=True)


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


if __name__ == "__main__":
    sys.exit(main())
