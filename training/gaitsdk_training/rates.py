"""Another learning rate for a part of a network: factors by the first parts of its parameters' names."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from gaitsdk.errors import OptionError
from gaitsdk.slips import suggest


def rate_groups(model: nn.Module, rates: Mapping[str, float] | None) -> list[tuple[float, list[nn.Parameter]]]:
    """The parameters that learn, in groups of one factor on the learning rate each.

    Args:
        model: the network.
        rates: factor by prefix, "layer2" or "layer2.0.conv1" for example; of several that a name begins with the
            longest counts. Whatever has none learns at the full rate; 0 leaves a part as it is.

    Returns:
        (factor, parameters) each, in the order of the network's parameters.

    Raises:
        OptionError: no parameter's name begins so; the nearest is named.
    """
    factors = dict(rates or {})
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    known = {".".join(parts[: end + 1]) for parts in (name.split(".") for name in names) for end in range(len(parts))}
    for prefix in factors:
        if prefix not in known:
            raise OptionError(
                f"no parameter's name begins with {prefix!r}",
                where="BackboneTraining.rates",
                fix=suggest(prefix, (each for each in known if each.count(".") <= prefix.count("."))),
            )
    groups: dict[float, list[nn.Parameter]] = {}
    for name, each in model.named_parameters():
        if each.requires_grad:
            parts = name.split(".")
            prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
            factor = next((factors[prefix] for prefix in prefixes if prefix in factors), 1.0)
            groups.setdefault(float(factor), []).append(each)
    return list(groups.items())


def check_rates(rates: Mapping[str, float] | None) -> None:
    """Refuses with OptionError a factor that is none, whatever the network."""
    for prefix, factor in (rates or {}).items():
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 <= factor < math.inf:
            raise OptionError(
                "not a factor of the learning rate",
                where=f"BackboneTraining.rates: {prefix}",
                got=repr(factor),
                expected="a number of 0 or more",
                fix="0.1 for a tenth of the rate",
            )
