"""What a library trains: rows of the layers' tensors by the update plan, and what is trained whole beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from tvm_tinytrain.passes.split_weights import ROWS_SUFFIX
from tvm_tinytrain.passes.state import Layer
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan

_Ranges = list[list[int]]


def trainable(
    plan: UpdatePlan, layers: Sequence[Layer], changing: Iterable[str], whole: Collection[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """What changes of each layer, one entry for tensors of which the same rows do; and the tensors of no layer that change whole.

    changing: all tensors that change (``<name>_rows`` holds the plan's rows of one). whole: those of them that change whole,
    whatever the plan says. A tensor that changes without being in the plan does so whole too.
    """
    updates = {update.layer: update for update in plan.layers}
    planned = [
        name
        for layer in layers
        if layer.id in updates
        for name, chosen in ((layer.weight, updates[layer.id].weight), (layer.bias, updates[layer.id].bias))
        if name is not None and chosen
    ]
    beside = (set(changing) - set(planned) - {name + ROWS_SUFFIX for name in planned}) | set(whole)
    entries = []
    for layer in layers:
        update = updates.get(layer.id)
        weight = _rows(layer, layer.weight, update if update and update.weight else None, beside)
        bias = _rows(layer, layer.bias, update if update and update.bias else None, beside)
        if weight and bias and weight[0] == bias[0]:
            entries.append(_entry(layer, weight, weight=True, bias=True))
            continue
        entries += [_entry(layer, weight, weight=True)] if weight else []
        entries += [_entry(layer, bias, bias=True)] if bias else []
    of_layers = {name for layer in layers for name in (layer.weight, layer.bias)}
    return entries, sorted(beside - of_layers)


def _rows(
    layer: Layer, name: str | None, update: LayerUpdate | None, whole: Collection[str]
) -> tuple[_Ranges, _Ranges | None] | None:
    """Ranges of the channels of a tensor that change, and of a weight's input channels; None where nothing does."""
    if name is None:
        return None
    if name in whole:
        return [[0, layer.channels]], None
    if update is None:
        return None
    inputs = None if update.inputs is None or name != layer.weight else ranges(update.inputs)
    return ranges(update.outputs), inputs


def _entry(
    layer: Layer, rows: tuple[_Ranges, _Ranges | None], *, weight: bool = False, bias: bool = False
) -> dict[str, Any]:
    return {
        "layer": layer.id, "weight": layer.weight if weight else None, "bias": layer.bias if bias else None,
        "channels": layer.channels, "ranges": rows[0], "input_ranges": rows[1],
    }  # fmt: skip


def trained_weights(entries: Iterable[Mapping[str, Any]], layers: Iterable[Layer]) -> int:
    """How many weights of layers change; biases are not counted."""
    by_id = {layer.id: layer for layer in layers}
    total = 0
    for entry in entries:
        layer = by_id[entry["layer"]]
        inputs = layer.inputs if entry["input_ranges"] is None else len(_indices(entry["input_ranges"]))
        taps = layer.weights // (layer.channels * layer.inputs)
        total += len(_indices(entry["ranges"])) * inputs * taps if entry["weight"] else 0
    return total


def trained_plan(metadata: Mapping[str, Any]) -> UpdatePlan:
    """What changes of each layer's weight, or where that is frozen, of its bias: the plan, and what is trained beside it."""
    found: dict[int, LayerUpdate] = {}
    for entry in metadata["training"]["trainable"]:
        if entry["layer"] not in found:  # a layer's weight comes first
            inputs = None if entry["input_ranges"] is None else _indices(entry["input_ranges"])
            whats = {"weight": entry["weight"] is not None, "bias": entry["bias"] is not None}
            found[entry["layer"]] = LayerUpdate(entry["layer"], _indices(entry["ranges"]), inputs, **whats)
    return UpdatePlan(tuple(found.values()))


def trained_channels(metadata: Mapping[str, Any]) -> dict[int, str]:
    """For each layer how many of its channels change: "2/4", or "4/4, bias 2/4" where its tensors differ in that; "?/4" where the
    device chooses."""
    found = {layer["id"]: f"0/{layer['weight_shape'][0]}" for layer in metadata["layers"]}
    for entry in reversed(metadata["training"]["trainable"]):
        share = f"{len(_indices(entry['ranges']))}/{entry['channels']}"
        if entry["weight"] is None:
            found[entry["layer"]] = f"bias {share}"
            continue
        bias = f", {found[entry['layer']]}" if found[entry["layer"]].startswith("bias") else ""
        found[entry["layer"]] = share + bias
    return found | {c["layer"]: f"?/{c['channels']}" for c in candidates(metadata)}


def candidates(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a task-adaptive library says of each layer that the device chooses among; none of another library."""
    return list(metadata.get("adaptive", {}).get("candidates", ()))


def row_bytes(metadata: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of a task-adaptive library's rows by what they hold, with all channels of all candidates trained; empty for another.

    They have no place of their own: they lie behind the activations, and no entry's plan shows them.
    """
    channels = [c["channels"] for c in candidates(metadata)]
    kinds: dict[str, int] = {}
    for row in metadata["adaptive"]["rows"] if channels else ():
        kinds[row["kind"]] = kinds.get(row["kind"], 0) + row["row_bytes"] * channels[row["candidate"]]
    placed, training = metadata["memory"]["bytes_by_role"], metadata["training"]
    found = {
        "weights": kinds.get("copy", 0),
        "gradients": training["gradient_bytes"] - placed.get("grad", 0) if channels else 0,
        "optimizer state": training["optimizer_bytes"] - placed.get("state", 0) if channels else 0,
        "lists of channels": kinds.get("channels", 0),
    }
    return {what: size for what, size in found.items() if size}


def least_arena(metadata: Mapping[str, Any]) -> int:
    """Bytes of the smallest arena in which a task-adaptive library trains one channel."""
    tables = zip(metadata["adaptive"]["activation_bytes"], candidates(metadata), strict=False)
    return min(int(before) + int(c["channel_bytes"]) for before, c in tables)


def ranges(indices: Iterable[int]) -> _Ranges:
    """Ascending indices as half-open ranges [first, end]."""
    found: _Ranges = []
    for index in indices:
        if found and found[-1][1] == index:
            found[-1][1] = index + 1
        else:
            found.append([index, index + 1])
    return found


def _indices(given: Iterable[Sequence[int]]) -> tuple[int, ...]:
    return tuple(chain.from_iterable(range(first, end) for first, end in given))
