"""Which runs each table needs."""

from __future__ import annotations

from dataclasses import dataclass

from .finetunings import WAYS
from .peers import CRITERIA
from .settings import Setting, Size, setting_of

_CRITERIA = tuple(f"tp-{name}" for name in CRITERIA)
PEERS = (
    "vanilla", "bise", "rounded", "finetuned", "last-layer", "spuco-erm", "spuco-group-balance", "spuco-group-dro",
    "spuco-jtt", *_CRITERIA, "ffw",
)  # fmt: skip
_FULL_SENSITIVITY = (
    "head-epochs-5",
    "head-epochs-10",
    "head-epochs-20",
    "upsilon-10",
    "upsilon-20",
    "upsilon-50",
    "tau-min-0.0001",
)
MORE_RHOS = (0.9, 0.99)  # beside a small setting's own, for the axis of conflicting samples


@dataclass(frozen=True)
class Plan:
    """Runs of one table: methods on a data set, for some shares of aligned samples.

    Attributes:
        name: the data set.
        methods: names of methods.
        first_rho: whether only the first of the setting's shares of aligned samples is looked at.
        first_small_rho: whether that is so at the small size.
        extra_rhos: further ones, at the small size.
        full_only: those of the methods that are left out at the small size.
    """

    name: str
    methods: tuple[str, ...]
    first_rho: bool = False
    first_small_rho: bool = False
    extra_rhos: tuple[float, ...] = ()
    full_only: tuple[str, ...] = ()

    def setting(self, size: Size) -> Setting:
        """The data set at a size."""
        return setting_of(self.name, size)

    def runs(self, size: Size) -> tuple[str, ...]:
        """The methods at a size."""
        return tuple(name for name in self.methods if size == "full" or name not in self.full_only)

    def rhos(self, size: Size) -> tuple[float, ...]:
        """The shares of aligned samples that the table has at a size; 0 where there is nothing to choose."""
        rhos = self.setting(size).rhos or (0.0,)
        if self.name == "biased_mnist" and size == "full":
            rhos = rhos if self.methods == ("vanilla", "bise", "finetuned") else rhos[:3]
        rhos = rhos[:1] if self.first_rho or (self.first_small_rho and size == "small") else rhos
        return (*rhos, *(self.extra_rhos if size == "small" else ()))


# The paper's tables by their names; 1 and 2 are accuracy and size of the same runs, as are 3 and 4.
PLANS: dict[str, Plan] = {
    "1": Plan("biased_mnist", ("vanilla", "bise", "finetuned")),
    "7": Plan("multi_color_mnist", ("vanilla", "bise", "finetuned")),
    "3": Plan("corrupted_cifar10", ("vanilla", "bise", "finetuned")),
    "6": Plan("toxic_comments", ("vanilla", "bise", "placement-tied", "finetuned", "last-layer")),
    "8": Plan("biased_mnist", ("loss-plain", "loss-reweighted", "loss-information", "bise"), first_rho=True),
    "fig3a": Plan("biased_mnist", ("gamma-0.1", "gamma-3", "gamma-10"), first_rho=True),
    "fig3b": Plan("biased_mnist", ("rankings",), first_rho=True),
    "H": Plan(
        "biased_mnist",
        (
            "head-epochs-1",
            "head-epochs-50",
            "kappa-0.1",
            "kappa-0.8",
            "upsilon-1",
            "upsilon-5",
            "tau-min-0.1",
            "tau-min-0.01",
            *_FULL_SENSITIVITY,
        ),
        first_rho=True,
        full_only=_FULL_SENSITIVITY,
    ),
    "I": Plan("biased_mnist", ("batchnorm-statistics", "batchnorm-affine"), first_small_rho=True),
    "J": Plan("biased_mnist", ("sweep",), first_rho=True),
    "K": Plan("biased_mnist", ("unsupervised",)),
    "L": Plan("biased_mnist", ("noise-0.1", "noise-0.3", "noise-0.5", "noise-0.8"), first_rho=True),
    "M": Plan("biased_mnist", ("probe",), first_rho=True),
    # Beyond the paper.
    "peers": Plan("biased_mnist", PEERS, first_small_rho=True),
    # 100 epochs of FFW would take longer than all the others together.
    "peers-cifar": Plan("corrupted_cifar10", PEERS[:-1]),
    "peers-digits": Plan("digits", ("vanilla", "bise", "rounded", "finetuned", "last-layer", *_CRITERIA)),
    "peers-multi-color": Plan("multi_color_mnist", ("last-layer", *_CRITERIA)),
    "criteria": Plan("biased_mnist", _CRITERIA),
    "conflicting": Plan("biased_mnist", ("vanilla", "bise", "finetuned", "last-layer"), extra_rhos=MORE_RHOS),
    "after-finetuning": Plan("biased_mnist", ("after-finetuning",)),
    "searches": Plan("biased_mnist", ("vanilla", "bise", "gradual", "budgets")),
    "searches-digits": Plan("digits", ("vanilla", "bise", "gradual", "budgets")),
    "searches-cifar": Plan("corrupted_cifar10", ("vanilla", "bise", "gradual", "budgets")),
    "searches-multi-color": Plan("multi_color_mnist", ("vanilla", "bise", "gradual")),
    "rungs": Plan(
        "biased_mnist", ("vanilla", "rungs", "rungs-norms", "rungs-head", "rungs-criteria"), extra_rhos=(0.99,)
    ),
    "rungs-digits": Plan("digits", ("vanilla", "rungs", "rungs-norms", "rungs-head", "rungs-criteria")),
    "rungs-cifar": Plan(
        "corrupted_cifar10", ("vanilla", "rungs", "rungs-clean", "rungs-norms", "rungs-head", "rungs-criteria")
    ),
    "rungs-multi-color": Plan("multi_color_mnist", ("vanilla", "rungs", "rungs-head", "rungs-criteria")),
    "rungs-texts": Plan("toxic_comments", ("vanilla", "rungs", "rungs-norms", "rungs-head")),
    "transfer": Plan("biased_mnist", ("transfer",)),
    "transfer-cifar": Plan("corrupted_cifar10", ("transfer",)),
    "finetunings": Plan("multi_color_mnist", tuple(f"finetuned-{name}" for name in WAYS)),
    "pseudo": Plan("biased_mnist", ("unsupervised", "unsupervised-3")),
}
SAME = {"2": "1", "G.1": "1", "4": "3"}
