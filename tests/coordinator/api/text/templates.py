"""Chat templates of our own words that ask of a renderer what those of published models do."""

# Turns with marks, thinking that is left out of earlier answers, tools as JSON lines: as Qwen's.
THINKING = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- 'You may call:\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages | length - 1, looking=true) %}
{%- for message in messages[::-1] %}
    {%- set index = messages | length - 1 - loop.index0 %}
    {%- if ns.looking and message.role == 'user' and message.content is string %}
        {%- set ns.looking = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0] %}
            {%- set thoughts = thoughts.rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thoughts) %}
            {{- '<think>\\n' + (thoughts or '') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- elif message.role == 'user' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# One line, BOS first, the system's words collected before: as DeepSeek's.
COLLECTED = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, system='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system = ns.system + message['content'] %}{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.system }}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{ '<|User|>' + message['content'] }}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}"
    "{%- set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|Assistant|>' + content + eos_token }}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)

# Macros that call themselves, the day's date, sorted keys, an error of its own: as gpt-oss's.
HARMONY = """
{%- macro type_of(spec) -%}
    {%- if spec.type == 'array' -%}
        {{- type_of(spec['items']) + '[]' -}}
    {%- elif spec.type == 'object' -%}
        {{- '{\\n' -}}
        {%- for name, inner in (spec.properties or {}).items() -%}
            {{- '  ' + name + ('' if name in (spec.required or []) else '?') + ': ' + type_of(inner) -}}
            {%- if not loop.last -%}{{- ', ' -}}{%- endif -%}
        {%- endfor -%}
        {{- '}' -}}
    {%- elif spec.enum -%}
        {{- '"' + spec.enum | join('" | "') + '"' -}}
    {%- else -%}
        {{- spec.type | default('any') -}}
    {%- endif -%}
{%- endmacro -%}
{{- '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '\\nReasoning: ' }}
{{- (reasoning_effort if reasoning_effort is defined else 'medium') + '<|end|>' }}
{%- if tools -%}
    {{- '<|start|>developer<|message|>namespace functions {\\n' }}
    {%- for tool in tools -%}
        {%- set tool = tool.function -%}
        {{- '// ' + (tool.description or '') + '\\ntype ' + tool.name + ' = (_: ' }}
        {{- type_of(tool.parameters) + ') => any;\\n' + tool.parameters | tojson(indent=2, sort_keys=true) }}
    {%- endfor -%}
    {{- '}<|end|>' }}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('Unknown role: ' + message.role) }}
    {%- endif -%}
    {%- if loop.index0 > 20 %}{% break %}{% endif -%}
    {%- if not message.content %}{% continue %}{% endif -%}
    {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}
"""

# Text outside of tags, lines that blocks leave behind, blocks of training: as GLM's and SmolLM's.
LINES = """[gMASK]<sop>
{%- if tools -%}
<|system|>
# Tools
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False, separators=(',', ':')) }}
{% endfor %}
{%- endif -%}
{% for message in messages %}
    {% if message.role == 'user' %}
<|user|>
{{ message.content }}{{ '/nothink' if (enable_thinking is defined and not enable_thinking) else '' }}
    {% elif message.role == 'assistant' %}
<|assistant|>
{% generation %}{% set said = message.content | trim %}{{ said }}{{ eos_token }}{% endgeneration %}
{{ said | default('not said here') }}
    {%- else %}
<|{{ message.role }}|>{{ message.content }}
    {% endif %}
{% endfor %}
{% for document in documents or [] %}
{{ loop.index }}. {{ document.title | upper }}: {{ document['text'] }}
{% endfor %}
{{ pad_token ~ image_token }}{{ dict(a=1, b='é<&>') | tojson }}
{% if add_generation_prompt %}<|assistant|>{% endif %}
"""

TEMPLATES = {"thinking": THINKING, "collected": COLLECTED, "harmony": HARMONY, "lines": LINES}
