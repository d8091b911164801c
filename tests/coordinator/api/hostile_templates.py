"""Chat templates that want all of a server's time or memory, by what they do it with."""

_BIG = "{% set ns = namespace(x='ab' ~ 'cd') %}"
_RANGE = "range(99999)"

HOSTILE = {
    "text doubled with ~": _BIG + "{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "text doubled with +": _BIG + "{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "loops without output": (
        f"{{% for a in {_RANGE} %}}{{% for b in {_RANGE} %}}{{% for c in {_RANGE} %}}"
        "{% endfor %}{% endfor %}{% endfor %}"
    ),
    "loops over products of ranges": (
        f"{{% for a in {_RANGE} %}}{{% for b in {_RANGE} %}}{{% if a == b and a < 0 %}}x{{% endif %}}"
        "{% endfor %}{% endfor %}"
    ),
    "replace doubles": _BIG
    + "{% for i in range(40) %}{% set ns.x = ns.x | replace('a', 'aa') %}{% endfor %}",
    "replace of everything": (
        "{% set x = 'a' | center(100000) %}{% set y = x | replace(' ', x) %}"
        "{{ y | replace(' ', x) | length }}"
    ),
    "format pads": "{{ '%1000000000d' % 1 }}",
    "format of format": "{{ ('{:>1000000000}').format('x') }}",
    "center pads": "{{ 'x' | center(10000000000) | length }}",
    "ljust pads": "{{ 'x'.ljust(4000000000) | length }}",
    "tojson indents": "{{ range(99999) | list | tojson(indent=100000) | length }}",
    "tojson separates": "{{ range(99999) | list | tojson(separators=('x' | center(100000), ':')) | length }}",
    "generation blocks in each other": "{% generation %}" * 5000 + "{% endgeneration %}" * 5000,
    "zfill pads": "{{ '1'.zfill(4000000000) | length }}",
    "indent multiplies": (
        "{% set x = 'x' | center(100000) %}{{ x.replace(' ', '\n') | indent(100000, blank=true) | length }}"
    ),
    "lists doubled with +": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
    ),
    "join of many": (
        f"{{% set x = 'x' | center(100000) %}}{{{{ ({_RANGE} | map('string') | list | join(x)) | length }}}}"
    ),
    "macro calls itself": "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "macro tree": (
        "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "lipsum": "{{ lipsum(n=100000, min=10000, max=20000) | length }}",
    "integers grow": (
        "{% set ns = namespace(n=12345678) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}"
    ),
    "integers shown": (
        "{% set ns = namespace(n=12345678) %}{% for i in range(22) %}{% set ns.n = ns.n * ns.n %}{% endfor %}"
        "{{ '%x' % ns.n | length }}"
    ),
    "constant folded at compile": "{{ 'x' | center(4000000000) | length }}" * 3,
    "thousands of nested brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "thousands of additions": "{{ 1" + " + 1" * 100_000 + " }}",
    "a megabyte of expressions": "{{ x }}" * 140_000,
    "thirty nested loops": "{% for a in range(9) %}" * 30 + "{% endfor %}" * 30,
    "generators in a chain": (
        "{% set ns = namespace(x=range(99999)) %}{% for i in range(99) %}"
        "{% set ns.x = ns.x | map('string') | list %}{% endfor %}"
    ),
    "batches": f"{{{{ {_RANGE} | batch(100000, 'x') | list | map('list') | list | string | length }}}}"
    + "{% for i in range(9999) %}{{ range(99999) | batch(99999, 1) | list | length }}{% endfor %}",
    "slices": "{{ range(9) | slice(2000000000) | list | length }}",
    "words wrapped": (
        "{% set x = 'a b ' | center(100000) %}{% for i in range(99999) %}"
        "{% set y = x | wordwrap(1) %}{% endfor %}"
    ),
    "links sought": "{% set x = 'a.' | replace('.', '.a' | center(99999)) %}{% for i in range(99999) %}"
    "{% set y = x | urlize %}{% endfor %}",
    "output without end": (
        "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}"
    ),
    "sorting of much": (
        "{% for i in range(9999) %}{% set x = range(99999) | map('string') | sort %}{% endfor %}"
    ),
    "itself in JSON": (
        "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}"
        "{% endfor %}{{ ns.x | tojson }}"
    ),
    "itself printed": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
        "{% endfor %}{{ ns.x | pprint }}"
    ),
}


# One of each way to go wrong: memory step by step, memory at once, time, time within one call of the library,
# depth, length, and the compiler's time and depth.
QUICK = (
    "text doubled with ~",
    "format pads",
    "loops without output",
    "replace doubles",
    "lipsum",
    "macro calls itself",
    "output without end",
    "thousands of additions",
    "thousands of nested brackets",
)

# What is too much for the compiler cannot be a branch of a template that is to be served.
AT_COMPILE = (
    "thousands of nested brackets",
    "thousands of additions",
    "a megabyte of expressions",
    "thirty nested loops",
    "generation blocks in each other",
)


def switch() -> str:
    """One template that does what the last message names, and else writes all messages."""
    branches = "".join(
        f"{{% elif wanted == {name!r} %}}{source}"
        for name, source in HOSTILE.items()
        if name not in AT_COMPILE
    )
    plain = "{% for m in messages %}{{ m.content }} {% endfor %}"
    wanted = "{% set wanted = messages[-1].content %}{% if not wanted %}"
    return f"{wanted}{branches}{{% else %}}{plain}{{% endif %}}"
