"""Tables 1 to 3, what the paper says of its net's layers and their cost, beside what is counted on ours; single nets.

Nothing here was trained: the numbers are properties of the nets in `tasks.nets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import torch

from pipelines.paper import Costs, CountedNet, Layers
from pipelines.tables import KINDS, Cell, Record, Result, Table, count_difference, plain_number
from tasks.nets import NetSpec, build
from tasks.nets.complexity import LayerRow, count, layer_table, one_layer_example

INPUT_SIZE = 224  # Tables 1 and 2 are of the full-size net


def cost_table(name: str, table: Layers | Costs) -> Table:
    """A published table of layers or of costs beside ours."""
    if isinstance(table, Costs) and table.kind == "example":
        return _costs(name, table, one_layer_example(), unit=Decimal(1_000_000), decimals=3)
    with torch.device("meta"):
        net = build(NetSpec("mobilenet"))
    if isinstance(table, Layers):
        return _layers(name, table, layer_table(net, INPUT_SIZE))
    return _costs(name, table, count(net, INPUT_SIZE).shares(), unit=Decimal("0.01"), decimals=2)


def net_cost(net: CountedNet) -> Result:
    """The Mult-Adds and parameters of a net that is not trained."""
    with torch.device("meta"):
        built = build(NetSpec(**net.model_dump(exclude={"resolution"})))
    counted = count(built, net.resolution)
    return {"mult_adds": counted.mult_adds, "parameters": counted.parameters}


def _layers(name: str, table: Layers, ours: list[LayerRow]) -> Table:
    rows, records = [], []
    for printed, layer in zip(table.rows, ours, strict=True):
        found = (layer.type, layer.filter, layer.input)
        compared = [Cell(b, "same" if a == b else "differs") for a, b in zip(printed, found, strict=True)]
        cost = [Cell(f"{layer.mult_adds:,}"), Cell(f"{layer.parameters:,}")]
        rows.append([Cell(layer.name or layer.kind), *map(Cell, printed), *compared, *cost])
        record = Record(layer=layer.name or layer.kind)
        for part, a, b in zip(("type", "filter", "input"), printed, found, strict=True):
            record |= {f"{part}_paper": a, part: b}
        records.append(record | {"mult_adds": layer.mult_adds, "parameters": layer.parameters})
    parts = ("type / stride", "filter shape", "input size")
    header = [("", "Layer"), *(("Paper", part) for part in parts), *(("Ours", part) for part in parts)]
    header += [("Cost", "Mult-Adds"), ("Cost", "parameters")]
    return Table(name, table.title, header, rows, records, slips=table.slips, notes=table.notes)


def _costs(name: str, table: Costs, ours: Mapping[str, tuple[float, float]], unit: Decimal, decimals: int) -> Table:
    rows, records = [], []
    for key, printed in table.rows.items():
        cells, record = [Cell(key)], Record(row=key)
        for quantity, text, value in zip(("mult_adds", "parameters"), printed, ours[key], strict=True):
            exact = Decimal(str(value)) / unit
            cells += [Cell(text), Cell(f"{exact:,.{decimals}f}"), count_difference(text, exact, decimals)]
            record |= {f"{quantity}_paper": plain_number(Decimal(text) * unit), quantity: value}
        rows.append(cells)
        records.append(record)
    header = [("", table.label), *((column, part) for column in table.columns for part in KINDS["counted"].parts)]
    return Table(name, table.title, header, rows, records, slips=table.slips, notes=table.notes)
