"""The openai package of Python, unmodified, as a client of `titan demo roaming --openai --client`: each piece as a JSON string on a line."""

import json
import os

from openai import OpenAI

stream = OpenAI(max_retries=0, timeout=60).chat.completions.create(
    model=os.environ["TITAN_MODEL"],
    messages=[{"role": "user", "content": "Tell me a story."}],
    max_completion_tokens=int(os.environ["TITAN_TOKENS"]),
    temperature=0,
    stream=True,
)
print(json.dumps(""), flush=True)
for chunk in stream:
    for choice in chunk.choices:
        print(json.dumps(choice.delta.content or ""), flush=True)
