"""LangChain, unmodified, at the coordinator, an agent or `titan proxy`: python langchain_client.py "Why is the sky blue?"

    pip install langchain-openai

OPENAI_BASE_URL (default http://localhost:8080/v1), OPENAI_API_KEY (default any) and TITAN_MODEL (default smollm2:135m) say where and which.
"""

import os
import sys

from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8080/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "any"),
    model=os.environ.get("TITAN_MODEL", "smollm2:135m"),
    max_tokens=200,
)
prompt = " ".join(sys.argv[1:]) or "Why is the sky blue?"
for chunk in model.stream([("system", "You are brief."), ("user", prompt)]):
    print(chunk.text, end="", flush=True)
print()
