"""Settings from files and flags: one table of names, and the command line above the file."""

import dataclasses
import subprocess
import sys
import tomllib

import pytest

from bise_prune.app import cli
from bise_prune.app.options import SETTINGS
from bise_prune.app.settings import read_settings, run_config, settings_of, write_settings
from bise_prune.config import STRONG, FinetuneConfig, RunConfig, SearchConfig
from bise_prune.errors import ConfigError


def parsed(*argv):
    return cli.command_settings([str(argument) for argument in argv])[1]


def test_every_setting_is_an_option_with_the_librarys_default():
    given = parsed()
    assert set(given) == {name for name in SETTINGS if not name.startswith("finetune_")}  # those need finetuning
    for config, names in ((RunConfig, SETTINGS), (SearchConfig, SETTINGS)):
        for field in dataclasses.fields(config):
            if field.name in names and field.default is not dataclasses.MISSING and field.name != "finetune":
                assert given[field.name] == field.default, field.name
    config = run_config({**given, "checkpoint": "x.pt", "output": "out", "finetune": 3})
    assert config == RunConfig(checkpoint="x.pt", output="out", finetune=FinetuneConfig(epochs=3))


def test_the_command_line_comes_before_the_file_and_the_file_before_the_defaults(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text(
        'checkpoint = "a.pt"\ndata = "birds"\nbatch-size = 7\nmi_weight = 2\nbias_columns = ["place", "sex"]\n'
        'fuse = false\nsweep = true\nrho = [0.9, 0.8]\nsize = 32\ntargets = [0.3, 0.5]\n'
    )  # fmt: skip
    given = parsed("--config", path, "--mi-weight", "3", "--no-sweep")
    assert str(given["checkpoint"]) == "a.pt" and given["data"] == "birds"
    assert (given["batch_size"], given["mi_weight"], given["anneal_every"]) == (7, 3.0, 10)
    assert list(given["bias_columns"]) == ["place", "sex"] and not given["fuse"] and not given["sweep"]
    assert given["rho"] == (0.9, 0.8) and given["size"] == (32, 32) and given["targets"] == (0.3, 0.5)
    again = parsed("b.pt", "--config", path, "--bias-column", "age", "--fuse")
    assert str(again["checkpoint"]) == "b.pt" and again["bias_columns"] == ["age"] and again["fuse"]


def test_a_target_on_the_command_line_takes_the_place_of_the_files(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text("targets = [0.3, 0.5]\nseed = 4\n")
    given = parsed("--config", path, "--target-flops", "0.4")
    assert (given["targets"], given["target_flops"], given["seed"]) == ((), 0.4, 4)


def test_settings_of_finetuning_need_finetuning():
    with pytest.raises(ConfigError, match="finetune_lr has no use without finetuning"):
        run_config({**parsed("--finetune-lr", "5"), "checkpoint": "a", "output": "b"})
    with pytest.raises(ConfigError, match="tune 'all' finetunes, and finetune is 0"):
        run_config({**parsed("--tune", "all", "--finetune", "0"), "checkpoint": "a", "output": "b"})
    assert run_config({**parsed("--tune", "all"), "checkpoint": "a", "output": "b"}).finetune == STRONG


def test_yaml_means_the_same(tmp_path):
    toml, yaml = tmp_path / "s.toml", tmp_path / "s.yaml"
    toml.write_text('data = "birds"\nfinetune = 2\nfinetune_lr = 0.01\nmean = [0.5, 0.5, 0.5]\n')
    yaml.write_text("data: birds\nfinetune: 2\nfinetune-lr: 0.01\nmean: [0.5, 0.5, 0.5]\n")
    assert parsed("--config", toml) == parsed("--config", yaml) != parsed()
    yaml.write_text("")
    assert parsed("--config", yaml) == parsed()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "batchsize = 3", "unknown setting 'batchsize': did you mean 'batch_size'"),
        ("a.toml", "nonsense = 3", "unknown setting 'nonsense'; see bise-prune --help"),
        ("a.toml", "data = ", "is no TOML: "),
        ("a.toml", "[search]\nseed = 3", "'search' is nested"),
        ("a.toml", "[data]\npath = 3", "'data' is nested"),
        ("a.toml", 'batch_size = "many"', "a.toml: batch_size = 'many' is no integer"),
        ("a.toml", 'sweep = "yes"', "a.toml: sweep = 'yes' is neither true nor false"),
        ("a.toml", "batch_size = true", r"a\.toml: batch_size = True is no integer"),
        ("a.toml", 'select = "luck"', "a.toml: select = 'luck' is none of auto, best"),
        ("a.yaml", "data: [", "a.yaml is no YAML: "),
        ("a.yaml", "- data", "a.yaml holds list, expected a table of settings"),
        ("a.ini", "data = 3", r"expected a \.toml or \.yaml file"),
    ],
)  # fmt: skip
def test_files_are_checked(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        parsed("--config", tmp_path / name)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the settings in .*: No such file"):
        read_settings(tmp_path / "none.toml")
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="it is no text in UTF-8"):
        read_settings(tmp_path / "a.toml")


def test_written_settings_read_back(tmp_path):
    config = RunConfig(
        checkpoint=tmp_path / 'a "quoted".pt', output=tmp_path / "out", data="birds, of ünknown kind",
        targets=(0.3, 0.5),
        bias_columns=("place", "age"), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), size=(32, 40), unsupervised=True,
        search=SearchConfig(seed=3, rho=(0.9,), weighting="alignment", min_temperature=1e-5),
        finetune=FinetuneConfig(epochs=2, weighting="none", rho=None, select="last"),
    )  # fmt: skip
    path = tmp_path / "config.toml"
    write_settings(path, config)
    values = tomllib.loads(path.read_text())
    assert "output" not in values and values["min_temperature"] == 1e-5 and values["size"] == [32, 40]
    given = {**parsed("--config", path), "output": config.output}
    given["bias_columns"] = tuple(given["bias_columns"])
    assert settings_of(run_config(given)) == settings_of(config)


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from bise_prune.app import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'torchvision', 'rich', 'yaml'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for title in (
        "checkpoint:",
        "data:",
        "result:",
        "search:",
        "bias labels:",
        "finetuning",
        "machine:",
        "exit codes:",
    ):
        assert title in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_scripts_know_the_options(shell, capsys):
    assert cli.main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert "target-sparsity" in script and "layer-floor" in script
