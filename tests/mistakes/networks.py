"""Networks of users' own code that no search can work with."""

import torch

from bise_prune import load_model

BASE = """
import sys, torch
from torch import nn
from torch.nn import functional as F
from bise_prune.models.simple_convnet import SimpleConvNet

class Base(SimpleConvNet):
    def __init__(self, num_classes=3):
        super().__init__(num_classes, kernel_size=3, widths=[4, 6], strides=[2, 1])

"""


def own(module, code):
    """The project's weights for a network of one's own, in a module of its own name."""

    def spoil(case):
        model, _ = load_model(case.net)
        torch.save(model.state_dict(), case.net)
        (case.root / f"{module}.py").write_text(BASE + code)
        case.flags.extend(["--arch", f"{module}:Net"])

    return spoil


CASES = {
    "network that is no Python": (own("own_a", "class Net(Base) pass"), 2, "own_a.py, line 11"),
    "network whose module raises": (own("own_b", "raise NameError('no')"), 2, "'own_b:Net'"),
    "network that exits": (own("own_c", "sys.exit(0)"), 2, "ends the process (exit 0)"),
    "network that is not there": (own("own_d", "Other = Base"), 2, "has no function or class 'Net'"),
    "network that is no network": (own("own_e", "def Net(): return 3"), 2, "returned int"),
    "network without gradients": (
        own("own_f", "class Net(Base):\n    @torch.no_grad()\n    def forward(self, x): return super().forward(x)"),
        1,
        "no gradient reaches the gates",
    ),
    "network that cuts its gradients": (
        own(
            "own_g",
            "class Net(Base):\n    def forward(self, x):\n        for block in self.blocks: x = block(x)\n"
            "        return self.head(x.mean((2, 3)).detach())",
        ),
        1,
        "no gradient reaches the gates",
    ),
    "network with a frozen encoder": (
        own(
            "own_p",
            "class Net(Base):\n    def forward(self, x):\n        with torch.no_grad(): x = self.blocks(x)\n"
            "        return self.head(x.mean((2, 3)))",
        ),
        1,
        "no gradient reaches the gates of",
    ),
    **{
        f"network that is computed twice, {reentrant}": (
            own(
                f"own_q{reentrant}",
                "from torch.utils.checkpoint import checkpoint\nclass Net(Base):\n    def forward(self, x):\n"
                f"        x = checkpoint(self.blocks[0], x.requires_grad_(), use_reentrant={reentrant})\n"
                "        return self.head(self.blocks[1:](x).mean((2, 3)))",
            ),
            1,
            "gradient checkpointing",
        )
        for reentrant in (False, True)
    },
    "network whose eval returns nothing": (
        own("own_h", "class Net(Base):\n    def eval(self): super().eval()"),
        1,
        "eval() of Net does not return the network",
    ),
    "network that stays in training": (
        own("own_i", "class Net(Base):\n    def train(self, mode=True): return super().train(True)"),
        1,
        "stays in training mode",
    ),
    "network that is random": (
        own("own_j", "class Net(Base):\n    def forward(self, x): return super().forward(F.dropout(x, 0.5, True))"),
        1,
        "other logits for the same inputs",
    ),
    "network that counts its calls": (
        own(
            "own_k",
            "class Net(Base):\n    calls = 0\n    def forward(self, x):\n        self.calls += 1\n"
            "        return super().forward(x) * self.calls",
        ),
        1,
        "other logits for the same inputs",
    ),
    "network that raises": (
        own("own_l", "class Net(Base):\n    def forward(self, x): raise KeyError('x')"),
        1,
        "does not take inputs",
    ),
    "network that squeezes": (
        own("own_m", "class Net(Base):\n    def forward(self, x): return super().forward(x).squeeze(0)"),
        1,
        "take a squeeze or a view",
    ),
    "network of one vector": (
        own("own_n", "class Net(Base):\n    def forward(self, x): return super().forward(x)[:, 0]"),
        1,
        "logits of shape (samples, classes)",
    ),
    "network of a mapping": (
        own("own_o", "class Net(Base):\n    def forward(self, x): return {'a': 1}"),
        1,
        "holds no logits",
    ),
}
