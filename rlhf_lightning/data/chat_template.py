"""Plain-text format of a conversation for a tokenizer without a chat template. Imports nothing heavy."""

from __future__ import annotations

from jinja2 import Environment

from rlhf_lightning.records import Conversation

DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '\n\nHuman: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '\n\nAssistant:' }}{% if message['content'] %}{{ ' ' + message['content'] }}{% endif %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""The dialogue format of HH-RLHF. A system turn is written as it is."""


def as_plain_text(turns: Conversation) -> str:
    """The prompt text for a model without a chat template."""
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    template = Environment(autoescape=False).from_string(DEFAULT_CHAT_TEMPLATE)
    return template.render(messages=messages, add_generation_prompt=True)
