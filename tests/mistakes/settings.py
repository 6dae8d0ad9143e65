"""Settings files that cannot be used."""

from .case import flags, settings

CASES = {
    "settings with an empty mean": (settings("mean = []\nstd = []"), 2, "mean"),
    "settings with a name in two spellings": (settings("batch_size = 3\nbatch-size = 4"), 2, "twice"),
    "YAML with a name twice": (settings("seed: 1\nseed: 2\n", "settings.yaml"), 2, "'seed' stands there twice"),
    "no config": (flags("--config", "nowhere.toml"), 2, "cannot read the settings"),
    "broken config": (settings("a = = 3"), 2, "is no TOML"),
    "misspelt setting": (settings("batchsize = 3"), 2, "did you mean 'batch_size'"),
    "setting of another kind": (settings('batch_size = "ten"'), 2, "batch_size = 'ten' is no integer"),
    "setting out of range": (settings("anneal_factor = 3"), 2, "anneal_factor"),
    **{
        f"settings with {about}": (settings(text), 2, words)
        for about, (text, words) in {
            "a list for a number": ("batch_size = [1]", "batch_size"),
            "a table for a number": ("[batch_size]\na = 1", "batch_size"),
            "a date for a path": ("masks = 1979-05-27", "masks"),
            "a number for a path": ("output = 3", "output"),
            "a word for a switch": ('fuse = "yes"', "fuse"),
            "a switch for a number": ("seed = true", "seed"),
            "a fraction for an integer": ("steps = 1.5", "steps"),
            "an unknown choice": ('criterion = "best"', "criterion"),
            "text for numbers": ('mean = "a,b"', "mean"),
            "too few numbers": ("mean = [0.5, 0.5, 0.5]\nstd = [0.5]", "mean"),
            "NaN": ("mask_lr = nan", "mask_lr"),
            "infinity": ("min_speedup = inf", "min_speedup"),
            "a huge integer": ("batch_size = 1000000000000000000000", "batch_size"),
            "a name twice": ("seed = 1\nseed = 2", "TOML"),
            "a control character": ('arch = "a\\u0000b"', "arch"),
            "a command's option": ('config = "x.toml"', "config"),
            "two targets": ("target_flops = 0.5\ntarget_latency = 0.5", "one target"),
            "no text": ("\0", "settings.toml"),
        }.items()
    },
    **{
        f"YAML with {about}": (settings(text, "settings.yaml"), 2, "settings.yaml")
        for about, text in {
            "a list": "- 1\n- 2\n",
            "a number": "3",
            "a tab": "a:\t- b\n\t- c",
            "an alias to nothing": "seed: *x",
            "an alias to itself": "a: &a [*a]",
            "code": "seed: !!python/object/apply:os.system ['touch hacked']",
            "two documents": "seed: 1\n---\nseed: 2\n",
            "an open bracket": "mean: [0.5",
            "depth": "[" * 100_000,
        }.items()
    },
    "settings of another format": (settings("{}", "settings.ini"), 2, "settings.ini"),
    "settings that are a folder": (lambda case: case.flags.extend(["--config", case.data]), 2, "settings"),
}
