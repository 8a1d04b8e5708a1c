"""The OpenAPI document of /v1 on stdin, narrowed to the synthetic model, on stdout. With the argument `bounded` requests must bound their answers, since that model
never ends one by itself: right for what is to be answered, and wrong for what is to be refused.
"""

import json
import sys

document = json.load(sys.stdin)
schemas = document["components"]["schemas"]
for name, limit in (
    ("ChatRequest", "max_completion_tokens"),
    ("CompletionRequest", "max_tokens"),
    ("ResponseRequest", "max_output_tokens"),
):
    schema = schemas[name]
    schema["properties"]["model"] = {"type": "string", "enum": ["synthetic"]}
    if "bounded" in sys.argv:
        schema["properties"][limit] = {"type": "integer", "minimum": 1, "maximum": 20}
        schema["required"].append(limit)
if "bounded" in sys.argv:
    # What a schema cannot say: the arguments of a call are a JSON object, no two functions have one name, the one that is wanted is among them, and a conversation does not end with its answer.
    for name in ("CalledFunction", "InputCall"):
        schemas[name]["properties"]["arguments"] = {"type": "string", "enum": ["{}"]}
    for name in ("ChatRequest", "ResponseRequest"):
        schemas[name]["properties"]["tools"]["maxItems"] = 1
        schemas[name]["properties"]["tool_choice"] = {"enum": [None, "auto", "none", "required"]}
    schemas["ChatRequest"]["properties"]["messages"]["items"] = {"$ref": "#/components/schemas/Said"}
    schemas["Item"] = {"$ref": "#/components/schemas/InputMessage"}
    schemas["InputMessage"]["properties"]["role"] = {"type": "string", "enum": ["user", "system", "developer"]}
    # What the synthetic engine cannot do.
    schemas["ChatRequest"]["properties"]["response_format"] = {"type": "null"}
    schemas["ResponseRequest"]["properties"]["text"] = {"type": "null"}
json.dump(document, sys.stdout)
