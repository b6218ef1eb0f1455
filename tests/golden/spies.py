"""What passes between the parts of a network, without taking the network apart."""

from typing import Any

import jax

from encnet_jax.models.encnet import EncNet, EncodingHead

Log = dict[str, Any]


def _replace(
    owner: Any, attribute: str, log: Log, name: str, item: int | None = None
) -> None:
    """Has the next call of a part of `owner`, or an item of it, written down."""
    call, own = getattr(owner, attribute), attribute in vars(owner)

    def spy(*args):
        # A module out of sight would lose its running statistics.
        if own:
            object.__setattr__(owner, attribute, call)
        else:
            object.__delattr__(owner, attribute)
        result = call(*args)
        log[name] = result if item is None else result[item]
        return result

    # Around the module's own setter, which would make the spy a part of its state.
    object.__setattr__(owner, attribute, spy)


def spy_on_head(head: EncodingHead) -> Log:
    """Returns a dict that the next call of a head fills: see `spy_on`."""
    log: Log = {}
    _replace(head.context, "encode", log, "encoded", 0)
    _replace(head.context, "gate", log, "gate")
    _replace(head, "reduce", log, "reduce")
    if head.fuse is not None:
        _replace(head, "fuse", log, "fuse")
    return log


def spy_on(model: EncNet) -> Log:
    """Returns a dict that the next call of a model fills with what its parts return.

    For use while JAX traces, on a model merged for that: the entries then are tracers
    that the traced function may return.
    """
    log = spy_on_head(model.head)
    _replace(model, "backbone", log, "stages")
    _replace(model, "head", log, "head")
    _replace(model, "aux_head", log, "aux_low")
    return log


def named_results(output: Any, log: Log) -> dict[str, jax.Array]:
    """Returns all results of an EncNet by the names that the cases have for them."""
    stages = {f"c{i + 1}": stage for i, stage in enumerate(log["stages"])}
    return dict(
        **stages,
        main=output.logits,
        main_low=log["head"][0],
        aux=output.aux_logits,
        aux_low=log["aux_low"],
        se_logits=output.se_logits,
        head_feature=log.get("fuse", log["reduce"]),
        encoded=log["encoded"],
        gamma=jax.nn.sigmoid(log["gate"]),
    )
