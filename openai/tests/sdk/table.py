"""The openai package of Python, unmodified, at one address: python table.py BASE_URL API_KEY [STATUS_URL]

Each case is a function; what it asserts holds at the coordinator, at an agent and at the proxy alike. The model is the default one, with a template
that knows tools. STATUS_URL is the coordinator, which tells how many jobs run.
"""

import json
import sys
import time
import urllib.request

import openai
from openai import OpenAI

BASE, KEY = sys.argv[1], sys.argv[2]
STATUS = sys.argv[3] if len(sys.argv) > 3 else None
MODEL = "smollm2:135m"
ASK = [{"role": "user", "content": "Write a long story about a lighthouse keeper and the sea."}]
# Bytes of the coordinator's answer to one request for a route, at most.
ROUTE = 3000
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Bern", "Paris"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
client = OpenAI(base_url=BASE, api_key=KEY, max_retries=4)


def chat(**more):
    asked = {"model": MODEL, "messages": ASK, "max_completion_tokens": 12, "temperature": 0, **more}
    return client.chat.completions.create(**asked)


def text_of(stream):
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def models_are_listed():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def chat_is_the_same_streamed_and_not():
    whole = chat()
    assert whole.choices[0].message.content == text_of(chat(stream=True)), whole
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12 and whole.usage.total_tokens == whole.usage.prompt_tokens + 12


def usage_comes_last_where_it_is_wanted():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])


def the_same_seed_gives_the_same_text():
    one, two = (chat(temperature=1, seed=7).choices[0].message.content for _ in range(2))
    assert one == two, (one, two)


def a_stop_text_ends_the_answer():
    whole = chat().choices[0].message.content
    stop = whole.split()[1]
    stopped = chat(stop=[stop]).choices[0]
    assert stop not in stopped.message.content and whole.startswith(stopped.message.content), stopped
    assert stopped.finish_reason == "stop"


def probabilities_are_given():
    for stream in (False, True):
        answer = chat(logprobs=True, top_logprobs=3, stream=stream, max_completion_tokens=4)
        choices = [chunk.choices[0] for chunk in answer if chunk.choices] if stream else answer.choices
        tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
        assert len(tokens) == 4 and all(len(token.top_logprobs) == 3 for token in tokens)
        assert all(token.top_logprobs[0].token == token.token for token in tokens)


def a_schema_is_kept():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "number", "strict": True, "schema": schema}}
    answer = chat(response_format=form, max_completion_tokens=60)
    assert isinstance(json.loads(answer.choices[0].message.content)["n"], int), answer


def a_function_is_called_and_its_result_is_used():
    asked = [{"role": "user", "content": "How is the weather in Bern?"}]
    more = {"tools": [WEATHER], "tool_choice": "required", "max_completion_tokens": 80}
    whole = chat(messages=asked, **more).choices[0]
    assert whole.finish_reason == "tool_calls", whole
    call = whole.message.tool_calls[0]
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Bern", "Paris")
    parts = [d for chunk in chat(messages=asked, stream=True, **more) if chunk.choices for d in chunk.choices[0].delta.tool_calls or []]
    assert parts[0].function.name == "weather" and parts[0].id
    assert "".join(part.function.arguments or "" for part in parts) == call.function.arguments
    asked += [whole.message, {"role": "tool", "tool_call_id": call.id, "content": "14 degrees"}]
    assert chat(messages=asked, tools=[WEATHER]).choices[0].message.content


def responses_are_the_same_streamed_and_not():
    asked = {"model": MODEL, "input": "Write a long story about a lighthouse keeper and the sea.", "max_output_tokens": 12, "temperature": 0}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(stream=True, **asked))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    streamed = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert whole.output_text == streamed == events[-1].response.output_text
    assert whole.usage.output_tokens == 12


def a_background_response_is_taken_up_where_it_broke_off():
    asked = {"model": MODEL, "input": "Write a long story about a lighthouse keeper and the sea.", "max_output_tokens": 40, "temperature": 0}
    stream = client.responses.create(background=True, stream=True, **asked)
    seen = [next(stream) for _ in range(6)]
    stream.close()
    name = seen[0].response.id
    rest = list(client.responses.retrieve(name, stream=True, starting_after=seen[-1].sequence_number))
    events = seen + rest
    assert [event.sequence_number for event in events] == list(range(len(events)))
    streamed = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    done = client.responses.retrieve(name)
    assert done.status == "incomplete" and done.output_text == streamed
    begun = client.responses.create(background=True, **{**asked, "max_output_tokens": 2000})
    assert client.responses.cancel(begun.id).status == "cancelled"


def legacy_completions_answer():
    answer = client.completions.create(model=MODEL, prompt="Write a long story about a lighthouse keeper and the sea.", max_tokens=12, temperature=0)
    assert answer.choices[0].text == chat().choices[0].message.content


def each_fault_has_its_class():
    plain = OpenAI(base_url=BASE, api_key=KEY, max_retries=0)
    for more, kind, param in [
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"logit_bias": {"5": 1}}, openai.BadRequestError, "logit_bias"),
        ({"top_p": 7}, openai.BadRequestError, "top_p"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"model": "nobody"}, (openai.NotFoundError, openai.PermissionDeniedError), None),
    ]:
        try:
            plain.chat.completions.create(**{"model": MODEL, "messages": ASK, "max_completion_tokens": 4, **more})
        except kind as error:
            assert error.body["param"] == param, error.body
        else:
            raise AssertionError(f"{more} was answered")
    ignored = plain.chat.completions.with_raw_response.create(
        model=MODEL, messages=ASK, max_completion_tokens=4, extra_body={"zebra": 1}
    )
    assert ignored.headers["x-titan-ignored"] == "zebra"


def coordinator_sent():
    """Bytes to clients. What agents hear is on another port."""
    with urllib.request.urlopen(f"{STATUS}/api/v1/status") as answer:
        return json.load(answer)["traffic"]["http"]["sent"]


def nothing_of_an_answer_passes_the_coordinator():
    # What it sends is the same for a short answer and for a long one, up to a route that the proxy asks for in between.
    if not STATUS:
        return
    asked = {"model": MODEL, "input": ASK[0]["content"], "temperature": 0}
    probabilities = {"logprobs": True, "top_logprobs": 20}
    ways = {
        "chat, streamed": lambda n: sum(len(chunk.to_json()) for chunk in chat(stream=True, max_completion_tokens=n)),
        "chat with probabilities": lambda n: len(chat(max_completion_tokens=n, **probabilities).to_json()),
        "response in the background, taken up": lambda n: taken_up(n, asked),
    }
    for way, ask in ways.items():
        figures = []
        for tokens in (2, 100):
            before = coordinator_sent()
            figures.append((ask(tokens), coordinator_sent() - before))
        (short, sent_for_short), (long, sent_for_long) = figures
        print(f"     {way}: answers of {short} and {long} bytes, the coordinator sent {sent_for_short} and {sent_for_long}")
        assert long - short > 4 * ROUTE and sent_for_long - sent_for_short < ROUTE, (way, figures)


def taken_up(tokens, asked):
    events = client.responses.create(background=True, stream=True, max_output_tokens=tokens, **asked)
    first = next(events)
    events.close()
    rest = client.responses.retrieve(first.response.id, stream=True, starting_after=first.sequence_number)
    return sum(len(event.to_json()) for event in rest)


def running_jobs():
    with urllib.request.urlopen(f"{STATUS}/api/v1/status?include_agents=true") as answer:
        return sum(agent["running_jobs"] for agent in json.load(answer)["agents"])


def leaving_frees_the_slot():
    # All places of the agent, one after another: without the slots coming free there would be none left.
    for _ in range(12):
        stream = chat(stream=True, max_completion_tokens=2000)
        next(iter(stream))
        stream.close()
        time.sleep(0.2)
    if STATUS:
        for _ in range(100):
            if running_jobs() == 0:
                return
            time.sleep(0.1)
        raise AssertionError("jobs still run")


CASES = [case for name, case in list(globals().items()) if callable(case) and getattr(case, "__module__", "") == "__main__"]
for case in CASES:
    if case.__name__ in ("chat", "text_of", "running_jobs", "coordinator_sent", "taken_up"):
        continue
    case()
    print(f"ok   {case.__name__}")
