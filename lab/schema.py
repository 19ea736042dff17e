"""JSON Schema of the file formats, made from the models and tables that read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from ccm.client_code import EXAMPLE
from ccm.exchange import NAME_BYTES
from lab.expectations import EXPECTATIONS
from lab.faults import FAULTS
from lab.parameters import Parameter
from lab.scenario import OPCODE_GROUPS, OPCODES, SESSION_STATES
from lab.scenario_file import ScenarioModel
from lab.topology import CLIENTS, LOADABLE
from lab.topology_file import INTERFACE_NAME_MAX, NAME_MAX, TopologyModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, object]


def topology_schema() -> Schema:
    """The schema of a topology file."""
    schema: Schema = {"$schema": DIALECT, **TopologyModel.model_json_schema(by_alias=True)}
    node = _properties(schema, "NodeModel")
    name = {"type": "string", "pattern": r"^[A-Za-z][A-Za-z0-9_-]*$", "maxLength": INTERFACE_NAME_MAX}
    _items(node["adapters"])["items"] = name
    client = {"type": "string", "pattern": name["pattern"], "maxLength": NAME_BYTES, "examples": list(CLIENTS)}
    _items(node["clients"])["items"] = client
    cast("Schema", node["partners"])["propertyNames"] = {"pattern": name["pattern"], "maxLength": NAME_BYTES}
    own = cast("Schema", cast("Schema", schema["properties"])["client_code"])
    reference = {"type": "string", "pattern": ":[A-Za-z_][A-Za-z0-9_]*$", "description": f"Expected: {EXAMPLE}."}
    own["propertyNames"] = {"pattern": name["pattern"], "maxLength": NAME_BYTES}
    own["additionalProperties"] = {"anyOf": [{"$ref": "#/$defs/ClientCodeModel"}, reference]}
    for key in ("nodes", "cables"):
        names = {"pattern": name["pattern"], "maxLength": NAME_MAX}
        cast("Schema", cast("Schema", schema["properties"])[key])["propertyNames"] = names
    cables = cast("Schema", cast("Schema", schema["properties"])["cables"])
    ends = {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2}
    _properties(schema, "CableModel")["ends"] = ends
    cables["additionalProperties"] = {"anyOf": [{"$ref": "#/$defs/CableModel"}, ends]}
    return schema


def scenario_schema() -> Schema:
    """The schema of a scenario file, faults and expectations with their parameters."""
    schema: Schema = {"$schema": DIALECT, **ScenarioModel.model_json_schema(by_alias=True)}
    top = cast("Schema", schema["properties"])
    step = cast("Schema", cast("Schema", schema["$defs"])["StepModel"])
    properties = cast("Schema", step["properties"])
    properties["fault"] = {"enum": sorted(FAULTS), "description": "What happens."}
    for fault in FAULTS.values():
        properties |= _parameters(fault.parameters)
    step["properties"] = properties
    step["additionalProperties"] = False
    step["oneOf"] = [{"required": ["at"]}, {"required": ["on"]}]
    _properties(schema, "FrameModel")["opcode"] = {"enum": [*OPCODE_GROUPS, *OPCODES]}
    _properties(schema, "OnModel")["session"] = {"enum": list(SESSION_STATES)}
    cast("Schema", top["workload"])["propertyNames"] = {"enum": list(LOADABLE)}
    top["expect"] = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {
            name: {
                "type": ["object", "null"],
                "description": expectation.help,
                "additionalProperties": False,
                "properties": _parameters(expectation.parameters),
            }
            for name, expectation in EXPECTATIONS.items()
        },
    }
    return schema


def _parameters(parameters: Iterable[Parameter]) -> Schema:
    return {parameter.name: parameter.schema() for parameter in parameters}


def _properties(schema: Schema, model: str) -> Schema:
    return cast("Schema", cast("Schema", cast("Schema", schema["$defs"])[model])["properties"])


def _items(field: object) -> Schema:
    """The array branch of an optional list."""
    branches = cast("list[Schema]", cast("Schema", field)["anyOf"])
    return next(branch for branch in branches if branch.get("type") == "array")
