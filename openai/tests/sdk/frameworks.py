"""litellm and langchain-openai, unmodified, at one address with the model `synthetic`: python frameworks.py BASE_URL API_KEY"""

import sys

import litellm
from langchain_openai import ChatOpenAI

base, key = sys.argv[1:3]
asked = {"model": "openai/synthetic", "api_base": base, "api_key": key}
hello = [{"role": "user", "content": "hello"}]

whole = litellm.completion(messages=hello, max_tokens=8, **asked)
streamed = litellm.completion(messages=hello, max_tokens=8, stream=True, **asked)
text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
assert text == whole.choices[0].message.content and whole.usage.completion_tokens == 8, (text, whole)
response = litellm.responses(input="hello", max_output_tokens=16, **asked)
assert response.output[0].content[0].text.startswith(text), response
print("ok   litellm")

for responses in (False, True):
    model = ChatOpenAI(base_url=base, api_key=key, model="synthetic", max_tokens=8, use_responses_api=responses)
    streamed = "".join(chunk.text for chunk in model.stream("hello"))
    answer = model.invoke([("system", "Be brief."), ("user", "hello")])
    assert streamed == answer.text == text and answer.usage_metadata["output_tokens"] == 8, (streamed, answer)
print("ok   langchain-openai")
