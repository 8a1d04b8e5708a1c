"""An unmodified OpenAI client against TitanCompute.

    pip install openai
    python openai_client.py "Why is the sky blue?"                                           the coordinator, which sends it to an agent
    OPENAI_BASE_URL=http://127.0.0.1:8787/v1 python openai_client.py "Why is the sky blue?"   titan proxy: the same over QUIC
"""

import os
import sys

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8080/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "any"),
)
prompt = sys.argv[1] if len(sys.argv) > 1 else "Why is the sky blue?"
stream = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": prompt}],
    max_completion_tokens=100,
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
