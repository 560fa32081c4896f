"""Tool calls: whether an answer calls only what was offered, with arguments that fit the tool's own schema.

In: the evidence. Out: what is wrong, or None. Schemas are read as JSON Schema (draft 2020-12, or as they say) by the package
`jsonschema`; a schema that points to another place is not fetched.
"""

import json
from collections.abc import Mapping

from conversations.messages import Json
from distill.dataset.similarity import words
from distill.dataset.verifying.evidence import Evidence
from distill.dataset.verifying.machine_signs import call_as_text
from distill.dataset.verifying.reasons import CannotSay, Unsaid
from distill.rows import Task


def tool_call_invalid(evidence: Evidence) -> str | None:
    """Look for a call of an unknown tool, arguments that do not fit, a call that was not allowed, and a demanded one left out.

    Raises CannotSay where the schemas that were offered are broken themselves.
    """
    if evidence.answer.extra_json and not evidence.extra:
        return "what goes with the answer is no JSON object"
    spoken = None if evidence.row.task in (Task.MATH, Task.QA) else call_as_text(evidence.answer.text)
    if spoken and not evidence.row.offered.response_format_json:
        return f"a call written as words: {spoken[:80]!r}"
    calls = evidence.extra.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        return "tool_calls is no list"
    if not evidence.row.offered.tools_json:
        return "tools were called and none offered" if calls else None
    offered = _offered(evidence.row.offered.tools_json)
    choice = _choice(evidence.row.offered.tool_choice_json)
    if not calls:
        demanded = choice not in ("", "auto", "none")
        return f"no tool was called and the request demands {choice!r}" if demanded else None
    if choice == "none":
        return "tools were called and the request forbids it"
    for call in calls:
        wrong = _wrong_call(call, offered, choice)
        if wrong:
            return wrong
    return None


def _wrong_call(call: Json, offered: Mapping[str, Json], choice: str) -> str | None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return "a call names no function"
    name = str(function["name"])
    if name not in offered:
        return f"the unknown tool {name!r}; offered were {', '.join(sorted(offered)) or 'none'}"
    if choice not in ("", "auto", "required") and name != choice:
        return f"the tool {name!r}, where the request demands {choice!r}"
    arguments = function.get("arguments", "")
    try:
        given = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    except ValueError:
        return f"the arguments of {name!r} are no JSON: {str(arguments)[:60]!r}"
    if not isinstance(given, dict):
        return f"the arguments of {name!r} are no JSON object"
    return _misfit(name, given, offered[name])


def _misfit(name: str, given: Json, schema: Json) -> str | None:
    import jsonschema
    import referencing
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for

    if not isinstance(schema, dict | bool):
        raise CannotSay(Unsaid.TOOL_SCHEMA_BROKEN, f"the parameters of {name!r} are no schema")
    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
        # A registry of nothing: a reference to elsewhere is an error, never a request.
        error = best_match(kind(schema, registry=referencing.Registry()).iter_errors(given))
    except (jsonschema.SchemaError, referencing.exceptions.Unresolvable) as broken:
        raise CannotSay(Unsaid.TOOL_SCHEMA_BROKEN, f"the parameters of {name!r}: {str(broken)[:120]}") from None
    return f"{name!r}: {error.message[:120]}" if error else None


def _offered(tools_json: str) -> dict[str, Json]:
    """Return the schema of each tool's parameters, by the tool's name."""
    try:
        tools = json.loads(tools_json)
    except ValueError:
        raise CannotSay(Unsaid.TOOL_SCHEMA_BROKEN, "the tools that were offered are no JSON") from None
    found: dict[str, Json] = {}
    for tool in tools if isinstance(tools, list) else []:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        if isinstance(function, dict) and words(str(function.get("name", ""))):
            found[str(function["name"])] = function.get("parameters", True)
    return found


def _choice(tool_choice_json: str) -> str:
    """Return auto, none, required or the name of the tool that must be called; empty where nothing was said."""
    try:
        choice = json.loads(tool_choice_json) if tool_choice_json else ""
    except ValueError:
        choice = tool_choice_json
    if isinstance(choice, dict):
        function = choice.get("function", choice)
        return str(function.get("name", "")) if isinstance(function, dict) else ""
    return str(choice)
