"""Options that cannot be used, or not together."""

from .case import all_of, flags, write

CASES = {
    "empty output": (flags("--output", ""), 2, "is no path"),
    "empty masks": (flags("--masks", ""), 2, "is no path"),
    "tiny crop": (flags("--crop", "1e-9"), 2, "crop"),
    "model repository below a file": (all_of(write("x", "x"), flags("--triton", "x/models")), 2, "--triton"),
    "model repository that cannot be": (flags("--triton", "/proc/x"), 2, "--triton"),
    "output that cannot be": (flags("--output", "/proc/x"), 2, "--output"),
    "checkpoint whose name is no text": (
        lambda case: setattr(case, "net", case.net.rename(case.root / "n\udcff.pt")),
        2,
        "UTF-8",
    ),
    "output whose name is no text": (flags("--output", "o\udcff"), 2, "UTF-8"),
    "targets that are nearly equal": (flags("--targets", "0.3,0.30000000001"), 2, "targets"),
    "unknown flag": (flags("--targets-sparsity", "0.5"), 2, "unrecognized arguments"),
    "sparsity out of range": (flags("--target-sparsity", "1.5"), 2, "target_sparsity"),
    "sparsity as a word": (flags("--target-sparsity", "half"), 2, "neither 'auto' nor a number"),
    "two targets": (flags("--target-sparsity", "0.5", "--target-flops", "0.5"), 2, "give one target"),
    "target that nothing reaches": (flags("--target-sparsity", "0.999"), 1, "0.999"),
    "batch of none": (flags("--batch-size", "0"), 2, "batch_size"),
    "mean without std": (flags("--mean", "0.5,0.5,0.5"), 2, "mean"),
    "mean that is no number": (flags("--mean", "nan,0,0", "--std", "1,1,1"), 2, "mean"),
    "size for data that make their images": (
        all_of(lambda case: setattr(case, "data", "digits,samples=1000"), flags("--size", "64")),
        2,
        "size has no use",
    ),
    "finetuning rate without finetuning": (flags("--finetune-lr", "1"), 2, "has no use without finetuning"),
    "finetuning in no epoch": (flags("--tune", "all", "--finetune", "0"), 2, "finetune is 0: give the number"),
    "size of words": (flags("--size", "big"), 2, "no size such as"),
    "device that is not there": (flags("--device", "cuda:7"), 2, "cuda:7"),
    "unknown device": (flags("--device", "tpu"), 2, "tpu"),
    "graphs without a GPU": (flags("--cuda-graphs"), 2, "needs a CUDA device"),
    "masks that are not there": (flags("--masks", "none.safetensors"), 1, "none.safetensors"),
    "masks that are no masks": (
        all_of(write("m.safetensors", b"12345678{}"), lambda case: case.flags.extend(["--masks", "m.safetensors"])),
        1,
        "m.safetensors",
    ),
    "plan that is no plan": (
        all_of(write("p.json", "{}"), lambda case: case.flags.extend(["--plan", case.root / "p.json"])),
        1,
        "p.json",
    ),
    "nothing to resume": (flags("--resume"), 2, "nothing to resume"),
    "probe without bias labels": (
        all_of(lambda case: case.rename("bias", "colour"), flags("--probe", "--unsupervised")),
        2,
        "--probe needs",
    ),
    "several biases and one weight": (
        all_of(
            lambda case: case.table(lambda rows: [{**r, "bias_2": r["bias"]} for r in rows]),
            flags("--weighting", "subgroup"),
        ),
        2,
        "takes one bias",
    ),
    # each number, at values that no number may have
    **{
        f"{flag} {value}": (flags(flag, value), 2, flag.rpartition("-")[2])
        for flag in (
            "--batch-size",
            "--steps",
            "--seed",
            "--mask-lr",
            "--head-lr",
            "--mi-weight",
            "--min-speedup",
            "--target-flops",
            "--target-latency",
            "--layer-floor",
            "--crop",
            "--format-tolerance",
            "--opset",
            "--anneal-every",
        )
        for value in ("-1", "nan", "1e400", "half", "")
        if (flag, value) not in {("--min-speedup", "-1")}
    },
    "option with a NUL": (flags("--arch", "a\0b"), 2, "arch"),
    "path with a NUL": (flags("--output", "a\0b"), 2, "output"),
    "five thousand digits": (flags("--seed", "9" * 5000), 2, "seed"),
    "digits of another script": (flags("--batch-size", "٣x"), 2, "batch"),
    "targets that are none": (flags("--targets", "0.3,,0.5"), 2, "targets"),
    "targets out of range": (flags("--targets", "0.3,1.5"), 2, "targets"),
    "targets that repeat": (flags("--targets", "0.5,0.3,0.5"), 2, "targets"),
    "targets beside a target": (flags("--targets", "0.3,0.5", "--target-flops", "0.5"), 2, "target"),
    "an unknown logger": (flags("--log", "excel"), 2, "excel"),
    "an opset of the past": (flags("--opset", "3"), 2, "opset"),
    "classes that repeat": (flags("--classes", "a,a,b"), 2, "classes"),
    "classes beside numbers": (flags("--classes", "a,b"), 2, "classes names 2 of the network's 3 classes"),
    "crop without a size": (flags("--crop", "2"), 2, "crop"),
    "masks and a plan": (flags("--masks", "m", "--plan", "p"), 2, "plan"),
    "masks of a random criterion": (flags("--criterion", "random"), 2, "target"),
    "texts from images": (flags("--text-column", "label"), 2, "the network takes images"),
    "another folder that is not there": (flags("--image-folder", "nowhere"), 2, "no folder of images at nowhere"),
}
